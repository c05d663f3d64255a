"""The `avb` command.

Floor 10. What a command needs is imported when it runs, so that help answers at once.
"""

import os
import sys
import traceback
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from avb_service import rows, tables
from avb_service.errors import Interrupted, UserError
from avb_service.places import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from avb_service.likelihood import Runner
    from avb_service.likelihood.scoring import Progress

app = typer.Typer(
    help="Train, search, score and publish latent-variable models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs (docs/json.md).")]
Storage = Annotated[Path, typer.Option(envvar="AVB_STORAGE", help="Checkpoints go here; all hosts must share it.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; repeatable.")]
Model = Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, or a model folder.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Use only so many test data.")]
DataRoot = Annotated[
    str | None,
    typer.Option(
        envvar="AVB_DATA_ROOT", help="Folder with the files of named data sets, or of your own that moved; else ./data."
    ),
]
# Of the likelihood floor, which takes seconds to import; a test holds them to it.
Estimator = StrEnum(
    "Estimator",
    [
        "quadrature",
        "enumeration",
        "ppca",
        "ais",
        "ais_doubled",
        "ais_prior",
        "bdmc",
        "iwae_mixture",
        "iwae",
        "elbo",
        "elbo_adversarial",
        "elbo_corrected",
        "elbo_ceiling",
        "parzen",
    ],
)
Budget = Literal["quick", "standard", "certified"]


def _estimator(name: str) -> Estimator:
    """The estimator of a name; one that went by another is answered with its new one."""
    if name == "iwae_refined":
        raise typer.BadParameter(f"{name} is no more: {Estimator.iwae_mixture} has taken its place; use that")
    try:
        return Estimator(name)
    except ValueError:
        names = ", ".join(repr(each.value) for each in Estimator)
        raise typer.BadParameter(f"{name!r} is not one of {names}") from None


RUNS = Path("runs")

clusters = typer.Typer(help="Look at the hosts of a cluster.", no_args_is_help=True)
app.add_typer(clusters, name="cluster")


@app.callback()
def options(
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """Options of all commands."""
    if show_traceback:
        os.environ["AVB_TRACEBACK"] = "1"


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset (see `avb methods`) or YAML file.")],
    assign: Set = None,
    name: Annotated[str | None, typer.Option(help="Of the run; a run of the same name is continued.")] = None,
    storage: Storage = RUNS,
    as_json: Json = False,
) -> None:
    """Train one model on Ray, score it on held-out data and register it."""
    from avb_service.build import load_data
    from avb_service.checkpoint import CheckpointStore
    from avb_service.data.scale import introduction
    from avb_service.distributed.cluster import cluster, own_capacity
    from avb_service.distributed.progress import Bars, listening
    from avb_service.distributed.scoring import on_cluster
    from avb_service.distributed.train import train_alone
    from avb_service.lock import owned
    from avb_service.runs import Job
    from avb_service.settings import check_run_name, read_config
    from avb_service.tracking import check_server
    from avb_service.tracking.publish import check_names

    config = read_config(source, assign).anchored()
    if name is None:
        name = f"{config.algorithm.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    check_run_name(name)
    uri = check_server()
    check_names(config, uri)
    if (here := own_capacity()) is not None:
        here.models_at_a_time(config.scaling)
    with ExitStack() as held:
        held.enter_context(owned(storage.absolute() / f".{name}.lock", f"run {name}", _note))
        dataset = load_data(config)
        for line in introduction(dataset):
            _note(line)
        job = Job.alone(config, name, storage.absolute() / name, uri)
        capacity = held.enter_context(cluster(_note, lambda has: has.models_at_a_time(config.scaling)))
        newest = CheckpointStore(job.checkpoints).newest
        _note(f"training {name} on {capacity}{f', from {newest.name}' if newest else ''}; recorded at {uri}")
        try:
            with closing(Bars(config.training.rounds, quiet=as_json)) as bars:
                with listening(partial(bars.report, name)) as callbacks:
                    train_alone(job, callbacks)
            job.deliver(_note)
            with _progress(as_json) as progress:
                published = job.publish(job.assess(dataset, run=on_cluster(capacity), progress=progress))
        except KeyboardInterrupt:
            raise Interrupted(f"{name} was interrupted; the same command with --name {name} continues it") from None
    text = f"{name} is {published.uri}, {published.alias}: {published.reason}; see it with `avb ui`"
    _say(as_json, rows.published(name, published), text)


@app.command()
def tune(
    space: Annotated[Path, typer.Option(help="Search space.")] = Path("tune_spaces/digits.yaml"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest of this space or branch.")] = False,
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Begin another from it, since its space or code has changed.")
    ] = None,
    storage: Storage = RUNS,
    as_json: Json = False,
) -> None:
    """Search hyper-parameters, then score and register the best."""
    from avb_service.distributed.cluster import cluster, own_capacity
    from avb_service.distributed.scoring import on_cluster
    from avb_service.lock import owned
    from avb_service.tracking import check_server
    from avb_service.tracking import leaderboard as read
    from avb_service.tracking.publish import check_names
    from avb_service.tracking.server import page
    from avb_service.tuning import record
    from avb_service.tuning.progress import ProgressCallback
    from avb_service.tuning.search import check_capacity, conclude, preflight, run_search
    from avb_service.tuning.space import read_space

    given, origin, begun = read_space(space), None, None
    searched = record.branch(given, branch) if branch else given
    if resume:
        begun = record.folder_to_resume(searched, storage)
    elif branch:
        origin = record.newest_folder(given, storage)
    uri = check_server()
    for config in searched.bases():
        check_names(config, uri)
    if (here := own_capacity()) is not None:
        check_capacity(searched, here)
    with ExitStack() as held:
        held.enter_context(owned(storage.absolute() / f".{searched.name}.lock", f"search {searched.name}", _note))
        preflight(searched, _note)
        capacity = held.enter_context(cluster(_note, partial(check_capacity, searched)))
        search = record.open_search(searched, begun or record.new_folder(searched, storage), uri, origin)
        _note(f"search {search.folder.name} on {capacity}; recorded at {uri}")
        try:
            run_search(search, capacity, ProgressCallback(search.trial_folder), _note)
            with _progress(as_json) as progress:
                scoring = {"run": on_cluster(capacity), "progress": progress}
                published = conclude(search, _note, **scoring)
        except KeyboardInterrupt:
            search.close("KILLED", "interrupted; --resume continues it")
            raise Interrupted(f"search {search.folder.name} was interrupted; --resume continues it") from None
        except Exception as error:
            search.close("FAILED", str(error))
            raise
    best = next(each for each in published if each.alias is not None)
    board = rows.leaderboard(read(uri), [each.uri for each in published], best.uri)
    _say(as_json, board, partial(tables.leaderboard, board))
    if not as_json:
        server = uri if uri.startswith("http") else None
        pull_it = f"avb pull {best.uri.rsplit('/', 1)[0]}@{best.alias} ./{best.alias}"
        print(f"\nbest of this search: {best.uri}, {best.alias}: {best.reason}")
        print(f"browse runs and figures: {page(server, 'experiments') if server else 'avb ui'}")
        print(f"fetch the {best.alias}: {f'MLFLOW_TRACKING_URI={server} ' if server else ''}{pull_it}")


@app.command()
def leaderboard(as_json: Json = False) -> None:
    """All registered models, best first."""
    from avb_service.tracking import check_server
    from avb_service.tracking import leaderboard as read

    board = rows.leaderboard(read(check_server()))
    _say(as_json, board, partial(tables.leaderboard, board))


@app.command()
def pull(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="Where to; absent or empty, or holding that very model.")],
    as_json: Json = False,
) -> None:
    """Copy a registered model into a folder, verified."""
    from avb_service.tracking import pull as fetch

    folder = fetch(model, directory)
    text = f"{model} is in {folder}; load it with avb_service.load({str(folder)!r})"
    _say(as_json, {"model": model, "folder": str(folder)}, text)


@app.command()
def evaluate(
    model: Model,
    estimator: Annotated[
        list[Estimator] | None,
        typer.Option(
            metavar="NAME", parser=_estimator, help=f"Only this estimator; repeatable. Names: {', '.join(Estimator)}."
        ),
    ] = None,
    budget: Annotated[
        Budget | None, typer.Option(help="quick unless given; standard: annealing too; certified: a certificate, too.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML file with keys of the `likelihood` section.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Score on so many cores, through Ray; 1 stays here.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Keep scored data here; called again, it goes on.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw what is known on one axis, to this .png.")] = None,
    noise: Annotated[float | None, typer.Option(help="Of the pixels, for a model without p(x|z): a GAN.")] = None,
    data_root: DataRoot = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Log-likelihoods of held-out data, each with its kind and error bar; with a certificate where asked for."""
    import avb_service
    from avb_service.records import LikelihoodRecord
    from avb_service.settings import read_likelihood
    from avb_service.storage import check_place, writing

    if estimator and budget:
        raise UserError("--budget buys estimators, and --estimator names them one by one: give either")
    if figure is not None:
        _check_name(figure, ".png")
        check_place(figure)
    loaded = avb_service.load(model)
    likelihood = read_likelihood(loaded.config.likelihood, settings, budget)
    config = loaded.config.model_copy(update={"likelihood": likelihood})
    loaded = replace(loaded, config=config).with_data(data_root)
    x, _ = loaded.data("test", limit)
    with _runner(workers) as run, _progress(as_json) as progress:
        evaluator = loaded.evaluator(noise=noise, run=run, store=keep, progress=progress)
        names = [each.value for each in estimator or []]
        for name in set(names) - {"parzen"}:
            evaluator.require(name)
        if names:
            windows = partial(loaded.parzen, x, run=run, store=keep, progress=progress)
            scored = (windows() if name == "parzen" else [evaluator.score(name, x)] for name in names)
            diagnosis = evaluator.diagnosis(x) if "elbo_adversarial" in names else None
            record = LikelihoodRecord({}, tuple(chain.from_iterable(scored)), diagnosis=diagnosis)
        else:
            record = evaluator.assess(x, likelihood.budget)
    data = loaded.config.data.name
    title, other = f"{model} on {len(x)} test data of {data}", loaded.other_data()
    shown = partial(tables.estimates, record, title, other)
    _say(as_json, rows.evaluation(record, model, data, len(x), other), shown)
    if figure is not None:
        from avb_service.figures import bounds, caption, to_png

        with writing(figure):
            gap = record.certificate.bracket if record.certificate else None
            figure.write_bytes(to_png(caption(bounds(record.estimates, gap), f"{loaded.subject}, test data")))


@app.command()
def compare(first: Model, second: Model, as_json: Json = False) -> None:
    """Which of two models is better, datum by datum on the same held-out data."""
    from avb_service.tracking.promotion import record_of

    comparison = record_of(first).against(record_of(second))
    ahead = "is ahead of" if comparison.better else "is not ahead of"
    _say(as_json, rows.comparison(first, second, comparison), f"{first} {ahead} {second}: {comparison}")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION")],
    override: Annotated[str | None, typer.Option(metavar="REASON", help="Promote it all the same; recorded.")] = None,
    as_json: Json = False,
) -> None:
    """Make a version champion: for a better held-out likelihood with a certificate, or for a reason of yours."""
    from avb_service.tracking.promotion import promote as move

    name, _, version = model.removeprefix("models:/").partition("/")
    if not version.isdigit():
        raise UserError(f"given {model}, expected models:/NAME/VERSION")
    reason = move(name, int(version), override)
    _say(as_json, {"model": model, "reason": reason}, f"{model} is champion: {reason}")


@app.command()
def sample(
    model: Model,
    file: Annotated[Path, typer.Argument(help="Where to write: .png draws a sheet, .npy keeps the numbers.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    means: Annotated[
        bool, typer.Option("--means/--draws", help="Means of p(x|z), where the model has one, or draws from it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw from a model: z ~ p(z), and x from p(x|z)."""
    import avb_service
    from avb_service.storage import check_place, writing

    _check_name(file, ".png", ".npy")
    check_place(file)
    loaded = avb_service.load(model)
    images = loaded.sample(n, seed, means=means)
    with writing(file):
        if file.suffix == ".npy":
            import numpy as np

            np.save(file, images.numpy(), allow_pickle=False)
        else:
            from avb_service.figures import caption, sheet, to_png

            file.write_bytes(to_png(caption(sheet(images, loaded.algorithm, means), f"{loaded.subject}, seed {seed}")))
    shows = "means" if means else "draws"
    row = {"model": model, "file": str(file), "shape": list(images.shape), "seed": seed, "shows": shows}
    _say(as_json, row, f"{n} {'means of p(x|z)' if means else shows} of {model} are in {file}")


@app.command()
def figures(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is absent.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Draw every figure that a model can have."""
    import avb_service
    from avb_service.figures import to_png
    from avb_service.report import plots
    from avb_service.storage import check_place, writing

    check_place(directory / "samples.png")
    drawn = []
    for name, figure in plots(avb_service.load(model).with_data(data_root)).items():
        path = directory / f"{name}.png"
        with writing(path):
            path.write_bytes(to_png(figure))
        drawn.append({"figure": name, "file": str(path)})
    _say(as_json, drawn, "\n".join(each["file"] for each in drawn))


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 5000,
    secrets: Annotated[Path | None, typer.Option(help="Ask for a login; deploy/secrets.sh makes this folder.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(envvar="AVB_ARTIFACTS", help="A folder or bucket; beside a SQLite file unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the MLflow UI for the tracking file, or for the database in MLFLOW_TRACKING_URI."""
    from avb_service.tracking import check_server, server_command
    from avb_service.tracking.server import check_port, page

    command = server_command(host, port, secrets=secrets, artifacts=artifacts)
    os.environ.update(command.environment)  # the way into the database may be among the secrets
    check_port(host, port)
    url = f"http://{host}:{port}"
    row = {"url": url, "runs": page(url, "experiments"), "models": page(url, "models"), "recorded_at": check_server()}
    text = f"runs and figures: {row['runs']}\nmodels: {row['models']}"
    _say(as_json, row, partial(_note, text))
    sys.stdout.flush()
    os.dup2(2, 1)  # the server's log is no JSON
    os.execvp(command.arguments[0], command.arguments)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Made by this; absent or empty.")], as_json: Json = False
) -> None:
    """Copy the runs, models and users of a tracking file into a folder, also while a server runs on it."""
    from avb_service.tracking.backup import backup as save

    saved = save(folder)
    _say(as_json, asdict(saved), f"{saved} are in {folder}; avb restore {folder} brings them back")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="What `avb backup` made.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put aside what is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a backup back, verified, to where MLFLOW_TRACKING_URI says; stop the server there first."""
    from avb_service.tracking.backup import restore as bring_back

    restored = bring_back(folder, replace=replace)
    _say(as_json, asdict(restored), f"{restored} are back at {restored.place}")


@clusters.command()
def check(
    file: Annotated[Path, typer.Argument(help="The cluster file.")] = Path("ray_cluster.yaml"), as_json: Json = False
) -> None:
    """Before `ray up`: what would go wrong, and on which host. After it: what each host has."""
    from avb_service.distributed.check import ClusterFile
    from avb_service.distributed.check import check as look

    cluster = ClusterFile.read(file)
    report = look(cluster)
    hosts = [rows.host(address, has, report.members) for address, has in report.hosts.items()]
    told = {"up": report.members is not None, "hosts": hosts, "problems": list(report.problems)}
    _say(as_json, told, partial(tables.hosts, hosts) if hosts else None)
    if report.problems:
        count = "1 problem" if len(report.problems) == 1 else f"{len(report.problems)} problems"
        raise UserError("\n".join([f"{file}: {count}", *(f"  {problem}" for problem in report.problems)]))
    state = f"{len(cluster.hosts)} hosts are ready for `ray up`" if report.members is None else "the cluster is up"
    _note(state)


@app.command()
def methods(as_json: Json = False) -> None:
    """The methods, and the presets that train them."""
    from avb_service.abilities import abilities
    from avb_service.algorithms import TABLE
    from avb_service.settings import preset_names, read_preset

    presets: dict[str, list[str]] = {name: [] for name in TABLE}
    for preset in preset_names():
        presets[read_preset(preset)["algorithm"]["name"]].append(preset)
    listed = [
        {
            "name": name,
            "about": (sys.modules[method.__module__].__doc__ or "").split("\n")[0],
            **asdict(abilities(method)),
            "presets": presets[name],
        }
        for name, method in TABLE.items()
    ]
    _say(as_json, listed, partial(tables.methods, listed))


@app.command()
def plan(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset (see `avb methods`) or YAML file.")],
    workers: Annotated[int, typer.Option(min=1, help="At the most; needs as many training.logical_workers.")] = 1,
    assign: Set = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="A GPU for each; one of this machine is measured.")] = False,
    bandwidth: Annotated[
        float | None, typer.Option(min=1e-3, help="Of the network, Gbit/s, where each is on a host of its own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """How long a round would take on 1, 2, ... workers, and how many pay: measured here, with one."""
    from avb_service.plan import enough, measure, shares
    from avb_service.plan import plan as predict
    from avb_service.settings import read_config

    config = read_config(source, assign)
    shares(config, workers)
    costs = measure(config, gpus)
    planned = predict(config, costs, workers, None if bandwidth is None else bandwidth * 1e9 / 8)
    listed = [rows.planned(each, config.training.rounds) for each in planned]
    paying = enough(planned)
    told = {"workers": listed, "enough": paying, "averaged_bytes": costs.bytes}
    _say(as_json, told, partial(tables.plan, listed, f"A round of {source}"))
    if not as_json:
        most = "; more save less than a tenth of a round each" if paying < planned[-1].workers else ""
        print(f"{paying} of them pay{most}. A core (or GPU) for each is taken for granted.")


@app.command()
def settings(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset (see `avb methods`) or YAML file.")],
    assign: Set = None,
    as_json: Json = False,
) -> None:
    """All settings of a preset or file: the path that --set takes, the value, and what it is."""
    from avb_service.settings import read_config

    listed = [
        {"setting": path, "value": value, "about": about}
        for path, value, about in read_config(source, assign).settings()
    ]
    _say(as_json, listed, partial(tables.settings, listed, f"Settings of {source}"))


@app.command()
def datasets(as_json: Json = False) -> None:
    """The data sets that have a name."""
    from avb_service.data.sources import SOURCES

    listed = [{"name": name, "about": source.about, "values": source.values} for name, source in SOURCES.items()]
    _say(as_json, listed, partial(tables.datasets, listed))


def main() -> None:
    """The `avb` command."""
    guarded(app)


def guarded(command: typer.Typer) -> None:
    """Run a command; what the user can mend is one message and no traceback."""
    if (os.environ.get("RAY_ADDRESS") or "local") == "local":  # a cluster of our own is closed to strangers
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # here, since Ray reads it when it is imported, and never again
    try:
        settle()
        command()
    except UserError as error:
        if os.environ.get("AVB_TRACEBACK"):
            traceback.print_exc()
        err.print(f"error: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)


def _note(text: str) -> None:
    """Tell a person what is going on."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_name(path: Path, *suffixes: str) -> None:
    """A file of a kind that we write."""
    if path.suffix not in suffixes:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")


def _say(as_json: bool, told: object, shown: "str | Callable[[], None] | None") -> None:
    """Print what a program is told, or show a person the same, as a text or by a function that prints it."""
    if as_json:
        print(rows.as_json(told))
    elif callable(shown):
        shown()
    elif shown:
        print(shown)


@contextmanager
def _progress(quiet: bool) -> "Iterator[Callable[[str], Progress]]":
    """A bar with the time left for each estimator that is not done; none for programs."""
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=err, disable=quiet, transient=True) as bars:

        def progress(name: str) -> "Callable[[int, int], None]":
            bar = bars.add_task(name, total=None)
            return lambda done, total: bars.update(bar, completed=done, total=total, visible=done < total)

        yield progress


@contextmanager
def _runner(workers: int) -> "Iterator[Runner]":
    """Who scores blocks: this process, or so many Ray workers."""
    if workers == 1:
        from avb_service.likelihood.scoring import serially

        yield serially
        return
    from avb_service.distributed.cluster import cluster, own_capacity
    from avb_service.distributed.scoring import on_cluster

    if (here := own_capacity()) is not None:
        on_cluster(here, workers)
    with cluster(_note, partial(on_cluster, workers=workers)) as capacity:
        yield on_cluster(capacity, workers)
