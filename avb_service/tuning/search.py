"""Driving a search: trials on Ray Tune, one after the other in the same processes, or each on Ray Train workers.

Floor 9.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from avb_service.build import check_fit
from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.data.scale import caution
from avb_service.distributed.capacity import Capacity
from avb_service.distributed.interrupts import interruptible
from avb_service.distributed.reclaim import reclaiming
from avb_service.distributed.train import train
from avb_service.distributed.work import Worker, train_here
from avb_service.lock import Owned
from avb_service.runs import Job, Outcome
from avb_service.scaling import ScalingConfig
from avb_service.settings import ExperimentConfig
from avb_service.tracking import close_open_children
from avb_service.trees import overridden
from avb_service.tuning.agenda import Agenda, Listed, Source
from avb_service.tuning.budget import Budget
from avb_service.tuning.earlier import Earlier
from avb_service.tuning.record import Search
from avb_service.tuning.schedulers import NoScheduler, Scheduler
from avb_service.tuning.section import LATENT
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.study import Study
from avb_service.tuning.trials import STOPPED

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

LATE = Outcome("stopped", "at the end of the budget")


@dataclass(frozen=True)
class Stage:
    """Trials that compete with each other.

    Attributes:
        presets: where they start from.
        source: says what is tried.
        most: trials that there can be.
        scheduler: early stopping; none of baselines.
        seconds: until it has to end; None: when it is done.
    """

    presets: tuple[str, ...]
    source: Source
    most: int
    scheduler: Scheduler
    seconds: float | None

    @property
    def name(self) -> str:
        """Of the folder for Ray Tune's own files."""
        return "-".join((self.source.kind, *(preset.replace("/", "~") for preset in self.presets)))


def preflight(space: SpaceConfig, on_data: Callable[[str], None] = lambda description: None) -> None:
    """Load all data once, where the user sees what they are and what is wrong with them.

    Args:
        space: the search.
        on_data: told what was read, and of numbers from which a network can hardly start.

    Raises:
        UserError: they are missing or damaged, or do not fit a model.
    """
    loaded: dict[DataConfig, Dataset] = {}
    drawn = (config for preset in space.presets for config in space.extremes(preset, "algorithm"))
    for config in chain(space.bases(), drawn):
        if config.data not in loaded:
            loaded[config.data] = load(config.data)
            for line in (loaded[config.data].description, *caution(loaded[config.data])):
                on_data(line)
        check_fit(config, loaded[config.data])


def check_capacity(space: SpaceConfig, capacity: Capacity) -> None:
    """Make sure that the cluster can hold the largest trial.

    Raises:
        UserError: it cannot; Ray would wait for ever.
    """
    for preset in (*space.presets, *space.baselines):
        models_at_a_time(space, preset, capacity)


def models_at_a_time(space: SpaceConfig, preset: str, capacity: Capacity) -> int:
    """How many trials of a preset fit on the cluster at a time, however large they are drawn."""
    return min(map(capacity.models_at_a_time, _sizes(space, preset)))


def _sizes(space: SpaceConfig, preset: str) -> list[ScalingConfig]:
    """How large trials of a preset can be drawn."""
    sections = space.extremes(preset, "scaling") if preset in space.presets else [space.trial(preset)]
    return [config.scaling for config in sections]


def run_search(
    search: Search,
    capacity: Capacity,
    callback: "Callback",
    on_step: Callable[[str], None],
    earlier: Mapping[str, Sequence[Earlier]] = MappingProxyType({}),
) -> None:
    """Run the trials that are left, then the baselines with the best trial's latent size.

    Args:
        search: from `open_search`.
        capacity: of the cluster.
        callback: told of every report.
        on_step: told what is waited for.
        earlier: trials of another search to learn from, by preset.

    Raises:
        UserError: a trial is larger than the cluster, no trial reached an estimate, or MLflow is away for good.
    """
    budget = Budget(search.space, search.folder)
    for stage in _stages(search, budget, earlier):
        agenda = Agenda(stage.source, search.trial_folder)
        if stage.seconds != 0:
            with budget.counted():
                _run(_tuner(search, stage, agenda, capacity, callback, budget))
        agenda.settle()
    if search.space.budget is not None:
        _end_late(search)
    for trial in search.trials():
        trial.job.deliver(on_step)
    search.check_owned()
    close_open_children(search.run.run_id, "FINISHED", str(STOPPED), search.tracking_uri)  # a killed command left them
    search.tell()


def run_trial(
    asked: dict[str, Any],
    *,
    kind: str,
    trees: Mapping[str, Any],
    folder: str,
    parent: str,
    uri: str,
    owned: Owned | None,
) -> None:
    """What Ray Tune runs for each trial: it trains here, or waits for the several workers that it starts."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback
    from torch import device

    from avb_service.distributed.preemption import Preemption, leaving

    tree, trial = overridden(trees[asked["preset"]], asked["values"]), asked["trial"]
    job = Job(
        config=ExperimentConfig.parse(tree),
        folder=Path(folder) / "trials" / trial,
        name=f"{tree['algorithm']['name']}-{trial}",
        key=f"{Path(folder).name}/{trial}",
        parent=parent,
        tracking_uri=uri,
        tags={"avb.kind": kind},
        owned=owned,
    )
    if job.config.scaling.workers > 1:
        train(job, [TuneReportCallback()])
    else:
        here = device("cuda" if job.config.scaling.gpus_per_worker else "cpu")
        train_here(job, Worker(here), tune.report, Preemption(here, leaving))


def _stages(search: Search, budget: Budget, earlier: Mapping[str, Sequence[Earlier]]) -> Iterator[Stage]:
    """The trials of each preset, one after the other, then the baselines, for which the best trial must be known."""
    space = search.space
    for preset in space.presets:
        # Methods learn at different speeds, and halving them together would keep the hasty one.
        study = Study(space, preset, search.folder, earlier.get(preset, ()))
        yield Stage((preset,), study, space.samples * space.seeds, space.scheduler, budget.share())
    if space.baselines:
        size = getattr(search.best().config.algorithm, "latent_dim", None)
        listed = Listed(space, space.baselines, {LATENT: size} if size else {})
        yield Stage(space.baselines, listed, len(space.baselines) * space.seeds, NoScheduler(), budget.share())


def _end_late(search: Search) -> None:
    """Say of trials that were in training when the time was over that they have ended."""
    for trial in search.trials():
        if trial.outcome is None:
            with suppress(OSError):  # it is for people to read
                trial.job.end(LATE)
            trial.job.close("FINISHED", str(LATE))


def _tuner(
    search: Search, stage: Stage, agenda: Agenda, capacity: Capacity, callback: "Callback", budget: Budget
) -> "Tuner":
    """What is left of the stage, on Ray Tune; what that has kept of it before is not read."""
    from ray import tune

    from avb_service.tuning.asking import AgendaSearcher, Clock, InformedScheduler
    from avb_service.tuning.ending import EndingCallback

    space, path = search.space, search.folder / "tune" / stage.name
    shutil.rmtree(path, ignore_errors=True)
    configs = {preset: space.trial(preset) for preset in stage.presets}
    at_a_time = min(models_at_a_time(space, preset, capacity) for preset in stage.presets)
    race = space.race(stage.presets[0])
    inner = stage.scheduler.scheduler(race)
    return tune.Tuner(
        _trainable(search, stage, configs),
        tune_config=tune.TuneConfig(
            num_samples=stage.most,
            search_alg=AgendaSearcher(agenda, stage.seconds),
            scheduler=InformedScheduler(inner, *agenda.curves(), race.metric),
            trial_dirname_creator=lambda trial: trial.config["trial"],
            max_concurrent_trials=min(at_a_time, space.concurrent or at_a_time),
            time_budget_s=stage.seconds,
            # An actor that waits for workers cannot be called off, and Ray Tune gives up the trial that was to have it.
            reuse_actors=all(size.workers == 1 for preset in stage.presets for size in _sizes(space, preset)),
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(path.parent),
            verbose=0,
            callbacks=[callback, Clock(budget.note), EndingCallback(search.trial_folder, search.owned)],
            failure_config=tune.FailureConfig(
                max_failures=max(config.scaling.max_failures for config in configs.values())
            ),
        ),
    )


def _trainable(search: Search, stage: Stage, configs: Mapping[str, ExperimentConfig]) -> Callable[..., Any]:
    """What Ray Tune runs for each trial of the stage, in an actor that goes on with another trial when it is done."""
    from ray import tune

    from avb_service.distributed.preemption import Heeding
    from avb_service.tuning.asking import Slot

    given: Any = tune.with_parameters(
        run_trial,
        kind=stage.source.kind,
        trees={preset: config.tree() for preset, config in configs.items()},
        folder=str(search.folder),
        parent=search.run.run_id,
        uri=search.tracking_uri,
        owned=search.owned,
    )
    given.__mixins__ = (Heeding,)
    return tune.with_resources(given, Slot)


def _run(tuner: "Tuner") -> None:
    """Run to the end."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it would tell people to restore with its own commands
    with reclaiming(), interruptible(), redirect_stdout(sys.stderr):  # what programs read is printed afterwards
        tuner.fit()
