"""A search: trials on Ray Tune, each trained by its own Ray Train workers.

Floor 9.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from avb_service.checkpoint import CheckpointStore
from avb_service.config import difference, override, read_yaml
from avb_service.distributed.cluster import TRIAL_CPUS, Capacity
from avb_service.distributed.interrupts import interruptible
from avb_service.distributed.train import JOB, Job, Outcome, train
from avb_service.errors import UserError
from avb_service.experiment import OBJECTIVE, Experiment, load_data
from avb_service.settings import ExperimentConfig
from avb_service.tracking import Run, close_open_children
from avb_service.tracking.publish import Published, publish
from avb_service.tuning.space import LATENT, DomainConfig, SpaceConfig

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

SPACE, PUBLISHED = "space.yaml", "published.json"
TRIAL, BASELINE = "trial", "baseline"


@dataclass(frozen=True)
class Trial:
    """A trial that has begun.

    Attributes:
        job: what it trains.
        stage: `trial` or `baseline`.
        objective: the best validation figure that it has reached, None where none.
        outcome: how it ended; None while it has not, or where the scheduler stopped it.
    """

    job: Job
    stage: str
    objective: float | None
    outcome: Outcome | None

    @property
    def config(self) -> ExperimentConfig:
        """What it is trained with."""
        return self.job.settings

    @property
    def status(self) -> str:
        """For people."""
        return "stopped early" if self.outcome is None else f"{self.outcome.status} {self.outcome.reason}".strip()


@dataclass(frozen=True)
class Search:
    """A search and where it lives.

    Attributes:
        space: what is searched.
        folder: on a disk that all hosts share.
        tracking_uri: where it is recorded; absolute.
        run: the parent of the trials' runs.
    """

    space: SpaceConfig
    folder: Path
    tracking_uri: str
    run: Run

    def trials(self) -> list[Trial]:
        """All trials that have begun, best first."""
        found = [_read_trial(path.parent) for path in sorted(self.folder.glob("trials/*/job.json"))]
        return sorted(found, key=lambda trial: -math.inf if trial.objective is None else trial.objective, reverse=True)

    def best(self) -> Trial:
        """The best trial of the search proper.

        Raises:
            UserError: none has reached a figure; says how they failed.
        """
        trials = [trial for trial in self.trials() if trial.stage == TRIAL]
        if not trials or trials[0].objective is None:
            reasons = {f"{trial.job.name}: {trial.status}" for trial in trials}
            raise UserError("\n  ".join(["no trial of the search reached a validation figure:", *sorted(reasons)]))
        return trials[0]

    def published(self) -> dict[str, Published]:
        """What has been registered so far, by trial."""
        path = self.folder / PUBLISHED
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: Published(**row) for name, row in rows.items()}

    def keep(self, published: Mapping[str, Published]) -> None:
        """Remember what has been registered."""
        rows = {name: asdict(each) for name, each in published.items()}
        (self.folder / PUBLISHED).write_text(json.dumps(rows), encoding="utf-8")


def open_search(space: SpaceConfig, storage: Path, tracking_uri: str, resume: bool) -> Search:
    """Begin a search, or find the one to continue.

    Args:
        space: what is searched.
        storage: folder of all searches, on a disk that all hosts share.
        tracking_uri: where it is recorded; absolute.
        resume: continue the newest search of that name.

    Raises:
        UserError: nothing to resume, another space than the one that was begun, or a folder that cannot be written.
    """
    folder = _newest(space, storage) if resume else _new(space, storage)
    experiment = space.trial(space.presets[0]).tracking.experiment
    run = Run.start(
        experiment, folder.name, space.tree(), resume_key=folder.name, uri=tracking_uri, tags={"avb.kind": "search"}
    )
    return Search(space, folder, tracking_uri, run)


def preflight(space: SpaceConfig) -> None:
    """Load the data of every preset once, where the user sees what is wrong with it.

    Raises:
        UserError: they are missing or damaged, or do not fit a model.
    """
    for preset in (*space.presets, *space.baselines):
        load_data(space.trial(preset))


def check_capacity(space: SpaceConfig, capacity: Capacity) -> None:
    """Make sure that the cluster can hold the largest trial.

    Raises:
        UserError: it cannot; Ray would wait for ever.
    """
    for preset in (*space.presets, *space.baselines):
        capacity.models_at_a_time(space.trial(preset).scaling)


def run_search(search: Search, capacity: Capacity, callback: "Callback") -> None:
    """Run the trials that are left, then the baselines with the best trial's latent size.

    Args:
        search: from `open_search`.
        capacity: of the cluster.
        callback: told of every report.

    Raises:
        UserError: a trial is larger than the cluster, or no trial reached a figure.
    """
    space = search.space
    domains = {path: _ray_domain(domain) for path, domain in space.space.items()}
    for preset in space.presets:
        # One after the other: methods learn at different speeds, and halving them together would keep the hasty one.
        _stage(search, TRIAL, (preset,), domains, space.trials // len(space.presets), capacity, callback)
    if space.baselines:
        best = search.best().config.algorithm
        same = {LATENT: size} if (size := getattr(best, "latent_dim", None)) else {}
        _stage(search, BASELINE, space.baselines, same, 1, capacity, callback)
    close_open_children(search.run.run_id, "FINISHED", "stopped early by the scheduler", search.tracking_uri)


def conclude(search: Search, on_step: Callable[[str], None]) -> list[Published]:
    """Score the best trial of each method on held-out data and register it; the best of the search may be champion.

    What an interrupted call has registered is not registered again.

    Args:
        search: whose trials have run.
        on_step: told what is being done.
    """
    champion = search.best()
    leaders: dict[str, Trial] = {}
    for trial in search.trials():
        if trial.objective is not None:
            leaders.setdefault(trial.config.algorithm.name, trial)
    published = search.published()
    for trial in leaders.values():
        if trial.job.name in published:
            continue
        on_step(f"scoring {trial.job.name} on held-out data")
        published[trial.job.name] = publish(
            Experiment(trial.config, trial.job.checkpoints), trial.job.start_run(), Path(trial.job.folder) / "model",
            candidate=trial.job == champion.job,
        )  # fmt: skip
        search.keep(published)
    best = published[champion.job.name]
    search.run.log_metrics(best.metrics, 0)
    search.run.set_tags({"avb.best_trial": champion.job.name, "avb.best_model": best.uri})
    search.run.finish()
    return list(published.values())


def run_trial(
    values: dict[str, Any], *, stage: str, trees: Mapping[str, Any], folder: str, parent: str, uri: str
) -> None:
    """What Ray Tune runs for each trial; the workers that it starts do the training."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    assignments = {path: value for path, value in values.items() if path != "preset"}
    tree = reduce(lambda below, item: override(below, *item), assignments.items(), trees[values["preset"]])
    trial_id = tune.get_context().get_trial_id()
    job = Job(
        config=ExperimentConfig.parse(tree).tree(), folder=str(Path(folder) / "trials" / trial_id),
        name=f"{tree['algorithm']['name']}-{trial_id}", key=f"{Path(folder).name}/{trial_id}", parent=parent,
        tracking_uri=uri, tags={"avb.kind": stage},
    )  # fmt: skip
    train(job, [TuneReportCallback()])


def _stage(
    search: Search, stage: str, presets: tuple[str, ...], values: Mapping[str, Any], samples: int, capacity: Capacity,
    callback: "Callback",
) -> None:
    """Run so many trials of each preset on Ray Tune, or those that are left of them."""
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    space = search.space
    configs = {preset: space.trial(preset) for preset in presets}
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial, stage=stage, trees={preset: config.tree() for preset, config in configs.items()},
            folder=str(search.folder), parent=search.run.run_id, uri=search.tracking_uri,
        ),
        {"CPU": TRIAL_CPUS},
    )  # fmt: skip
    name = "-".join((stage, *(Path(preset).stem for preset in presets)))
    path = search.folder / "tune" / name
    if tune.Tuner.can_restore(str(path)):
        _run(tune.Tuner.restore(str(path), trainable, resume_errored=True), search)
        return
    at_a_time = min(capacity.models_at_a_time(config.scaling) for config in configs.values())
    tuner = tune.Tuner(
        trainable,
        param_space={"preset": tune.grid_search(list(presets)), **values},
        tune_config=tune.TuneConfig(
            num_samples=samples,
            search_alg=BasicVariantGenerator(
                max_concurrent=min(at_a_time, space.concurrent or at_a_time), random_state=space.seed
            ),
            scheduler=_scheduler(space, configs) if stage == TRIAL else None,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(path.parent), verbose=0, callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )  # fmt: skip
    _run(tuner, search)


def _run(tuner: "Tuner", search: Search) -> None:
    """Run to the end, and close the runs of trials whose processes failed for good."""
    with interruptible():
        grid = tuner.fit()
    for result in (grid[index] for index in range(len(grid))):
        folder = search.folder / "trials" / Path(result.path).name
        if result.error is not None and (folder / JOB).exists():
            Job.read(folder).start_run().finish("FAILED", str(result.error))


def _scheduler(space: SpaceConfig, configs: Mapping[str, ExperimentConfig]) -> Any:  # noqa: ANN401
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    asha = space.scheduler.asha
    if asha is None:
        return FIFOScheduler()
    rounds = max(config.training.rounds for config in configs.values())
    every = max(config.training.report_every for config in configs.values())
    return ASHAScheduler(
        time_attr="round", metric=OBJECTIVE, mode=space.objective.mode, reduction_factor=asha.reduction,
        grace_period=asha.grace * every,
        max_t=rounds + 1,  # so that a trial which gets there ends by itself, and is not stopped on its last report
    )  # fmt: skip


def _ray_domain(domain: DomainConfig) -> Any:  # noqa: ANN401
    from ray import tune

    name, ends = domain.given()
    return tune.choice(list(ends)) if name == "choice" else getattr(tune, name)(*ends)


def _new(space: SpaceConfig, storage: Path) -> Path:
    folder = storage.absolute() / f"{space.name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        folder.mkdir(parents=True)
        (folder / SPACE).write_text(yaml.safe_dump(space.resolved(), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another place with --storage") from error
    return folder


def _newest(space: SpaceConfig, storage: Path) -> Path:
    begun = sorted(path.parent for path in storage.absolute().glob(f"{space.name}-????????-??????/{SPACE}"))
    if not begun:
        raise UserError(f"--resume: {storage.absolute()} holds no search {space.name!r}; start one without --resume")
    if lines := difference(read_yaml(begun[-1] / SPACE), space.resolved()):
        raise UserError(
            "\n  ".join([f"--resume: the space has changed since {begun[-1].name} was begun; differing:", *lines])
            + "\nGive the same space, or start a new search without --resume"
        )
    return begun[-1]


def _read_trial(folder: Path) -> Trial:
    job = Job.read(folder)
    objective = CheckpointStore(job.checkpoints, best_by=OBJECTIVE).best_metric()
    return Trial(job, job.tags["avb.kind"], objective, Outcome.read(folder))
