"""Driving a search: trials on Ray Tune, each trained by its own Ray Train workers.

Floor 9.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avb_service.build import check_fit
from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.data.scale import caution
from avb_service.distributed.cluster import TRIAL_CPUS, Capacity
from avb_service.distributed.interrupts import interruptible
from avb_service.distributed.reclaim import reclaiming
from avb_service.distributed.train import train
from avb_service.fitting import record_plots
from avb_service.lock import Owned
from avb_service.model import Model
from avb_service.runs import Job
from avb_service.settings import ExperimentConfig
from avb_service.tracking import close_open_children
from avb_service.tracking.publish import Published
from avb_service.trees import overridden
from avb_service.tuning.look import begun, plots, tried
from avb_service.tuning.record import Search
from avb_service.tuning.space import LATENT, DomainConfig, SpaceConfig
from avb_service.tuning.trials import BASELINE, STOPPED, TRIAL, Trial

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

LOGGER = logging.getLogger(__name__)

RERANKED = 3  # trials whose held-out estimates decide which is best


@dataclass(frozen=True)
class Stage:
    """Trials that compete with each other.

    Attributes:
        kind: `trial` or `baseline`.
        presets: where they start from.
        values: dotted path to value, or to Ray's domain.
        samples: trials of each preset.
    """

    kind: str
    presets: tuple[str, ...]
    values: Mapping[str, Any]
    samples: int

    @property
    def name(self) -> str:
        """Of the folder for Ray Tune's own state."""
        return "-".join((self.kind, *(preset.replace("/", "~") for preset in self.presets)))


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
    sections = space.extremes(preset, "scaling") if preset in space.presets else [space.trial(preset)]
    return min(capacity.models_at_a_time(config.scaling) for config in sections)


def run_search(search: Search, capacity: Capacity, callback: "Callback", on_step: Callable[[str], None]) -> None:
    """Run the trials that are left, then the baselines with the best trial's latent size.

    Args:
        search: from `open_search`.
        capacity: of the cluster.
        callback: told of every report.
        on_step: told what is waited for.

    Raises:
        UserError: a trial is larger than the cluster, no trial reached an estimate, or MLflow is away for good.
    """
    for stage in _stages(search):
        _run(_tuner(search, stage, capacity, callback))
    for trial in search.trials():
        trial.job.deliver(on_step)
    search.check_owned()
    close_open_children(search.run.run_id, "FINISHED", str(STOPPED), search.tracking_uri)  # a killed command left them
    search.tell()


def conclude(search: Search, on_step: Callable[[str], None], **scoring: Any) -> list[Published]:  # noqa: ANN401
    """Score the best trials on held-out data and register the best of each method; the best of all may be champion.

    The search ranks trials by a bound that is cheap; its best few are ranked again by what their budget buys, those
    whose estimates can be believed before the others.

    Every step asks what is there already, so a call that was interrupted anywhere is brought to its end by another:
    what has been scored or registered is not done again.

    Args:
        search: whose trials have run.
        on_step: told what is being done.
        scoring: who scores the data, and who is told; options of `likelihood.Evaluator`.
    """
    search.best()  # says why, where there is none
    reached = [trial for trial in search.trials() if trial.objective is not None]
    registered = [trial for trial in reached if trial.job.name in search.published()]
    if _methods(registered) != _methods(reached):
        contenders = [trial for trial in reached if trial.stage == TRIAL][:RERANKED]
        leaders = _leaders(reached)
        assessed = _assess([*contenders, *leaders.values()], on_step, scoring)
        best = max(contenders, key=lambda trial: assessed[trial.job.name].record.standing)
        _register(search, _leaders([best, *reached]).values(), best, assessed)
    search.check_owned()
    search.tell()
    record_plots(search.run, plots(search.space, tried(search.space, begun(search.folder))))
    search.run.finish()
    return list(search.published().values())


def _methods(trials: Iterable[Trial]) -> set[str]:
    return {trial.config.algorithm.name for trial in trials}


def _leaders(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The first of each method."""
    return {trial.config.algorithm.name: trial for trial in reversed(trials)}


def _assess(trials: Iterable[Trial], on_step: Callable[[str], None], scoring: Mapping[str, Any]) -> dict[str, Model]:
    """Models with their held-out likelihoods, by trial; each is scored once, and data are read once."""
    assessed: dict[str, Model] = {}
    datasets: dict[DataConfig, Dataset] = {}
    for trial in trials:
        name, data = trial.job.name, trial.config.data
        if name not in assessed:
            on_step(f"scoring {name} on held-out data")
            assessed[name] = trial.job.assess(datasets.get(data), **scoring)
            datasets[data] = assessed[name].dataset()
    return assessed


def _register(search: Search, trials: Iterable[Trial], champion: Trial, assessed: Mapping[str, Model]) -> None:
    """Publish what is not yet published, and note each at once."""
    published = search.published()
    for trial in trials:
        name = trial.job.name
        if name not in published:
            published[name] = trial.job.publish(assessed[name], candidate=trial is champion)
            if trial is champion:
                search.run.log_metrics(published[name].metrics, 0)
                search.run.set_tags({"avb.best_trial": name, "avb.best_model": published[name].uri})
            search.keep(published)


def run_trial(
    values: dict[str, Any],
    *,
    kind: str,
    trees: Mapping[str, Any],
    folder: str,
    parent: str,
    uri: str,
    owned: Owned | None,
) -> None:
    """What Ray Tune runs for each trial; the workers that it starts do the training."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    assignments = {path: value for path, value in values.items() if path != "preset"}
    tree = overridden(trees[values["preset"]], assignments)
    trial_id = tune.get_context().get_trial_id()
    job = Job(
        config=ExperimentConfig.parse(tree),
        folder=Path(folder) / "trials" / trial_id,
        name=f"{tree['algorithm']['name']}-{trial_id}",
        key=f"{Path(folder).name}/{trial_id}",
        parent=parent,
        tracking_uri=uri,
        tags={"avb.kind": kind},
        owned=owned,
    )
    train(job, [TuneReportCallback()])


def _stages(search: Search) -> Iterator[Stage]:
    """The trials of each preset, one after the other, then the baselines, for which the best trial must be known."""
    space = search.space
    domains = {path: _ray_domain(domain) for path, domain in space.space.items()}
    for preset in space.presets:
        # Methods learn at different speeds, and halving them together would keep the hasty one.
        yield Stage(TRIAL, (preset,), domains, space.trials // len(space.presets))
    if space.baselines:
        best = search.best().config.algorithm
        size = getattr(best, "latent_dim", None)
        yield Stage(BASELINE, space.baselines, {LATENT: size} if size else {}, 1)


def _tuner(search: Search, stage: Stage, capacity: Capacity, callback: "Callback") -> "Tuner":
    """The stage on Ray Tune: from its beginning, or what is left of it."""
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    from avb_service.tuning.ending import EndingCallback

    space = search.space
    configs = {preset: space.trial(preset) for preset in stage.presets}
    trainable = _trainable(search, stage, configs)
    path = search.folder / "tune" / stage.name
    if restorable(path):
        return tune.Tuner.restore(str(path), trainable, resume_errored=True)
    shutil.rmtree(path, ignore_errors=True)
    at_a_time = min(models_at_a_time(space, preset, capacity) for preset in stage.presets)
    generator = BasicVariantGenerator(
        max_concurrent=min(at_a_time, space.concurrent or at_a_time), random_state=space.seed
    )
    # A stage that has to be begun again finds what its trials have trained, in folders that are named by their ids.
    generator._uuid_prefix = hashlib.sha256(f"{search.folder.name}/{stage.name}".encode()).hexdigest()[:5] + "_"
    return tune.Tuner(
        trainable,
        param_space={"preset": tune.grid_search(list(stage.presets)), **stage.values},
        tune_config=tune.TuneConfig(
            num_samples=stage.samples,
            search_alg=generator,
            scheduler=_scheduler(space, stage.presets[0]) if stage.kind == TRIAL else None,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(path.parent),
            verbose=0,
            callbacks=[callback, EndingCallback(search.trial_folder, search.owned)],
            failure_config=tune.FailureConfig(
                max_failures=max(config.scaling.max_failures for config in configs.values())
            ),
        ),
    )


def _trainable(search: Search, stage: Stage, configs: Mapping[str, ExperimentConfig]) -> Callable[..., Any]:
    """What Ray Tune starts for each trial of the stage, in an actor that only waits for its workers."""
    from ray import tune

    return tune.with_resources(
        tune.with_parameters(
            run_trial,
            kind=stage.kind,
            trees={preset: config.tree() for preset, config in configs.items()},
            folder=str(search.folder),
            parent=search.run.run_id,
            uri=search.tracking_uri,
            owned=search.owned,
        ),
        {"CPU": TRIAL_CPUS},
    )


def restorable(path: Path) -> bool:
    """Whether Ray Tune has left a state that it can go on from.

    It copies several files, every ten seconds. One who is killed at that leaves none of them, half of one, or some that
    are older than others, by which a trial would be run twice or never.

    Args:
        path: folder of a stage.
    """
    from ray.tune import Tuner
    from ray.tune.search import BasicVariantGenerator

    if not Tuner.can_restore(str(path)):
        return False
    try:
        begun = len(json.loads(max(path.glob("experiment_state-*.json")).read_text(encoding="utf-8"))["trial_data"])
        generator = BasicVariantGenerator()
        generator.restore_from_dir(str(path))
        return 0 < begun == sum(iterator.counter for iterator in generator.get_state()["_iterators"])
    except Exception as error:  # whatever a torn file brings about
        LOGGER.warning("%s holds no whole state of a search: %s; trials go on from their checkpoints", path, error)
        return False


def _run(tuner: "Tuner") -> None:
    """Run to the end."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it would tell people to restore with its own commands
    with reclaiming(), interruptible(), redirect_stdout(sys.stderr):  # what programs read is printed afterwards
        tuner.fit()


def _scheduler(space: SpaceConfig, preset: str) -> Any:  # noqa: ANN401
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    asha = space.scheduler.asha
    if asha is None:
        return FIFOScheduler()
    rounds, every = space.rounds(preset)
    return ASHAScheduler(
        time_attr="round",
        metric=space.objective.metric,
        mode=space.objective.mode,
        reduction_factor=asha.reduction,
        grace_period=min(asha.grace * every, rounds),
        max_t=rounds + 1,  # so that a trial which gets there ends by itself, and is not stopped on its last report
    )


def _ray_domain(domain: DomainConfig) -> Any:  # noqa: ANN401
    from ray import tune

    name, ends = domain.given()
    return tune.choice(list(ends)) if name == "choice" else getattr(tune, name)(*ends)
