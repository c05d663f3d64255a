"""Values that show themselves: as text, in a terminal, in a notebook.

Floor 9.
"""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from avb_service import rows, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 120  # columns, where it is shown to no terminal


class Shown(ABC):
    """A result that shows itself: as text, in a terminal, in a notebook."""

    @property
    @abstractmethod
    def rows(self) -> Any:  # noqa: ANN401  any JSON value
        """Plain values under keys that stay."""

    @abstractmethod
    def show(self, console: Console | None = None) -> None:
        """Print it, to the terminal by default."""

    def __str__(self) -> str:
        """As a terminal shows it, without colours."""
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        self.show(console)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    __repr__ = __str__

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
        self.show(console)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>')


@dataclass(frozen=True, repr=False)
class Listing(Shown, Sequence[rows.Row]):
    """Rows that have the same keys.

    Attributes:
        entries: plain values under keys that stay.
        table: prints them.
    """

    entries: tuple[rows.Row, ...]
    table: Callable[..., None]

    @property
    def rows(self) -> list[rows.Row]:
        """All of them."""
        return list(self.entries)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  as a tuple
        """One of them."""
        return self.entries[index]

    def show(self, console: Console | None = None) -> None:
        """A table."""
        self.table(self.entries, console=console)


class Plots(Shown, dict[str, "Figure"]):
    """Plots by name; a notebook shows them one below the other."""

    @property
    def rows(self) -> list[str]:
        """Their names."""
        return list(self)

    def show(self, console: Console | None = None) -> None:
        """Their names, in a line."""
        (console or tables.out).print(", ".join(self), markup=False, highlight=False)

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{name}</h4>{image(figure)}" for name, figure in self.items())


def image(figure: "Figure", attributes: str = "") -> str:
    """A plot in HTML, with its bytes in it."""
    from avb_service.figures import to_png

    picture = base64.b64encode(to_png(figure)).decode()
    return f'<img src="data:image/png;base64,{picture}"{attributes}>'
