"""The round loop: one engine plays every game, on one device or on many.

Floor 4. It knows of no device and of no network between workers: a turn is a function of a batch (`turn.py`), and
`averaging` gives the mean over the workers, which is all that is data-parallel.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avb_service.algorithm import Algorithm, Batch, Loss, Player, Shared
from avb_service.errors import DivergenceError, UserError
from avb_service.seeding import derive_seed, reseed
from avb_service.training.agreement import check_agreement, gathered, in_order, origin, together
from avb_service.training.capture import PREPARE
from avb_service.training.config import TrainingConfig
from avb_service.training.flat import Slots, State, flatten, owned
from avb_service.training.manner import AUTO, Manner, fastest
from avb_service.training.precision import in_precision
from avb_service.training.terms import Terms
from avb_service.training.turn import Average, Play, Turn

_log = logging.getLogger(__name__)

TRIED = 5  # rounds, of which the fastest counts, where it is tried how to play
HEED_EVERY = 10  # rounds between two moments at which the caller may interfere without a report

Source = Callable[[int, int], tuple[Tensor, Tensor | None]]  # (index of the global batch, logical worker) -> x, labels


@dataclass(frozen=True)
class Report:
    """What the engine tells its caller.

    Attributes:
        round: rounds played.
        terms: means over the rounds since the last report and over all workers, `train/<player>/<term>`.
    """

    round: int
    terms: Mapping[str, float]


class Engine:
    """Plays an algorithm's game.

    Args:
        algorithm: on its device and in its precision; its parameters become views of one tensor.
        source: the training data.
        config: rounds, seed, logical workers.
        other: the second source, for a method that has two.
        averaging: makes the mean over workers, for tensors as large as a given one; none in one process.
        rank: this worker.
        workers: number of physical workers, no more than the logical ones; fastest where it divides them.

    Raises:
        UserError: more workers than logical ones, or a capture or precision that the device lacks something for.
        TypeError: a parameter that no player owns.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        source: Source,
        config: TrainingConfig,
        *,
        other: Source | None = None,
        averaging: Callable[[Tensor], Average] | None = None,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self.algorithm, self.source, self.other, self.config = algorithm, source, other, config
        self.manner = Manner(config.capture, config.precision)

        def precision() -> str:
            return self.manner.precision

        self.players = [replace(p, objective=in_precision(precision, p.objective)) for p in algorithm.players()]
        self._shared = in_precision(precision, algorithm.shared)
        self._check_ownership()
        if config.logical_workers < workers:
            raise UserError(
                f"{workers} workers cannot share training.logical_workers {config.logical_workers}: some would have no "
                "slice of the batch; start fewer, or raise training.logical_workers"
            )
        self.shares = _shares(config.logical_workers, workers)
        self.mine = self.shares[rank]
        device = next(algorithm.parameters()).device
        with together(device):
            self._check_manner(device)
        whole, losses = flatten(self.players), algorithm.simultaneous()
        at_once = in_precision(precision, losses) if losses else None
        average = averaging(whole) if averaging else None
        self.turns = self._turns(at_once, average, weight=workers / config.logical_workers)
        averaged = partial(AveragedModel, algorithm, multi_avg_fn=get_ema_multi_avg_fn(config.ema or 0.0))
        self.average = None if config.ema is None else averaged()
        self.round = 0
        self._now = whole.new_zeros(())  # the round, on the device
        self._broken = torch.zeros((), device=device)  # 1 once a gradient was not finite
        self._terms = Terms(self.turns)

    def _turns(
        self, at_once: Callable[[Batch], tuple[Loss, ...]] | None, average: Average | None, weight: float
    ) -> list[Turn]:
        """A turn of each player, or one of all of them, where their losses are had at once."""
        names = {parameter: name for name, parameter in self.algorithm.named_parameters()}
        turn = partial(Turn, names=names, weight=weight, average=average, prepare=self._prepare)
        if at_once is not None:
            return [turn(self.players, at_once)]
        return [turn((player,), partial(_losses, player)) for player in self.players]

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
            DivergenceError: a gradient was not finite; neither that step nor any after it was taken.
        """
        check_agreement(self.algorithm, self.round)
        self.choose()
        while self.round < self.config.rounds:
            self.play_round()
            reporting = self.round % self.config.report_every == 0 or self.round == self.config.rounds
            if reporting or self.round % HEED_EVERY == 0:
                self._check_finite()
            if reporting:
                check_agreement(self.algorithm, self.round)
                report(Report(self.round, self._terms.means()))
            elif self.round % HEED_EVERY == 0:
                between()

    def choose(self) -> None:
        """Try how to play on this machine, where the settings leave that open and the run has not begun."""
        if AUTO in self.manner:
            left = self.config.rounds - self.round
            self._settle(fastest(self.manner, self._now.device, left, self.seconds_a_round))
            _log.info("training.capture: %s, training.precision: %s, found to be the fastest here", *self.manner)

    def play_round(self) -> None:
        """Every player's turn, each step on a fresh batch."""
        self._now.fill_(self.round)
        index = self.round * sum(turn.steps for turn in self.turns)
        shared = self._draw_shared(index)
        for turn in self.turns:
            for _ in range(turn.steps):
                self._step(turn, index, shared)
                index += 1
        self.round += 1
        if self.average is not None:
            self.average.update_parameters(self.algorithm)

    def seconds_a_round(self, manner: Manner) -> float:
        """What a round's gradients take, played in that manner on the slowest worker; no step is taken."""
        self._settle(manner)
        taken = []
        for _ in range(1 + TRIED):
            start = time.perf_counter()
            shared = self._draw_shared(0)
            for turn in self.turns:
                for _ in range(turn.steps):
                    gradient = turn.gradient(self._slices(0, shared)).gradient
            gradient[-1].sum().item()  # all that was queued on a GPU has been done then
            taken.append(time.perf_counter() - start)
        least = torch.tensor(min(taken[1:]), dtype=torch.float64, device=self._now.device)
        return max(each.item() for each in gathered(least))

    def state(self) -> State:
        """All that a resumed run needs: nested dicts of tensors and numbers; between reports, call `pool` before."""
        state: State = {
            "round": self.round,
            "algorithm": self.algorithm.state_dict(),
            "optimizers": {player.name: slots.state() for player, slots in self._slots()},
            "terms": dict(self._terms.pooled),
            "manner": self.manner._asdict(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load(self, state: State) -> None:
        """Continue from a state; schedules and options come from the configuration.

        Raises:
            UserError: this device lacks what the run was begun with.
        """
        self.round = state["round"]
        if "manner" in state:
            self._settle(Manner(**state["manner"]))
            self._check_manner(self._now.device)
        self._broken.zero_()
        self._terms.load(state.get("terms", {}))
        self.algorithm.load_state_dict(state["algorithm"])
        for player, slots in self._slots():
            slots.load(state["optimizers"][player.name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def pool(self) -> None:
        """Make the terms since the last report those of all workers, for `state`, which one of them calls."""
        self._terms.pool()

    def _draw_shared(self, index: int) -> Shared:
        reseed(self._now.device, derive_seed(self.config.seed, "shared", index))
        with torch.no_grad():
            return self._shared()

    def _settle(self, manner: Manner) -> None:
        """Play in that manner from now on."""
        if manner != self.manner:
            self.manner = manner
            for turn in self.turns:
                turn.play = None

    def _prepare(self, turn: Turn, batch: Batch) -> Play:
        return PREPARE[self.manner.capture](self.algorithm, turn, batch)

    def _check_manner(self, device: torch.device) -> None:
        if obstacles := [*self.manner.obstacles(device)]:
            raise UserError("; ".join(obstacles))

    def _step(self, turn: Turn, index: int, shared: Shared) -> None:
        """One step, on the batch of that index."""
        rates = [p.turn.lr * p.turn.schedule.factor(self.round, self.config.rounds) for p in turn.players]
        norms, report, statistics = turn(self._slices(index, shared), rates, self._broken)
        self._terms.add(self.round, turn, norms, report)
        updates = [player.update_statistics for player in turn.players if player.update_statistics is not None]
        if self._now.device.type == "cpu" or updates:
            self._check_finite()  # where asking costs nothing, at once; and before anything is counted
        with torch.no_grad():
            for update in updates:
                update(self._of_all(statistics))

    def _slices(self, index: int, shared: Shared) -> Iterator[tuple[int, Batch]]:
        for worker in self.mine:
            x, labels = self.source(index, worker)
            other = None if self.other is None else self.other(index, worker)[0]
            yield derive_seed(self.config.seed, "noise", index, worker), Batch(x, labels, self._now, shared, other)

    def _of_all(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The statistics of the slices of all workers, [V, ...] each, in the order of the logical workers."""
        if len(self.mine) == self.config.logical_workers:
            return statistics
        return {name: in_order(mine, self.shares) for name, mine in statistics.items()}

    def _check_finite(self) -> None:
        """Refuse to go on where a step would have destroyed the model.

        Gradients are means over all workers, so all of them see the same norm and decide alike.
        """
        if not self._broken:
            return
        round_, player, norm, loss = self._terms.first_broken()
        told = f"round {round_}: the gradient of player '{player.name}' is {norm}{origin(loss)}; the step was not taken"
        raise DivergenceError(told, player.name, round_)

    def _slots(self) -> Iterator[tuple[Player, Slots]]:
        for turn in self.turns:
            yield from zip(turn.players, turn.slots, strict=True)

    def _check_ownership(self) -> None:
        known = {parameter for player in self.players for parameter in owned(player)}
        if stray := [name for name, parameter in self.algorithm.named_parameters() if parameter not in known]:
            raise TypeError(f"{type(self.algorithm).__name__}: no player owns {', '.join(stray)}")


def weights_to_evaluate(state: State) -> dict[str, Tensor]:
    """Of an engine's state, what `Engine.model` has: the averaged weights where averaging is on."""
    average = state.get("average")
    if average is None:
        return state["algorithm"]
    prefix = "module."
    return {name.removeprefix(prefix): weights for name, weights in average.items() if name.startswith(prefix)}


def _shares(logical: int, workers: int) -> list[range]:
    """Which logical workers each of the physical ones plays."""
    return [range(r * logical // workers, (r + 1) * logical // workers) for r in range(workers)]


def _losses(player: Player, batch: Batch) -> tuple[Loss]:
    """Of a player that has the turn by itself."""
    return (player.objective(batch),)
