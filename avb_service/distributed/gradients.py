"""Gradients averaged over workers, by DistributedDataParallel.

Floor 8.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avb_service.distributed.neighbours import Neighbours

Hook = Callable[[None, dist.GradBucket], torch.futures.Future[Tensor]]


def data_parallel(turn: nn.Module, timeout_s: float = 600) -> nn.Module:
    """A turn whose gradients are averaged over all workers.

    Args:
        turn: on the device where it is played.
        timeout_s: how long a worker waits for another on its host, seconds; elsewhere the process group's limit holds.
    """
    size, on_cpu = sum(p.nbytes for p in turn.parameters()), next(turn.parameters()).device.type == "cpu"
    # Buffers are not synchronised at each step: that would hide a method whose ranks drift apart. All gradients go at
    # once, after the backward pass: on CPUs, to send some during it takes cores from it.
    parallel = nn.parallel.DistributedDataParallel(
        turn, forward_sync_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=1 + size // 2**20
    )
    neighbours = Neighbours.meet(size, timeout_s) if on_cpu else None
    parallel.register_comm_hook(None, neighbours.mean if neighbours else ordered_mean(list(turn.parameters())))
    return parallel


def ordered_mean(parameters: Sequence[nn.Parameter]) -> Hook:
    """The mean of gradients over the workers, sent in the order of these parameters.

    DistributedDataParallel lays its bucket out anew after the first step, and round a ring of more than two the order
    of a sum hangs on where a number lies: by its own layout a resumed run would not be the undisturbed one to the bit.

    Returns:
        A communication hook.
    """
    place: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(parameters)}

    def mean(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        gradients = [gradient for _, gradient in sorted(pairs, key=lambda pair: place[pair[0]])]
        sent = torch.cat([gradient.flatten() for gradient in gradients]).div_(dist.get_world_size())

        def received(_: torch.futures.Future[list[Tensor]]) -> Tensor:
            for gradient, part in zip(gradients, sent.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
            return bucket.buffer()

        return dist.all_reduce(sent, async_op=True).get_future().then(received)

    return mean
