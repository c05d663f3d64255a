"""What a person sees while something long goes on: lines, and bars with the time left.

Floor 8.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from avb_service.tables import ERR, line

if TYPE_CHECKING:
    from avb_service.distributed.progress import Bars
    from avb_service.likelihood.scoring import Progress

# What a cell of a notebook prints: lines that stay together, where each would be a block of its own otherwise. Kernels
# ask for colours, as terminals have them, but draw no bar anew.
CELL = Console(force_jupyter=False, force_terminal=False)


class Display:
    """Lines and bars on a terminal; in a notebook, lines alone.

    Args:
        console: where to; what is printed for programs goes elsewhere. The terminal or the notebook's cell by default.
        bars: whether to show how far training and scoring have come, besides what is being done.
        quiet: show nothing at all.
    """

    def __init__(self, console: Console | None = None, *, bars: bool = True, quiet: bool = False) -> None:
        self._console = console or (CELL if ERR.is_jupyter else ERR)
        self._bars, self._quiet = bars and not quiet, quiet

    def note(self, text: str) -> None:
        """Say what is going on."""
        if not self._quiet:
            line(text, self._console)

    @contextmanager
    def training(self, rounds: int | None = None) -> "Iterator[Bars]":
        """Told of reports of models, and how far they have come of so many rounds, where all have as many."""
        from avb_service.distributed.progress import Bars

        with closing(Bars(rounds, quiet=not self._bars, console=self._console)) as bars:
            yield bars

    @contextmanager
    def scoring(self) -> "Iterator[Callable[[str], Progress]]":
        """Told of each estimator and of the data that it has scored; a bar for each that is not done."""
        from rich.progress import MofNCompleteColumn, Progress

        shown = self._bars and self._console.is_terminal
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, disable=not shown, transient=True) as bars:

            def progress(name: str) -> "Callable[[int, int], None]":
                bar = bars.add_task(name, total=None)
                return lambda done, total: bars.update(bar, completed=done, total=total, visible=done < total)

            yield progress
