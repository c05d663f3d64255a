"""What Ray Tune is told: which trial comes next, and what trials of an earlier start have reported.

Floor 9.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group

from avb_service.distributed.capacity import TRIAL_CPUS, room
from avb_service.distributed.cluster import SLOT
from avb_service.scaling import ScalingConfig
from avb_service.tuning.agenda import Agenda, Reports, Task


class AgendaSearcher(Searcher):
    """Suggests what an agenda says; Ray Tune's own state of it is never read.

    Args:
        agenda: of the stage.
        seconds: until nothing more is begun.
    """

    def __init__(self, agenda: Agenda, seconds: float | None = None) -> None:
        super().__init__()
        self._agenda, self._tasks = agenda, dict[str, Task]()
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def set_search_properties(self, *given: Any, **spec: Any) -> bool:  # noqa: ANN401  as Ray Tune has it
        """What is searched is known to the agenda alone."""
        return True

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401  its annotation knows nothing of FINISHED
        """The next trial; None where one may come later."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            return Searcher.FINISHED
        task = self._agenda.next()
        if task is None:
            return None if self._agenda.waits else Searcher.FINISHED
        self._tasks[trial_id] = task
        values, scaling = task.setting.assignments(task.trial), task.setting.configs[task.trial].scaling
        asked = {"trial": task.trial, "preset": task.setting.preset, "values": values, "again": task.again}
        return {**asked, "room": room_of_trial(scaling)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended; how, its folder says when the next is asked for."""
        if (task := self._tasks.pop(trial_id, None)) is not None:
            self._agenda.ended(task.trial)

    def get_state(self) -> dict[str, Any]:
        """Nothing that a later command would need."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing."""


def room_of_trial(scaling: ScalingConfig) -> dict[str, float]:
    """What the actor of a trial asks Ray for: it is the worker itself, or only waits for several."""
    return room(scaling) if scaling.workers == 1 else {"CPU": TRIAL_CPUS}


class Slot(PlacementGroupFactory):
    """Room for the actor of a trial, which Ray Tune keeps for the next trial of the same size.

    Args:
        asked: of the trial.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        super().__init__([asked["room"]])

    def to_placement_group(self) -> PlacementGroup:
        """Under a name, by which `reclaiming` knows that it is not abandoned where it holds nobody."""
        return placement_group(self.bundles, name=f"{SLOT}-{uuid4().hex}")


class InformedScheduler(TrialScheduler):
    """Another scheduler, that knows what trials had reported before the command was started; further seeds go on.

    Args:
        inner: decides.
        past: what trials have reported, by their names, that have ended.
        begun: the same of trials that go on.
        metric: that is reported.
    """

    def __init__(
        self, inner: TrialScheduler, past: Mapping[str, Reports], begun: Mapping[str, Reports], metric: str
    ) -> None:
        super().__init__()
        self._inner, self._past, self._begun, self._name = inner, dict(past), dict(begun), metric
        self._free: set[str] = set()

    @property
    def metric(self) -> str | None:
        """What the other looks at."""
        return self._inner.metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ANN401
        """As the other."""
        return self._inner.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, controller: Any, trial: RayTrial) -> None:  # noqa: ANN401  Ray Tune's controller
        """Before the first, those that have ended; before one that goes on, what it has reported."""
        for name in list(self._past):
            stub: Any = _Past(name)
            self._inner.on_trial_add(controller, stub)
            last = self._replay(controller, stub, self._past.pop(name))
            self._inner.on_trial_complete(controller, stub, last)
        if trial.config["again"]:
            self._free.add(trial.trial_id)
            return
        self._inner.on_trial_add(controller, trial)
        self._replay(controller, trial, self._begun.get(trial.config["trial"], ()))

    def on_trial_result(self, controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:  # noqa: ANN401
        """What the other decides."""
        if trial.trial_id in self._free:
            return TrialScheduler.CONTINUE
        return self._inner.on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: RayTrial, result: dict[str, Any]) -> None:  # noqa: ANN401
        """A trial has ended."""
        if trial.trial_id not in self._free:
            self._inner.on_trial_complete(controller, trial, result)

    def on_trial_error(self, controller: Any, trial: RayTrial) -> None:  # noqa: ANN401
        """A trial has failed."""
        if trial.trial_id not in self._free:
            self._inner.on_trial_error(controller, trial)

    def on_trial_remove(self, controller: Any, trial: RayTrial) -> None:  # noqa: ANN401
        """A trial was taken away."""
        if trial.trial_id not in self._free:
            self._inner.on_trial_remove(controller, trial)

    def choose_trial_to_run(self, controller: Any) -> RayTrial | None:  # noqa: ANN401
        """As the other."""
        return self._inner.choose_trial_to_run(controller)

    def debug_string(self) -> str:
        """As the other."""
        return self._inner.debug_string()

    def _replay(self, controller: Any, trial: Any, reports: Reports) -> dict[str, Any]:  # noqa: ANN401
        result: dict[str, Any] = {}
        for i, (round_, objective) in enumerate(reports, 1):
            result = {"round": int(round_), self._name: objective, "training_iteration": i}
            self._inner.on_trial_result(controller, trial, result)
        return result


class _Past:
    """A trial of which there is nothing but a name."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config, self.status = name, dict[str, Any](), RayTrial.TERMINATED

    def __str__(self) -> str:
        return self.trial_id


class Clock(Callback):
    """Has the time counted at every report.

    Args:
        note: counts it.
    """

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def on_trial_result(self, *args: Any, **info: Any) -> None:  # noqa: ANN401  as Ray Tune has it
        """A report."""
        self._note()
