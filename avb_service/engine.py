"""The round loop: one engine plays every game, on one device or on many.

Floor 4. What is exact data parallelism here (measured on two ranks, see docs/architecture.md): one turn is one DDP
forward, one scalar, one backward; the loss of a player is the forward of a module that holds that player's networks
and nothing else, and that module is what DDP wraps. `wrap` is all that this file knows of how it is done.
"""

import math
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avb_service.algorithm import Algorithm, Batch, Loss, Player, Positive
from avb_service.config import Config
from avb_service.errors import DivergenceError, UserError
from avb_service.seeding import derive_seed, reseed

HEED_EVERY = 10  # rounds between two moments at which the caller may interfere without a report

State = dict[str, Any]
Source = Callable[[int, int], tuple[Tensor, Tensor | None]]  # (index of the global batch, logical worker) -> x, labels


class TrainingConfig(Config):
    """How long, how large, from which seed, in which precision.

    Attributes:
        rounds: in each of which every player has its turn.
        batch_size: data in a step, of all workers together.
        seed: of the weights, the order of the data and all noise.
        logical_workers: V slices of a batch, with a noise stream each; N workers share them out, and N has to divide V.
        report_every: rounds between two reports, at which the model is evaluated and saved.
        ema: decay of the weights' moving average, which is evaluated and published in their place; none by default.
        dtype: of data and weights.
        matmul_precision: torch's, of float32 products on GPUs: high is TF32 where they have it.
    """

    rounds: Positive = 5000
    batch_size: Positive = 128
    seed: Annotated[int, Field(ge=0)] = 0
    logical_workers: Positive = 1
    report_every: Positive = 500
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] = "high"

    def problems(self) -> Iterator[str]:
        """The global batch is cut into equal slices."""
        yield from super().problems()
        if self.batch_size % self.logical_workers:
            yield (
                f"logical_workers: {self.logical_workers} do not divide training.batch_size {self.batch_size}; "
                "choose a divisor"
            )


@dataclass(frozen=True)
class Report:
    """What the engine tells its caller.

    Attributes:
        round: rounds played.
        terms: means over the rounds since the last report and over all workers, `train/<player>/<term>`.
    """

    round: int
    terms: Mapping[str, float]


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


class Turn(nn.Module):
    """A player's objective as the forward of a module that owns that player's networks and no others.

    Args:
        player: whose turn it is.
        weight: of this worker's slices, 1 where all have as many: so that the mean over workers is that over slices.
    """

    def __init__(self, player: Player, weight: float = 1.0) -> None:
        super().__init__()
        self.networks = nn.ModuleList(player.networks)
        self.objective, self.weight = player.objective, weight

    def forward(self, slices: list[tuple[int, Batch]], shared_seed: int) -> Loss:
        """The weighted mean loss over slices of the batch, each played under its own seed."""
        losses = []
        for seed, batch in slices:
            reseed(batch.x.device, seed)
            batch.generator.manual_seed(shared_seed)
            losses.append(self.objective(batch))
        first = losses[0]
        terms = {name: torch.stack([loss.terms[name] for loss in losses]).mean() * self.weight for name in first.terms}
        statistics = {name: torch.stack([loss.statistics[name] for loss in losses]) for name in first.statistics}
        return Loss(torch.stack([loss.value for loss in losses]).mean() * self.weight, terms, statistics)


class Engine:
    """Plays an algorithm's game.

    Args:
        algorithm: on its device and in its precision.
        source: the training data.
        config: rounds, seed, logical workers.
        other: the second source, for a method that has two.
        wrap: makes a turn data-parallel; none in one process.
        rank: this worker.
        workers: number of physical workers, no more than the logical ones; fastest where it divides them.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        source: Source,
        config: TrainingConfig,
        *,
        other: Source | None = None,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self.algorithm, self.source, self.other, self.config = algorithm, source, other, config
        self.players = algorithm.players()
        self.parameters = [_unique_parameters(player) for player in self.players]
        self._check_ownership()
        if config.logical_workers < workers:
            raise UserError(
                f"{workers} workers cannot share training.logical_workers {config.logical_workers}: some would have no "
                "slice of the batch; start fewer, or raise training.logical_workers"
            )
        self.shares = [range(r * config.logical_workers // workers, (r + 1) * config.logical_workers // workers)
                       for r in range(workers)]  # fmt: skip
        self.mine = self.shares[rank]
        turns = [Turn(player, len(self.mine) * workers / config.logical_workers) for player in self.players]
        self.turns = [wrap(turn) for turn in turns] if wrap else turns
        self.optimizers = [p.turn.build(own) for p, own in zip(self.players, self.parameters, strict=True)]
        self.average = None
        if config.ema is not None:
            self.average = AveragedModel(algorithm, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.round = 0
        self._device = next(algorithm.parameters()).device
        self._generator = torch.Generator(self._device)
        self._terms: dict[str, list[Tensor]] = {}  # of this worker, since `pool` was called
        self._pooled: dict[str, Tensor] = {}  # of all workers before that, since the last report
        self._checked: set[str] = set()
        self._all = list(algorithm.parameters())

    @property
    def model(self) -> Algorithm:
        """The algorithm to evaluate: the averaged weights where averaging is on."""
        return self.algorithm if self.average is None else cast(Algorithm, self.average.module)

    def run(self, report: Callable[[Report], None], between: Callable[[], None] = lambda: None) -> None:
        """Play the rounds that are left.

        Args:
            report: called every `report_every` rounds and after the last.
            between: called every `HEED_EVERY` rounds of the others.

        Raises:
            DivergenceError: a gradient was not finite; the step was not taken.
        """
        self._check_agreement()
        steps = sum(player.turn.steps for player in self.players)
        while self.round < self.config.rounds:
            index = self.round * steps
            for i, player in enumerate(self.players):
                for _ in range(player.turn.steps):
                    self._step(i, index)
                    index += 1
            self.round += 1
            if self.average is not None:
                self.average.update_parameters(self.algorithm)
            if self.round % self.config.report_every == 0 or self.round == self.config.rounds:
                self._check_agreement()
                report(Report(self.round, self._collect()))
            elif self.round % HEED_EVERY == 0:
                between()

    def state(self) -> State:
        """All that a resumed run needs: nested dicts of tensors and numbers; between reports, call `pool` before."""
        pairs = zip(self.players, self.optimizers, strict=True)
        optimizers = {player.name: _string_keys(optimizer.state_dict()["state"]) for player, optimizer in pairs}
        state: State = {"round": self.round, "algorithm": self.algorithm.state_dict(), "optimizers": optimizers,
                        "terms": dict(self._pooled)}  # fmt: skip
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load(self, state: State) -> None:
        """Continue from a state; schedules and options come from the configuration."""
        self.round = state["round"]
        self._terms, terms = {}, state.get("terms", {})
        self._pooled = {name: values.to(self._device, torch.float64) for name, values in terms.items()}
        self.algorithm.load_state_dict(state["algorithm"])
        for player, optimizer in zip(self.players, self.optimizers, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            moments = {int(key): value for key, value in state["optimizers"][player.name].items()}
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def pool(self) -> None:
        """Make the terms since the last report those of all workers, for `state`, which one of them calls.

        A report's figures are the same to the bit, whenever in between this is called.
        """
        for name, values in self._terms.items():
            mine = torch.stack(values).double()
            everybody = [mine]
            if dist.is_initialized():  # gathered: where in a ring a number lies decides in which order it is summed
                everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
                dist.all_gather(everybody, mine)
            mean = torch.stack(everybody).mean(0)
            self._pooled[name] = torch.cat([self._pooled.get(name, mean[:0]), mean])
        self._terms.clear()

    def _step(self, i: int, index: int) -> None:
        player, turn, optimizer = self.players[i], self.turns[i], self.optimizers[i]
        factor = player.turn.schedule.factor(self.round, self.config.rounds)
        for group in optimizer.param_groups:
            group["lr"] = player.turn.lr * factor
        with _only(self.parameters[i], self._all):
            loss = turn(self._slices(index), derive_seed(self.config.seed, "shared", index))
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
        if player.name not in self._checked:
            self._check_gradients(player)
        self._clip(player, self.parameters[i], loss.value)
        optimizer.step()
        if player.absorb is not None:
            with torch.no_grad():
                player.absorb(self._everybody(loss.statistics))
        for name, value in loss.terms.items():
            self._terms.setdefault(f"train/{player.name}/{name}", []).append(value)

    def _slices(self, index: int) -> list[tuple[int, Batch]]:
        return [(derive_seed(self.config.seed, "noise", index, worker), self._batch(index, worker))
                for worker in self.mine]  # fmt: skip

    def _batch(self, index: int, worker: int) -> Batch:
        x, labels = self.source(index, worker)
        other = None if self.other is None else self.other(index, worker)[0]
        return Batch(x, labels, self.round, self._generator, other)

    def _everybody(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The statistics of the slices of all workers, [V, ...] each, in the order of the logical workers."""
        if len(self.mine) == self.config.logical_workers:
            return statistics
        gathered, most = {}, max(map(len, self.shares))
        for name, mine in statistics.items():
            padded = torch.cat([mine, mine[:1].expand(most - len(mine), *mine.shape[1:])])  # to one size for all
            parts = [torch.empty_like(padded) for _ in self.shares]
            dist.all_gather(parts, padded.contiguous())
            gathered[name] = torch.cat([part[: len(share)] for part, share in zip(parts, self.shares, strict=True)])
        return gathered

    def _clip(self, player: Player, parameters: list[nn.Parameter], loss: Tensor) -> None:
        """Clip, and refuse a step that would destroy the model.

        The gradient is already the mean over all workers, so all of them see the same norm and decide alike.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise DivergenceError(
                f"round {self.round}: the gradient of player '{player.name}' is {norm.item()}{_origin(loss)}; the step "
                "was not taken",
                player.name,
            )
        if player.turn.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, player.turn.clip_norm, norm)

    def _collect(self) -> dict[str, float]:
        """The mean of every term since the last call, over all workers."""
        self.pool()
        if not self._pooled:
            return {}
        means = torch.stack([values.mean() for values in self._pooled.values()])
        terms = dict(zip(self._pooled, means.tolist(), strict=True))
        self._pooled.clear()
        return terms

    def _check_ownership(self) -> None:
        owned = {id(p) for own in self.parameters for p in own}
        stray = [name for name, p in self.algorithm.named_parameters() if id(p) not in owned]
        if stray:
            raise TypeError(f"{type(self.algorithm).__name__}: no player owns {', '.join(stray)}")

    def _check_gradients(self, player: Player) -> None:
        names = {id(p): name for name, p in self.algorithm.named_parameters()}
        idle = [names[id(p)] for p in _unique_parameters(player) if p.grad is None]
        if idle:
            raise TypeError(f"player '{player.name}' owns {', '.join(idle)}, but its objective does not use them")
        self._checked.add(player.name)

    def _check_agreement(self) -> None:
        """All workers must hold the same parameters and buffers, to the bit."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        state = [t.detach().double().flatten() for t in self.algorithm.state_dict().values()]
        sums = torch.stack([torch.stack([t.sum(), t.square().sum()]) for t in state]).view(torch.int64)
        everybody = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, sums)
        apart = [str(rank) for rank, other in enumerate(everybody) if not torch.equal(other, everybody[0])]
        if apart:
            raise RuntimeError(f"round {self.round}: the state of ranks {', '.join(apart)} differs from rank 0's")


def _origin(loss: Tensor) -> str:
    """Which workers have a loss that is not finite: all where training diverged, one where that one is broken."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ""
    losses: list[tuple[float, str]] = [(0.0, "")] * dist.get_world_size()
    dist.all_gather_object(losses, (loss.item(), socket.gethostname()))
    sick = [f"{value} on rank {rank} ({host})" for rank, (value, host) in enumerate(losses) if not math.isfinite(value)]
    return f", the loss {', '.join(sick)} of {len(losses)}" if sick else ", although the loss is finite on every rank"


@contextmanager
def _only(parameters: list[nn.Parameter], everything: list[nn.Parameter]) -> Iterator[None]:
    """Freeze all parameters but the given ones; gradients still flow through the frozen."""
    for parameter in everything:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in everything:
            parameter.requires_grad_(True)


def _unique_parameters(player: Player) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for network in player.networks for p in network.parameters()))


def _string_keys(state: Mapping[int, State]) -> State:
    return {str(key): value for key, value in state.items()}
