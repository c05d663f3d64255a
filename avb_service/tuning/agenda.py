"""Which trial is trained next: what had begun before others, further seeds of what was not stopped, then new settings.

Floor 9. Knows nothing of Ray. It asks the folders of trials how they have ended, so that one who is killed at any
moment and begins again does what was left.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from avb_service.runs import JOB, Outcome
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.study import Setting, resolve
from avb_service.tuning.trials import BASELINE, Trial

ENDED = ("finished", "diverged", "stopped")  # any other goes on when the search does


Reports = Sequence[Sequence[float]]  # round and objective


class Source(Protocol):
    """Where settings come from; see `study.Study`.

    Attributes:
        kind: of its trials, `trial` or `baseline`.
        names: folders of the first trials of what was asked for.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102

    def begun(self) -> Iterator[Setting]:
        """What was asked for and not told."""

    def ask(self) -> Setting | None:
        """The next; None where there is none."""

    def tell(self, setting: Setting, objective: float | None) -> None:
        """What it has reached."""


class Listed:
    """Settings that nobody has to draw: the baselines.

    Args:
        space: what is searched.
        presets: one for each.
        values: dotted path to value, the same for all.
    """

    kind = BASELINE
    names: Sequence[str] = ()  # that a scheduler would have to know of

    def __init__(self, space: SpaceConfig, presets: Sequence[str], values: Mapping[str, Any]) -> None:
        self._settings = [resolve(space, self.kind, preset, values) for preset in presets]

    def begun(self) -> Iterator[Setting]:
        """Those that have begun, and those that have not."""
        return iter(self._settings)

    def ask(self) -> Setting | None:
        """There are no others."""
        return None

    def tell(self, setting: Setting, objective: float | None) -> None:
        """Nobody learns from it."""


class Task(NamedTuple):
    """A trial to be trained.

    Attributes:
        trial: the name of its folder.
        setting: what it trains.
        again: whether the setting was trained with another seed before.
    """

    trial: str
    setting: Setting
    again: bool


class Agenda:
    """What is left to train of a stage.

    Args:
        source: of settings.
        trials: the folder in which each trial has its own.
    """

    def __init__(self, source: Source, trials: Path) -> None:
        self._source, self._trials = source, trials
        self._open = list(source.begun())
        self._given: set[str] = set()
        self._live: set[str] = set()

    def next(self) -> Task | None:
        """The next trial; None where there is none now."""
        self.settle()
        for setting in self._open:
            if (task := self._task(setting)) is not None:
                return self._give(task)
        while (found := self._source.ask()) is not None:
            self._open.append(found)
            if (task := self._task(found)) is not None:
                return self._give(task)
            self.settle()
        return None

    def curves(self) -> tuple[dict[str, Reports], dict[str, Reports]]:
        """What first trials have reported, by name: of those that have ended, and of those that go on."""
        ended: dict[str, Reports] = {}
        goes_on: dict[str, Reports] = {}
        for name in self._source.names:
            if (self._trials / name / JOB).exists():
                (goes_on if self._outcome(name) is None else ended)[name] = Trial.read(self._trials / name).curve
        return ended, goes_on

    def ended(self, trial: str) -> None:
        """A trial is not trained any more, for whatever reason."""
        self._live.discard(trial)

    @property
    def waits(self) -> bool:
        """Whether there may be another trial after one of those in training has ended."""
        return any(len(setting.configs) > 1 and self._live & setting.configs.keys() for setting in self._open)

    def settle(self) -> None:
        """Tell the source of settings that are done: trained with every seed, or not to be trained with another."""
        for setting in list(self._open):
            outcomes = [self._outcome(trial) for trial in setting.configs]
            if all(outcomes) or outcomes[0] in ("diverged", "stopped"):
                self._open.remove(setting)
                self._source.tell(setting, self._reached(setting))

    def _task(self, setting: Setting) -> Task | None:
        """The first seed that has not ended; a further one only where the first has finished."""
        first, *_ = setting.configs
        for trial in setting.configs:
            if self._outcome(trial) is None and trial not in self._given:
                if trial == first or self._outcome(first) == "finished":
                    return Task(trial, setting, trial != first)
        return None

    def _give(self, task: Task) -> Task:
        self._given.add(task.trial)
        self._live.add(task.trial)
        return task

    def _outcome(self, trial: str) -> str | None:
        found = Outcome.read(self._trials / trial)
        return found.status if found is not None and found.status in ENDED else None

    def _reached(self, setting: Setting) -> float | None:
        """The mean over seeds of the best that each has reached."""
        begun = [self._trials / trial for trial in setting.configs if (self._trials / trial / JOB).exists()]
        reached = [each for folder in begun if (each := Trial.read(folder).objective) is not None]
        return float(np.mean(reached)) if reached else None
