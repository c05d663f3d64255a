"""What the workers of one training agree on: that all go on, or all fail, and that all hold the same model.

Floor 4. In one process there is nobody to agree with, and all of this does nothing.
"""

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avb_service.errors import DivergenceError, UserError


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Fail on all ranks where one fails: the others would wait for it in their next collective, for ever.

    Raises:
        UserError: what the first rank that failed has raised.
    """
    caught: UserError | None = None
    try:
        yield
    except UserError as error:
        if not dist.is_initialized():
            raise
        caught = error
    if not dist.is_initialized():
        return
    code = torch.tensor(0 if caught is None else 1 + isinstance(caught, DivergenceError), device=device)
    dist.all_reduce(code, dist.ReduceOp.MAX)
    if code:
        messages: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(messages, str(caught or ""))
        raise caught or (DivergenceError if code == 2 else UserError)(next(filter(None, messages)))


def check_agreement(module: nn.Module, round_: int) -> None:
    """Make sure that all workers hold the same parameters and buffers, to the bit.

    Raises:
        RuntimeError: they do not; names the ranks that differ from rank 0.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    state = [t.detach().double().flatten() for t in module.state_dict().values()]
    sums = torch.stack([torch.stack([t.sum(), t.square().sum()]) for t in state]).view(torch.int64)
    everybody = gathered(sums)
    apart = [str(rank) for rank, other in enumerate(everybody) if not torch.equal(other, everybody[0])]
    if apart:
        raise RuntimeError(f"round {round_}: the state of ranks {', '.join(apart)} differs from rank 0's")


def gathered(mine: Tensor) -> list[Tensor]:
    """A tensor of each worker, by rank; of one shape on all of them."""
    if not dist.is_initialized():
        return [mine]
    everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine.contiguous())
    return everybody


def in_order(mine: Tensor, shares: Sequence[range]) -> Tensor:
    """What slices have given, [V, ...] in the order of the logical workers, from this worker's own slices.

    Args:
        mine: one for each slice of this worker.
        shares: which slices each worker has.
    """
    most = max(map(len, shares))
    padded = torch.cat([mine, mine[:1].expand(most - len(mine), *mine.shape[1:])])  # to one size for all
    return torch.cat([part[: len(share)] for part, share in zip(gathered(padded), shares, strict=True)])


def origin(loss: float) -> str:
    """Which workers have a loss that is not finite: all where training diverged, one where that one is broken."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ""
    losses: list[tuple[float, str]] = [(0.0, "")] * dist.get_world_size()
    dist.all_gather_object(losses, (loss, socket.gethostname()))
    sick = [f"{value} on rank {rank} ({host})" for rank, (value, host) in enumerate(losses) if not math.isfinite(value)]
    return f", the loss {', '.join(sick)} of {len(losses)}" if sick else ", although the loss is finite on every rank"
