"""Commands about models: train, search, list, pull, score, compare, promote, draw.

Floor 10. What a command needs is imported when it runs, so that help answers at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import avb_service
from avb_service.cli.options import (
    RUNS,
    Budget,
    DataRoot,
    Estimators,
    Json,
    Limit,
    Model,
    Set,
    Storage,
    check_name,
    display,
    say,
    tell,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

app = typer.Typer()


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset (see `avb methods`) or YAML file.")],
    assign: Set = None,
    name: Annotated[str | None, typer.Option(help="Of the run; a run of the same name is continued.")] = None,
    storage: Storage = RUNS,
    as_json: Json = False,
) -> None:
    """Train one model on Ray, score it on held-out data and register it."""
    tell(as_json, avb_service.train(source, assign or (), name=name, storage=storage, display=display(as_json)))


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
    found = avb_service.tune(space, resume=resume, branch=branch, storage=storage, display=display(as_json))
    tell(as_json, found)
    if as_json:
        return
    from avb_service.tracking import tracking_uri
    from avb_service.tracking.server import page

    uri, best = tracking_uri(), found.best
    server = uri if uri.startswith("http") else None
    pull_it = f"avb pull {best.uri.rsplit('/', 1)[0]}@{best.alias} ./{best.alias}"
    print(f"\nbest of this search: {best.uri}, {best.alias}: {best.reason}")
    print(f"browse runs and plots: {page(server, 'experiments') if server else 'avb ui'}")
    print(f"fetch the {best.alias}: {f'MLFLOW_TRACKING_URI={server} ' if server else ''}{pull_it}")


@app.command()
def search(
    name: Annotated[str, typer.Argument(help="Of the search, or of its space, of which the newest is meant.")],
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw what it has found there.")] = None,
    storage: Storage = RUNS,
    as_json: Json = False,
) -> None:
    """What a search has found so far: its trials, which settings mattered, and plots of both."""
    from avb_service.storage import check_place

    if plots is not None:
        check_place(plots / "rounds.png")
    found = avb_service.search(name, storage=storage)
    files = [] if plots is None else _drawn(found.plots, plots)
    tell(as_json, found)
    if files and not as_json:
        print("\n".join(each["file"] for each in files))


@app.command()
def leaderboard(as_json: Json = False) -> None:
    """All registered models, and those that were scored here and not made here, best first."""
    tell(as_json, avb_service.leaderboard())


@app.command()
def pull(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="Where to; absent or empty, or holding that very model.")],
    as_json: Json = False,
) -> None:
    """Copy a registered model into a folder, verified."""
    folder = avb_service.pull(model, directory)
    text = f"{model} is in {folder}; load it with avb_service.load({str(folder)!r})"
    say(as_json, {"model": model, "folder": str(folder)}, text)


@app.command()
def evaluate(
    model: Model,
    estimators: Estimators = None,
    budget: Annotated[
        Budget | None, typer.Option(help="quick unless given; standard: annealing too; certified: a certificate, too.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML file with keys of the `likelihood` section.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Score on so many cores, through Ray; 1 stays here.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Keep scored data here; called again, it goes on.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", "--figure", help="Draw what is known on one axis, to this .png.")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="Of the pixels, for a model without p(x|z): a GAN.")] = None,
    data_root: DataRoot = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Log-likelihoods of held-out data, each with its kind and error bar; with a certificate where asked for."""
    from avb_service.storage import check_place, writing

    if plot is not None:
        check_name(plot, ".png")
        check_place(plot)
    found = avb_service.evaluate(
        model,
        estimators=estimators or (),
        budget=budget,
        settings=settings,
        noise=noise,
        data_root=data_root,
        limit=limit,
        workers=workers,
        keep=keep,
        display=display(as_json),
    )
    tell(as_json, found)
    if plot is not None:
        from avb_service.figures import to_png

        with writing(plot):
            plot.write_bytes(to_png(found.plot()))


@app.command()
def compare(first: Model, second: Model, as_json: Json = False) -> None:
    """Which of two models is better, datum by datum on the same held-out data."""
    tell(as_json, avb_service.compare(first, second))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION")],
    override: Annotated[str | None, typer.Option(metavar="REASON", help="Promote it all the same; recorded.")] = None,
    as_json: Json = False,
) -> None:
    """Make a version champion: for a better held-out likelihood with a certificate, or for a reason of yours."""
    tell(as_json, avb_service.promote(model, override))


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
    from avb_service.storage import check_place, writing

    check_name(file, ".png", ".npy")
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
    say(as_json, row, f"{n} {'means of p(x|z)' if means else shows} of {model} are in {file}")


@app.command("figures", hidden=True)  # as it was called
@app.command()
def plots(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is absent.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Draw every plot that a model can have."""
    from avb_service.storage import check_place

    check_place(directory / "samples.png")
    drawn = _drawn(avb_service.plots(model, data_root), directory)
    say(as_json, drawn, "\n".join(each["file"] for each in drawn))


def _drawn(plots: "Mapping[str, Figure]", directory: Path) -> list[dict[str, str]]:
    """Plots as files of a folder: their names and paths."""
    from avb_service.figures import to_png
    from avb_service.storage import writing

    drawn = []
    for name, plot in plots.items():
        path = directory / f"{name}.png"
        with writing(path):
            path.write_bytes(to_png(plot))
        drawn.append({"figure": name, "file": str(path)})
    return drawn
