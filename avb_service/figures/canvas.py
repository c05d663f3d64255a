"""How every plot looks: its header, its palette, its mosaics; and how it leaves as a PNG or an array.

Floor 5. Plots are made without pyplot and without rcParams, so that threads may draw at the same time and a
machine without a display draws the same picture. Text is Unicode and never mathtext, whose parser is shared.
"""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from torch import Tensor

DPI = 144
MARGIN = 28
HEADER = 92
WIDTH = 640  # near a mosaic's width, and a plot's: thumbnails show about half of it
NARROWEST = 440  # what a subtitle needs
LARGEST_CELL = 32
LINE = 16  # of the smaller text, with room to the next
LEGEND = 96  # what a legend of short names needs
HEAD, SIDE = 24, 36  # what words above columns need, and words beside rows

STRIP = (np.array([222, 230, 238]), np.array([14, 54, 92]))  # 0 and 1 in a vector, told from the page at both ends
INK, FAINT, HAIRLINE = "#222222", "#6b6b6b", "#d9d9d9"
TITLE, TEXT, SMALLEST = 11.5, 8.0, 4.0

# Petroff 2021, "Accessible color sequences for data visualization": told apart with every colour vision deficiency.
PALETTE = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#832db6",
    "#92dadd",
    "#a96b59",
    "#e76300",
    "#94a4a2",
    "#717581",
    "#b9ac70",
)


class Picture(Figure):
    """A plot that shows itself in a notebook, whether or not pyplot is imported there."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def blank(width: int, height: int, title: str, subtitle: str) -> Figure:
    """An empty plot with its header.

    Args:
        width: pixels between the margins.
        height: pixels below the header.
        title: what is seen.
        subtitle: how it was made.
    """
    total = (max(width, NARROWEST) + 2 * MARGIN, height + HEADER + MARGIN)
    figure = Picture(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _line(figure, 14, title, size=TITLE, weight="bold", color=INK)
    _line(figure, 45, subtitle, size=TEXT, color=FAINT)
    return figure


def caption(figure: Figure, text: str) -> Figure:
    """The same plot; below its subtitle stands what it is of: the model, the round, whose data."""
    _line(figure, 66, text, size=TEXT, color=FAINT)
    return figure


def _line(figure: Figure, top: int, text: str, size: float, **look: Any) -> None:  # noqa: ANN401
    """A line of the header, so many pixels from the top; smaller where it would be too long for the plot."""
    width, height = figure.get_size_inches() * DPI
    line = figure.text(MARGIN / width, 1 - top / height, text, size=size, va="top", **look)
    while line.get_window_extent().width > width - 2 * MARGIN and size > SMALLEST:
        size -= 0.25
        line.set_fontsize(size)


def text_width(text: str, size: float, **look: Any) -> int:  # noqa: ANN401  whatever matplotlib's takes
    """How many pixels of a plot a text takes."""
    figure = Figure(dpi=DPI)
    FigureCanvasAgg(figure)
    return math.ceil(figure.text(0, 0, text, size=size, **look).get_window_extent().width)


def place(figure: Figure, left: int, width: int, height: int, down: int = 0) -> Axes:
    """Axes of an exact size in pixels, so many pixels from the left margin and down from the header."""
    total_width, total_height = figure.get_size_inches() * DPI
    bottom = total_height - HEADER - down - height
    return figure.add_axes(
        ((MARGIN + left) / total_width, bottom / total_height, width / total_width, height / total_height)
    )


def tidy(axes: Axes) -> None:
    """Thin axes and small grey ticks."""
    axes.tick_params(labelsize=TEXT, color=HAIRLINE, labelcolor=FAINT, length=3)
    for side, spine in axes.spines.items():
        spine.set(color=HAIRLINE, visible=side in ("left", "bottom"))


def legend(axes: Axes, **options: Any) -> Legend:  # noqa: ANN401  whatever matplotlib's takes
    """A legend to the right of the axes, where it covers nothing; `LEGEND` pixels are enough for short names."""
    usual: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.0, 1.0),
        "frameon": False,
        "fontsize": TEXT,
        "title_fontsize": TEXT,
        "labelcolor": INK,
        "handletextpad": 0.1,
        "borderpad": 0,
        "labelspacing": 0.35,
    }
    made = axes.legend(**{**usual, **options})
    made.get_title().set_color(FAINT)
    return made


def columns_for(n: int, height: int, width: int) -> int:
    """How many columns make n tiles of that size nearly square and leave few places empty."""
    ideal = math.sqrt(n * height / width)
    return min(range(1, n + 1), key=lambda k: abs(math.log(k / ideal)) + (-n % k) / n)


def mosaic(
    tiles: Tensor,
    title: str,
    subtitle: str,
    columns: Sequence[int],
    gap: int = 4,
    group: int = 0,
    heads: Sequence[str] = (),
    sides: Sequence[str] = (),
) -> Figure:
    """Images side by side, each of their pixels an exact square of the plot's; strips as high as a line of text.

    Args:
        tiles: intensities in [0, 1], [N, C, H, W]; vectors [N, 1, 1, D] are strips of blue, other single channels are
            grey, three are red, green and blue, and any other number stands side by side.
        title: what is seen.
        subtitle: how it was made.
        columns: how many tiles a row has, in sections that stand apart: (1, 8, 1) for eight between two.
        gap: pixels between tiles.
        group: rows that stand together; 0 for all.
        heads: what stands above the columns.
        sides: what stands to the left of the rows.
    """
    images = _rgb(tiles)
    count, height, width = images.shape[:3]
    per_row = sum(columns)
    scale = min(LARGEST_CELL, max(1, round((WIDTH - gap * (per_row - 1)) / (per_row * width))))
    starts = {sum(columns[:i]) for i in range(1, len(columns))}
    rows = math.ceil(count / per_row)
    lefts = _offsets(width * scale, [gap * (4 if i in starts else 1) for i in range(per_row)])
    line = math.ceil(LINE * _shrink(lefts[-1] + width * scale))
    images = images.repeat(max(scale, line) if height == 1 else scale, axis=1).repeat(scale, axis=2)
    height, width = images.shape[1:3]
    tops = _offsets(height, [gap * (4 if group and i % group == 0 else 1) for i in range(rows)])
    sheet = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = tops[i // per_row], lefts[i % per_row]
        sheet[top : top + height, left : left + width] = image
    above = {left + width / 2: head for left, head in zip(lefts, heads, strict=False)}
    beside = {top + height / 2: side for top, side in zip(tops, sides, strict=False)}
    return _sheet(sheet, title, subtitle, above, beside)


def _offsets(size: int, gaps: list[int]) -> list[int]:
    """Where tiles of a size begin, with a gap before each but the first."""
    return (np.arange(len(gaps)) * size + np.cumsum([0, *gaps[1:]])).tolist()


def _shrink(width: int) -> float:
    """How many times larger a sheet of that width is than what a screen shows."""
    return max(1.0, width / (2 * WIDTH))


def side_by_side(tiles: Tensor) -> Tensor:
    """Channels that are no colours as panels from left to right: [N, C, H, W] as [N, 1, H, CW], unless C is 1 or 3."""
    return tiles if tiles.shape[1] in (1, 3) else tiles.transpose(1, 2).flatten(2)[:, None]


def _rgb(tiles: Tensor) -> np.ndarray:
    """[N, C, H, W] in [0, 1] to bytes [N, H, W', 3]; what is not a number is left as white as the page."""
    colours = side_by_side(tiles).float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    if colours.shape[-1] == 1:
        low, high = STRIP if colours.shape[1] == 1 else (0, np.full(3, 255))
        colours = (low + colours * (high - low)) / 255
    return np.rint(255 * np.nan_to_num(colours, nan=1.0)).astype(np.uint8)


def _sheet(
    sheet: np.ndarray, title: str, subtitle: str, heads: Mapping[float, str], sides: Mapping[float, str]
) -> Figure:
    """The plot of a sheet of pixels, one to one unless it is too large for a screen; words by their places on it."""
    height, width = sheet.shape[:2]
    shrink = _shrink(width)
    size = round(width / shrink), round(height / shrink)
    left, top = SIDE if sides else 0, HEAD if heads else 0
    scale = f", shown at {1 / shrink:.0%}" if shrink > 1 else ""
    figure = blank(size[0] + left, size[1] + top, title, subtitle + scale)
    axes = place(figure, left, *size, down=top)
    axes.imshow(sheet, aspect="auto", interpolation="nearest" if shrink == 1 else "antialiased")
    axes.set_axis_off()
    look: dict[str, Any] = {"size": TEXT - 1, "color": FAINT, "textcoords": "offset points", "annotation_clip": False}
    for x, text in heads.items():
        axes.annotate(text, (x, 0), (0, 3), ha="center", va="bottom", **look)
    for y, text in sides.items():
        axes.annotate(text, (0, y), (-4, 0), ha="right", va="center", **look)
    return figure


def number(value: float, spec: str) -> str:
    """A number as text, with a minus sign and not a hyphen."""
    return format(value, spec).replace("-", "−")


def to_png(figure: Figure) -> bytes:
    """The plot as a PNG file; the same plot gives the same bytes."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, metadata={"Software": None})
    return file.getvalue()


def to_array(figure: Figure) -> np.ndarray:
    """The plot as bytes [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
