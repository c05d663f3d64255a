"""What a person sees while something long goes on: lines, and bars with the time left.

Floor 8.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from avb_service.distributed.progress import Bars
    from avb_service.likelihood.scoring import Progress

ERR = Console(stderr=True)


class Display:
    """Lines and bars on a console; in a notebook, where bars are not drawn anew, lines alone.

    Args:
        console: where to; what is printed for programs goes elsewhere.
        bars: whether to show how far training and scoring have come, besides what is being done.
        quiet: show nothing at all.
    """

    def __init__(self, console: Console = ERR, *, bars: bool = True, quiet: bool = False) -> None:
        self._console, self._bars, self._quiet = console, bars and not quiet, quiet

    def note(self, text: str) -> None:
        """Say what is going on."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def training(self, rounds: int) -> "Iterator[Bars]":
        """Told of reports of a model, and how far they have come of so many rounds."""
        from avb_service.distributed.progress import Bars

        with closing(Bars(rounds, quiet=not self._bars, console=self._console)) as bars:
            yield bars

    @contextmanager
    def scoring(self) -> "Iterator[Callable[[str], Progress]]":
        """Told of each estimator and of the data that it has scored; a bar for each that is not done."""
        from rich.progress import MofNCompleteColumn, Progress

        shown = self._bars and not self._console.is_jupyter
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=self._console, disable=not shown, transient=True) as bars:

            def progress(name: str) -> "Callable[[int, int], None]":
                bar = bars.add_task(name, total=None)
                return lambda done, total: bars.update(bar, completed=done, total=total, visible=done < total)

            yield progress
