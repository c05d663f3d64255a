"""Options that several commands have, and how they print what they tell.

Floor 10.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from avb_service import rows
from avb_service.display import Display
from avb_service.errors import UserError
from avb_service.shown import Shown
from avb_service.tables import ERR

RUNS = Path("runs")
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
# Ours of the likelihood floor, which takes seconds to import; a test holds them to it.
ESTIMATORS = (
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
)
Budget = Literal["quick", "standard", "certified"]


def estimator(name: str) -> str:
    """The name of an estimator, ours or theirs; one that went by another is answered with its new one."""
    if name == "iwae_refined":
        raise typer.BadParameter(f"{name} is no more: iwae_mixture has taken its place; use that")
    from avb_service.kinds import offered

    if name not in (known := (*ESTIMATORS, *offered("estimators"))):
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, known))}")
    return name


Estimators = Annotated[
    list[str] | None,
    typer.Option(
        "--estimator",
        metavar="NAME",
        parser=estimator,
        help=f"Only this estimator; repeatable. Names: {', '.join(ESTIMATORS)}; and those of installed packages.",
    ),
]


def display(as_json: bool) -> Display:
    """What a person sees meanwhile; a program's output is followed by nobody."""
    return Display(ERR, bars=not as_json)


def check_name(path: Path, *suffixes: str) -> None:
    """A file of a kind that we write."""
    if path.suffix not in suffixes:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")


def tell(as_json: bool, result: Shown) -> None:
    """Print a result, for a program or for a person."""
    say(as_json, result.rows, result.show)


def say(as_json: bool, told: object, shown: str | Callable[[], None] | None) -> None:
    """Print what a program is told, or show a person the same, as a text or by a function that prints it."""
    if as_json:
        print(rows.as_json(told))
    elif callable(shown):
        shown()
    elif shown:
        print(shown)
