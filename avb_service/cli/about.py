"""Commands about what there is to train, and what it would take.

Floor 10. What a command needs is imported when it runs, so that help answers at once.
"""

from typing import Annotated

import typer

from avb_service.cli.options import (
    Json,
    Set,
    tell,
)
from avb_service.service import about

app = typer.Typer()


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="This one alone; what a package adds is imported for it.")] = None,
    as_json: Json = False,
) -> None:
    """The methods, and the presets that train them."""
    tell(as_json, about.methods(name))


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
    tell(as_json, about.plan(source, assign or (), workers=workers, gpus=gpus, bandwidth=bandwidth))


@app.command()
def settings(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset (see `avb methods`) or YAML file.")],
    assign: Set = None,
    as_json: Json = False,
) -> None:
    """All settings of a preset or file: the path that --set takes, the value, and what it is."""
    tell(as_json, about.settings(source, assign or ()))


@app.command()
def datasets(as_json: Json = False) -> None:
    """The data sets that have a name."""
    tell(as_json, about.datasets())
