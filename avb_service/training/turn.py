"""A turn, of one player or of several at once: play this worker's slices of a batch, average over the workers, step.

Floor 4. A slice is played by a function of tensors: nothing in it asks the device for a number, and nothing that
changes from round to round is a Python number. That is what `capture.py` relies on when it records the function.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import grad

from avb_service.algorithm import Batch, Loss, Player
from avb_service.seeding import reseed
from avb_service.training.flat import Slots

Average = Callable[[Tensor], None]  # replaces a tensor by its mean over all workers, in place


class Played(NamedTuple):
    """What playing a slice gives, or all slices of a worker.

    Attributes:
        gradient: of the slice's share of the loss, vectors as `Slots.gathered` gives them, player after player; of all,
            their sum. Two may be one and the same tensor, so nothing is written to them.
        report: of each player the loss and its terms, [R]; of all, this worker's share of their mean.
        statistics: what a player's `update_statistics` learns from, by name; of all, stacked.
    """

    gradient: list[Tensor]
    report: Tensor
    statistics: dict[str, Tensor]


Play = Callable[[Batch], Played]


class Taken(NamedTuple):
    """What a step was of.

    Attributes:
        norms: of each player's gradient, over all workers.
        report: of each player the loss and its terms, of this worker's slices, [R].
        statistics: of its slices, [V, ...] each.
    """

    norms: list[Tensor]
    report: Tensor
    statistics: dict[str, Tensor]


class Turn:
    """A turn, as often as it is called.

    Args:
        players: whose parameters have been flattened; most often one.
        objective: the loss of each on a batch.
        names: all parameters of the game and what they are called; all but the players' own are frozen.
        weight: of a slice, so that the mean over workers of their sums is the mean over all slices.
        average: over the workers; none where there is one.
        prepare: makes, of this turn and the first slice, what plays all slices: its own `eager`, or a record of that.
    """

    def __init__(
        self,
        players: Sequence[Player],
        objective: Callable[[Batch], Sequence[Loss]],
        names: Mapping[nn.Parameter, str],
        weight: float,
        average: Average | None,
        prepare: "Callable[[Turn, Batch], Play]",
    ) -> None:
        self.players, self.slots = players, [Slots(player) for player in players]
        self.play: Play | None = None  # until the first slice is there
        self.terms: tuple[tuple[Player, str], ...] = ()  # of a report, known once a slice was played
        self._objective, self._names, self._prepare = objective, names, prepare
        self._weight, self._average = weight, average

    @property
    def steps(self) -> int:
        """How many of them in a round."""
        return self.players[0].turn.steps

    def __call__(self, slices: Iterable[tuple[int, Batch]], rates: Sequence[float], broken: Tensor) -> Taken:
        """Take one step, unless something is broken already or this step's gradient is not finite.

        Args:
            slices: of the batch, each with the seed of its noise.
            rates: the learning rate of each player.
            broken: 0, or 1 once a gradient was not finite, which this call may find; float32, on the device.
        """
        gradient, report, statistics = self.gradient(slices)
        if self._average is not None:
            sizes, whole = list(map(len, gradient)), torch.cat(gradient)
            self._average(whole)
            gradient = list(whole.split(sizes))
        parts = [[gradient.pop(0) for _ in range(slots.pieces)] for slots in self.slots]
        norms = [_norm(part) for part in parts]
        for norm in norms:
            torch.maximum(broken, (~norm.isfinite()).to(broken), out=broken)
        for player, slots, part, norm, rate in zip(self.players, self.slots, parts, norms, rates, strict=True):
            if player.turn.clip_norm is not None:
                factor = (player.turn.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                part = [piece * factor for piece in part]
            _step(slots, part, rate, broken)
        return Taken(norms, report, statistics)

    def gradient(self, slices: Iterable[tuple[int, Batch]]) -> Played:
        """Play all slices of this worker: the sum of their gradients and reports, and their statistics [V, ...]."""
        gradient, report, statistics = list[Tensor](), torch.zeros(()), list[dict[str, Tensor]]()
        for seed, batch in slices:
            if self.play is None:
                self.play = self._prepare(self, batch)
            reseed(batch.x.device, seed)
            played = self.play(batch)
            gradient = (
                [a + b for a, b in zip(gradient, played.gradient, strict=True)] if statistics else played.gradient
            )
            report = report + played.report if statistics else played.report
            statistics.append(played.statistics)
        stacked = {name: torch.stack([each[name] for each in statistics]) for name in statistics[0]}
        return Played(gradient, report * self._weight, stacked)

    def eager(self, batch: Batch) -> Played:
        """Play a slice as the method has written it.

        Raises:
            TypeError: the player owns parameters that its objective does not use.
        """
        owned = [slots.parameters for slots in self.slots]
        with _only(chain(*owned), self._names):
            losses = self._objective(batch)
            gradients = [
                grad(loss.value * self._weight, own, allow_unused=True, retain_graph=loss is not losses[-1])
                for loss, own in zip(losses, owned, strict=True)
            ]
        for player, own, parts in zip(self.players, owned, gradients, strict=True):
            if idle := [self._names[p] for p, gradient in zip(own, parts, strict=True) if gradient is None]:
                raise TypeError(f"player '{player.name}' owns {', '.join(idle)}, but its objective does not use them")
        self.terms = tuple(
            (player, term) for player, loss in zip(self.players, losses, strict=True) for term in ("", *loss.terms)
        )
        report = torch.stack([each for loss in losses for each in (loss.value.detach(), *loss.terms.values())])
        statistics = {name: each for loss in losses for name, each in loss.statistics.items()}
        pieces = [slots.gathered(each) for slots, each in zip(self.slots, gradients, strict=True)]
        return Played([*chain(*pieces)], report, statistics)


def _norm(gradient: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(piece) for piece in gradient]
    return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]


def _step(slots: Slots, gradient: Sequence[Tensor], rate: float, broken: Tensor) -> None:
    optimizer: Any = slots.optimizer
    for group in optimizer.param_groups:
        group["lr"] = rate
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer.found_inf = broken  # asked on the device, as for torch's GradScaler
    elif broken:
        return
    slots.step(gradient)


@contextmanager
def _only(parameters: Iterable[nn.Parameter], everything: Iterable[nn.Parameter]) -> Iterator[None]:
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
