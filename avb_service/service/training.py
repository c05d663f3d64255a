"""Training one model, and searching among many: on Ray, recorded, scored and registered.

Floor 9.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avb_service.display import Display
from avb_service.errors import Interrupted
from avb_service.results import Searched, Trained, Trials
from avb_service.service.models import leaderboard, prepare

if TYPE_CHECKING:
    from avb_service.data.datasets import Dataset
    from avb_service.distributed.capacity import Capacity
    from avb_service.runs import Job
    from avb_service.settings import ExperimentConfig
    from avb_service.tracking.publish import Published
    from avb_service.tuning.earlier import Earlier
    from avb_service.tuning.record import Search
    from avb_service.tuning.space import SpaceConfig

Settings = Mapping[str, Any] | Sequence[str]  # dotted path -> value; or "PATH=VALUE" each, as `--set` takes them
STORAGE = "runs"


def train(
    source: "str | Path | ExperimentConfig",
    settings: Settings = (),
    *,
    name: str | None = None,
    storage: str | Path = STORAGE,
    display: Display | None = None,
) -> Trained:
    """Train one model on Ray, score it on held-out data and register it.

    Args:
        source: a preset, a YAML file, or a configuration.
        settings: on top of it, such as `{"training.rounds": 500}`.
        name: of the run; a run of the same name is continued.
        storage: folder for checkpoints, on a disk that all hosts share.
        display: shows what goes on; on the terminal by default.

    Raises:
        UserError: something is to be put right first; says what was given, what was expected and what to do.
        KeyboardInterrupt: it was interrupted; called again with the same name it goes on.
    """
    prepare()
    from avb_service.build import load_data
    from avb_service.checkpoint import CheckpointStore
    from avb_service.data.scale import introduction
    from avb_service.distributed.cluster import cluster
    from avb_service.lock import owned
    from avb_service.runs import Job
    from avb_service.settings import check_run_name, read_config

    display = display or Display()
    config = read_config(source, settings).anchored()
    if name is None:
        name = f"{config.algorithm.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    check_run_name(name)
    folder, uri = Path(storage).absolute(), _ready([config], lambda has: has.models_at_a_time(config.scaling))
    with ExitStack() as held:
        mine = held.enter_context(owned(folder / f".{name}.lock", f"run {name}", display.note))
        dataset = load_data(config)
        for line in introduction(dataset):
            display.note(line)
        job = replace(Job.alone(config, name, folder / name, uri), owned=mine)
        capacity = held.enter_context(cluster(display.note, lambda has: has.models_at_a_time(config.scaling)))
        newest = CheckpointStore(job.checkpoints).newest
        display.note(f"training {name} on {capacity}{f', from {newest.name}' if newest else ''}; recorded at {uri}")
        try:
            return _trained(job, dataset, capacity, display)
        except KeyboardInterrupt:
            raise Interrupted(f"{name} was interrupted; run again with --name {name}, it goes on") from None


def _trained(job: "Job", dataset: "Dataset", capacity: "Capacity", display: Display) -> Trained:
    """Train, score and register what has begun."""
    from avb_service.distributed.progress import listening
    from avb_service.distributed.scoring import on_cluster
    from avb_service.distributed.train import train_alone

    rounds = job.config.training.rounds
    with display.training(rounds) as bars, listening(partial(bars.report, job.name)) as callbacks:
        train_alone(job, callbacks)
    job.deliver(display.note)
    with display.scoring() as progress:
        return Trained(job.name, job.publish(job.assess(dataset, run=on_cluster(capacity), progress=progress)))


def tune(
    space: str | Path = "tune_spaces/digits.yaml",
    *,
    resume: bool = False,
    branch: str | None = None,
    storage: str | Path = STORAGE,
    display: Display | None = None,
) -> Searched:
    """Search hyper-parameters, then score and register the best model of each method.

    Args:
        space: a YAML file of a search space.
        resume: continue the newest search of this space or branch.
        branch: begin another of that name from it, since its space or code has changed.
        storage: as for `train`.
        display: as for `train`.

    Raises:
        UserError: as for `train`.
        KeyboardInterrupt: it was interrupted; `resume` continues it.
    """
    prepare()
    from avb_service.distributed.cluster import cluster
    from avb_service.distributed.reclaim import check_dashboard
    from avb_service.lock import owned
    from avb_service.tuning import record
    from avb_service.tuning.budget import check_budget
    from avb_service.tuning.earlier import earlier_trials
    from avb_service.tuning.search import check_capacity, preflight

    display, folder = display or Display(), Path(storage)
    searched, begun, origin = _chosen(Path(space), folder, resume, branch)
    earlier = earlier_trials(searched, folder)
    uri = _ready(searched.bases(), partial(check_capacity, searched))
    with ExitStack() as held:
        lock = folder.absolute() / f".{searched.name}.lock"
        mine = held.enter_context(owned(lock, f"search {searched.name}", display.note))
        preflight(searched, display.note)
        check_budget(searched)
        capacity = held.enter_context(cluster(display.note, partial(check_capacity, searched)))
        check_dashboard()
        search = record.open_search(searched, begun or record.new_folder(searched, folder), uri, origin, mine)
        display.note(f"search {search.folder.name} on {capacity}; recorded at {uri}")
        try:
            published = _searched(search, capacity, display, earlier)
        except KeyboardInterrupt:
            search.close("KILLED", "interrupted; --resume continues it")
            raise Interrupted(f"search {search.folder.name} was interrupted; --resume continues it") from None
        except Exception as error:
            search.close("FAILED", str(error))
            raise
    return Searched(search.folder.name, tuple(published), leaderboard(published))


def _searched(
    search: "Search", capacity: "Capacity", display: Display, earlier: "Mapping[str, Sequence[Earlier]]"
) -> "Sequence[Published]":
    """Run the trials, then score and register the best."""
    from avb_service.distributed.scoring import on_cluster
    from avb_service.tuning.concluding import conclude
    from avb_service.tuning.progress import ProgressCallback
    from avb_service.tuning.search import run_search

    with display.training() as bars:
        run_search(search, capacity, ProgressCallback(search.trial_folder, bars), display.note, earlier)
    with display.scoring() as progress:
        return conclude(search, display.note, run=on_cluster(capacity), progress=progress)


def search(name: str, *, storage: str | Path = STORAGE) -> Trials:
    """What a search has found so far: its trials, which settings mattered, and plots of both. Nothing is trained.

    Args:
        name: of the search, or of its space, of which the newest is meant.
        storage: as it was for `tune`.

    Raises:
        UserError: there is no such search.
    """
    from avb_service.tuning import look, record

    folder = look.find_search(name, Path(storage))
    space, trials = look.read_search(folder), look.begun(folder)
    tried = look.tried(space, trials)
    registered = {trial: model.uri for trial, model in record.published(folder).items()}
    rows = tuple(look.rows(space, trials, registered))
    return Trials(folder.name, rows, look.importances(space, tried), partial(look.plots, space, tried))


def _chosen(
    space: Path, folder: Path, resume: bool, branch: str | None
) -> "tuple[SpaceConfig, Path | None, Path | None]":
    """The space that is searched, the folder of the search that is continued, and that of the one it branches from."""
    from avb_service.tuning import record
    from avb_service.tuning.space import read_space

    given = read_space(space)
    searched = record.branch(given, branch) if branch else given
    if resume:
        return searched, record.folder_to_resume(searched, folder), None
    return searched, None, record.newest_folder(given, folder) if branch else None


def _ready(configs: "Iterable[ExperimentConfig]", fits: "Callable[[Capacity], object]") -> str:
    """Where runs are recorded, once it is known that it can be done under their names, and that they fit on a machine.

    Raises:
        UserError: it cannot, or this machine is all that there is, and has too little room.
    """
    from avb_service.distributed.cluster import own_capacity
    from avb_service.tracking import check_server
    from avb_service.tracking.publish import check_names

    uri = check_server()
    for config in configs:
        check_names(config, uri)
    if (here := own_capacity()) is not None:
        fits(here)
    return uri
