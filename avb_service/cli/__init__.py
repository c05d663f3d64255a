"""The `avb` command.

Floor 10.
"""

import gc
import os
import sys
import traceback
from typing import Annotated

import typer

from avb_service.cli import about, host, models
from avb_service.errors import UserError
from avb_service.service.models import prepare
from avb_service.tables import ERR, line

app = typer.Typer(
    help="Train, search, score and publish latent-variable models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (models, host, about):
    app.add_typer(part.app)


@app.callback()
def common(
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    """Options of all commands."""
    if show_traceback:
        os.environ["AVB_TRACEBACK"] = "1"


def main() -> None:
    """The `avb` command."""
    # An import makes many objects and hardly any garbage: searching for it after each 700 new objects, as Python does,
    # takes a sixth of the time in which a command starts.
    gc.set_threshold(10_000)
    guarded(app)


def guarded(command: typer.Typer) -> None:
    """Run a command; what the user can mend is one message and no traceback."""
    try:
        prepare()
        command()
    except UserError as error:
        if os.environ.get("AVB_TRACEBACK"):
            traceback.print_exc()
        line(f"error: {error}", ERR, style="red")
        sys.exit(error.exit_code)
