"""What steps have reported since the last report to the caller.

Floor 4.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avb_service.algorithm import Player
from avb_service.training.agreement import gathered
from avb_service.training.rows import Rows
from avb_service.training.turn import Turn


class Terms:
    """Norms, losses and terms: of this worker since they were pooled, and before that of all workers.

    Args:
        turns: of the game.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._rows = {turn: Rows() for turn in turns}  # norms and the report, of each step
        self._steps: list[tuple[int, Turn]] = []  # the round and whose turn, of each step
        self.pooled: dict[str, Tensor] = {}

    def add(self, round_: int, turn: Turn, norms: Sequence[Tensor], report: Tensor) -> None:
        """Keep what a step has reported."""
        self._steps.append((round_, turn))
        self._rows[turn].append(*norms, report)

    def pool(self) -> None:
        """Make those of this worker those of all; every worker calls it.

        Means are the same to the bit, whenever in between this is called.
        """
        for turn in dict.fromkeys(turn for _, turn in self._steps):
            # By rank, and not summed on the way: where in a ring a number lies decides in which order that is done.
            mean = torch.stack(gathered(self._rows[turn].all().double())).mean(0)
            for (player, term), values in zip(turn.terms, mean.T[len(turn.players) :], strict=True):
                if term:
                    key = f"train/{player.name}/{term}"
                    self.pooled[key] = torch.cat([self.pooled.get(key, values[:0]), values])
        self._forget()

    def means(self) -> dict[str, float]:
        """The mean of every term over all workers and all steps since the last call, `train/<player>/<term>`."""
        self.pool()
        if not self.pooled:
            return {}
        means = torch.stack([values.mean() for values in self.pooled.values()])
        terms = dict(zip(self.pooled, means.tolist(), strict=True))
        self.pooled.clear()
        return terms

    def first_broken(self) -> tuple[int, Player, float, float]:
        """The first step whose gradient was not finite: its round, the player, the gradient's norm and the loss."""
        rows = {turn: iter(kept.all().tolist()) for turn, kept in self._rows.items()}
        steps = [(round_, turn, next(rows[turn])) for round_, turn in self._steps]
        return next(
            (round_, player, norm, row[len(turn.players) + turn.terms.index((player, ""))])
            for round_, turn, row in steps
            for player, norm in zip(turn.players, row, strict=False)
            if not math.isfinite(norm)
        )

    def load(self, state: dict[str, Any]) -> None:
        """Forget all, and begin with what was pooled."""
        self._forget()
        device = next(iter(self._rows)).slots[0].parameters[0].device
        self.pooled = {name: values.to(device, torch.float64) for name, values in state.items()}

    def _forget(self) -> None:
        self._steps.clear()
        for rows in self._rows.values():
            rows.clear()
