"""One player's turn: play this worker's slices of a batch, average over the workers, step.

Floor 4. A slice is played by a function of tensors: nothing in it asks the device for a number, and nothing that
changes from round to round is a Python number. That is what `capture.py` relies on when it records the function.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avb_service.algorithm import Batch, Player
from avb_service.seeding import reseed
from avb_service.training.flat import Slots, joined

Average = Callable[[Tensor], None]  # replaces a tensor by its mean over all workers, in place


class Played(NamedTuple):
    """What playing a slice gives, or all slices of a worker.

    Attributes:
        gradient: of the slice's share of the loss, [P] as `Slots` lays it out; of all, their sum.
        report: the loss and the terms, [1 + T]; of all, this worker's share of their mean.
        statistics: what the player's `absorb` learns from, by name; of all, stacked.
    """

    gradient: Tensor
    report: Tensor
    statistics: dict[str, Tensor]


Play = Callable[[Batch], Played]


class Taken(NamedTuple):
    """What a step was of.

    Attributes:
        norm: of the gradient, over all workers.
        report: the loss and the terms of this worker's slices, [1 + T].
        statistics: of its slices, [V, ...] each.
    """

    norm: Tensor
    report: Tensor
    statistics: dict[str, Tensor]


class Turn:
    """A player's turn, as often as it is called.

    Args:
        player: whose parameters have been flattened.
        names: all parameters of the game and what they are called; all but the player's own are frozen.
        weight: of a slice, so that the mean over workers of their sums is the mean over all slices.
        average: over the workers.
        prepare: makes, of this turn and the first slice, what plays all slices: its own `eager`, or a record of that.
    """

    def __init__(
        self,
        player: Player,
        names: Mapping[nn.Parameter, str],
        weight: float,
        average: Average,
        prepare: "Callable[[Turn, Batch], Play]",
    ) -> None:
        self.player, self.slots, self._prepare = player, Slots(player), prepare
        self.play: Play | None = None  # until the first slice is there
        self.terms: tuple[str, ...] = ()  # names, known once a slice was played
        self._names, self._weight, self._average = names, weight, average

    def __call__(self, slices: Iterable[tuple[int, Batch]], rate: float, broken: Tensor) -> Taken:
        """Take one step, unless something is broken already or this step's gradient is not finite.

        Args:
            slices: of the batch, each with the seed of its noise.
            rate: the learning rate.
            broken: 0, or 1 once a gradient was not finite, which this call may find; float32, on the device.
        """
        gradient, report, statistics = self.gradient(slices)
        self._average(gradient)
        norm = torch.linalg.vector_norm(gradient)
        torch.maximum(broken, (~norm.isfinite()).to(broken), out=broken)
        if self.player.turn.clip_norm is not None:
            gradient.mul_((self.player.turn.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._step(gradient, rate, broken)
        return Taken(norm, report, statistics)

    def gradient(self, slices: Iterable[tuple[int, Batch]]) -> Played:
        """Play all slices of this worker: the sum of their gradients and reports, and their statistics [V, ...]."""
        gradient, report, statistics = torch.zeros(()), torch.zeros(()), list[dict[str, Tensor]]()
        for seed, batch in slices:
            if self.play is None:
                self.play = self._prepare(self, batch)
            reseed(batch.x.device, seed)
            played = self.play(batch)
            gradient = gradient + played.gradient if statistics else played.gradient
            report = report + played.report if statistics else played.report
            statistics.append(played.statistics)
        stacked = {name: torch.stack([each[name] for each in statistics]) for name in statistics[0]}
        return Played(gradient, report * self._weight, stacked)

    def eager(self, batch: Batch) -> Played:
        """Play a slice as the method has written it.

        Raises:
            TypeError: the player owns parameters that its objective does not use.
        """
        own = self.slots.parameters
        with _only(own, self._names):
            loss = self.player.objective(batch)
            gradients = torch.autograd.grad(loss.value * self._weight, own, allow_unused=True)
        if idle := [self._names[p] for p, gradient in zip(own, gradients, strict=True) if gradient is None]:
            raise TypeError(f"player '{self.player.name}' owns {', '.join(idle)}, but its objective does not use them")
        self.terms = tuple(loss.terms)
        report = torch.stack([loss.value.detach(), *loss.terms.values()])
        return Played(joined(gradients), report, dict(loss.statistics))

    def _step(self, gradient: Tensor, rate: float, broken: Tensor) -> None:
        optimizer: Any = self.slots.optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate
        if hasattr(optimizer, "_step_supports_amp_scaling"):
            optimizer.found_inf = broken  # asked on the device, as for torch's GradScaler
        elif broken:
            return
        self.slots.step(gradient)


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
