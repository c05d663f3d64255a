"""What is known of a model's likelihood, on one axis.

Floor 5. A line has a name on the left and a number on the right, and no words between them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from avb_service.errors import DataError
from avb_service.figures.canvas import (
    FAINT,
    HAIRLINE,
    INK,
    PALETTE,
    TEXT,
    blank,
    number,
    place,
    text_width,
    tidy,
)
from avb_service.records import Estimate, mean_and_stderr

AXIS, BESIDE = 520, 16  # pixels: the axis; between it and the names, and the numbers
INDENT = 12  # pixels: of a line below its heading; of a distance, twice
LINE, BELOW = 38, 120  # pixels: of a line; of the ticks, their name and the legend
HEADING = TEXT + 0.5
ERRORS = 2  # standard errors that a bar reaches

# Name of an estimator -> what people call it, from top to bottom.
ELBOS = {
    "elbo_adversarial": "by the adversary",
    "elbo_corrected": "by a fresh adversary",
    "elbo": "ELBO",
    "elbo_ceiling": "ceiling: q as a Gaussian",
}
LIKELIHOODS = {
    "iwae_mixture": "IWAE, mixture",
    "iwae_refined": "IWAE, refined start",
    "iwae": "IWAE",
    "ais_prior": "AIS from the prior",
    "ais_doubled": "AIS, twice as long",
    "ais_own": "AIS from q's own Gaussian",
    "ais": "AIS",
    "quadrature": "quadrature",
    "enumeration": "enumeration",
    "ppca": "closed form",
}

PROVEN, IMPOSSIBLE = "#b3261e", "#f6dcd9"
LOOK: dict[str, dict[str, Any]] = {
    "lower_bound": {"marker": ">", "color": PALETTE[0], "label": "lower bound: the truth is to its right"},
    "upper_bound": {"marker": "<", "color": PALETTE[3], "label": "upper bound: the truth is to its left"},
    "estimate": {"marker": "o", "color": PALETTE[1], "label": "estimate: the truth may be on either side"},
    "exact": {"marker": "D", "color": INK, "label": "exact"},
}


class Row(NamedTuple):
    """An estimate, and what people call it."""

    name: str
    estimate: Estimate

    @property
    def number(self) -> str:
        """The estimate with its standard error, for people."""
        digits = ".2f" if not self.estimate.stderr < 0.1 else ".3f"
        return f"{number(self.estimate.value, digits)} ± {number(self.estimate.stderr, digits)}"


class Distance(NamedTuple):
    """How far two values are apart; it stands below the estimate that it says something about."""

    name: str
    number: str
    ends: tuple[float, float]
    color: str


class Group(NamedTuple):
    """Lines below a heading, and a zone behind them in which their truth cannot be.

    Attributes:
        heading: what all lines are of.
        lines: from top to bottom.
        impossible: left and right end of the zone, where there is one.
        meaning: of the zone.
    """

    heading: str
    lines: Sequence[Row | Distance]
    impossible: tuple[float, float] | None
    meaning: str


def bounds(estimates: Sequence[Estimate], gap: float | None = None) -> Figure:
    """Every estimate of a model's ELBO and of its log-likelihood, and zones where the truth cannot be.

    No ELBO of this q is above the ceiling, nor above a log p(x) that is exact; log p(x) is not below a lower bound.

    Args:
        estimates: those of other quantities (Parzen windows) are left out.
        gap: of `bdmc` on simulated data, nats per datum; drawn from AIS to the right.

    Raises:
        DataError: none of the estimates is of an ELBO or of a log-likelihood.
    """
    elbos, likelihoods = _rows(estimates, ELBOS), _rows(estimates, LIKELIHOODS)
    if not elbos + likelihoods:
        names = ", ".join(estimate.name for estimate in estimates) or "none"
        raise DataError(f"a plot of bounds needs an ELBO or a log-likelihood, given {names}; evaluate one")
    count = max(len(row.estimate.per_datum) for row in elbos + likelihoods)
    sure = [row.estimate for row in elbos + likelihoods if len(row.estimate.per_datum) == count]  # of the same data
    above = min((e for e in sure if e.kind in ("upper_bound", "exact")), key=lambda e: e.value, default=None)
    below = max((e for e in sure if e.kind in ("lower_bound", "exact")), key=lambda e: e.value, default=None)
    beyond = (above.value, math.inf) if above else None
    short = (-math.inf, below.value) if below else None
    groups = [
        Group("ELBO of the model's q(z|x)", _with_errors(elbos, above), beyond, "no ELBO of this q is here"),
        Group("log p(x)", _with_gap(likelihoods, gap), short, "log p(x) is not here"),
    ]
    subtitle = f"means over {count} data ± standard error, bars twice that; the error is common to all rows"
    return _drawn([group for group in groups if group.lines], subtitle)


def _rows(estimates: Sequence[Estimate], names: Mapping[str, str]) -> list[Row]:
    """The estimates by these estimators, in their order, as people call them."""
    most = max((len(estimate.per_datum) for estimate in estimates), default=0)
    rows: list[Row] = []
    for name, spoken in names.items():
        for estimate in estimates:
            key = estimate.key
            if key.estimator == name:
                draws = "" if key.draws is None else f", {key.draws} draws"
                noise = "" if key.noise is None else f", noise {key.noise:g}"
                few = f", {len(estimate.per_datum)} data" if len(estimate.per_datum) < most else ""
                rows.append(Row(spoken + draws + noise + few, estimate))
    return rows


def _with_errors(rows: Sequence[Row], above: Estimate | None) -> list[Row | Distance]:
    """The rows, and below an estimate how far it is beyond what its truth can be, where that is more than chance."""
    lines: list[Row | Distance] = []
    for row in rows:
        lines.append(row)
        estimate = row.estimate
        if above is None or estimate.kind != "estimate" or len(estimate.per_datum) != len(above.per_datum):
            continue
        excess, stderr = mean_and_stderr(estimate.per_datum - above.per_datum)
        if excess > ERRORS * stderr:
            by = number(excess, ".2g" if excess < 1 else ".1f")
            lines.append(Distance("proven wrong by at least", by, (above.value, estimate.value), PROVEN))
    return lines


def _with_gap(rows: Sequence[Row], gap: float | None) -> list[Row | Distance]:
    """The rows, and below AIS how far the two bounds were apart on data that the model drew itself."""
    lines: list[Row | Distance] = list(rows)
    first = next((line for line, row in enumerate(rows) if row.estimate.key.estimator == "ais"), None)
    if gap is not None and first is not None:
        value, color = rows[first].estimate.value, LOOK["upper_bound"]["color"]
        lines.insert(first + 1, Distance("gap on simulated data", number(gap, ".2g"), (value, value + gap), color))
    return lines


def _drawn(groups: Sequence[Group], subtitle: str) -> Figure:
    """Names, axis and numbers side by side, as wide as their texts are."""
    lines = [line for group in groups for line in group.lines]
    left = BESIDE + max(_indent(line) + text_width(line.name, TEXT) for line in lines)
    left = max(left, BESIDE + max(text_width(group.heading, HEADING, weight="bold") for group in groups))
    right = BESIDE + max(text_width(line.number, TEXT) for line in lines)
    height = LINE * (len(lines) + len(groups))
    figure = blank(left + AXIS + right, height + BELOW, "What is known of log p(x)", subtitle)
    axes = place(figure, left, AXIS, height)
    axes.set(xlim=_limits(lines), ylim=(height / LINE, 0), yticks=[])
    top = 0
    for group in groups:
        _group(axes, top, left, group)
        top += 1 + len(group.lines)
    _finish(axes, lines, any(group.impossible for group in groups))
    return figure


def _indent(line: Row | Distance) -> int:
    return INDENT if isinstance(line, Row) else 2 * INDENT


def _limits(lines: Sequence[Row | Distance]) -> tuple[float, float]:
    """All bars and distances, with a margin."""
    ends = [end for line in lines for end in (_reach(line.estimate) if isinstance(line, Row) else line.ends)]
    margin = 0.12 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _reach(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the bar."""
    bar = ERRORS * estimate.stderr if math.isfinite(estimate.stderr) else 0.0
    return estimate.value - bar, estimate.value + bar


def _group(axes: Axes, top: int, left: int, group: Group) -> None:
    """A heading, and its lines below it; `left` is how many pixels there are for names."""
    _zone(axes, top, group)
    side: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    axes.text(-left / AXIS, top + 0.62, group.heading, size=HEADING, weight="bold", color=INK, **side)
    for y, line in enumerate(group.lines, top + 1):
        color = INK if isinstance(line, Row) else line.color
        axes.text((_indent(line) - left) / AXIS, y + 0.5, line.name, size=TEXT, color=color, **side)
        axes.text(1 + BESIDE / AXIS, y + 0.5, line.number, size=TEXT, color=color, **side)
        if isinstance(line, Row):
            look = LOOK[line.estimate.kind]
            axes.plot(_reach(line.estimate), (y + 0.5, y + 0.5), color=look["color"], alpha=0.55)
            marker, value = look["marker"], line.estimate.value
            axes.plot(value, y + 0.5, marker=marker, color=look["color"], markersize=6, zorder=3)
        else:
            start, end = line.ends
            heights = (y + 0.4, y + 0.5, y + 0.5, y + 0.4)
            axes.plot((start, start, end, end), heights, color=line.color, linewidth=1.0)


def _zone(axes: Axes, top: int, group: Group) -> None:
    """Where nothing true can be, behind a group; in words where there is room for them."""
    if group.impossible is None:
        return
    left, right = axes.get_xlim()
    start, end = max(left, group.impossible[0]), min(right, group.impossible[1])
    height = len(group.lines) + 0.6
    axes.add_patch(Rectangle((start, top + 0.3), end - start, height, color=IMPOSSIBLE, linewidth=0, zorder=0))
    look: dict[str, Any] = {"size": TEXT - 0.5, "style": "italic"}
    if AXIS * (end - start) / (right - left) > text_width(group.meaning, **look) + BESIDE:
        axes.text((start + end) / 2, top + 0.62, group.meaning, color=PROVEN, ha="center", va="center", **look)


def _finish(axes: Axes, lines: Sequence[Row | Distance], zones: bool) -> None:
    """Ticks, their name, and what the markers mean."""
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color=HAIRLINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("nats per datum", size=TEXT, color=FAINT)
    drawn = {line.estimate.kind for line in lines if isinstance(line, Row)}
    kinds = [kind for kind in LOOK if kind in drawn]
    handles: list[Line2D | Patch] = [Line2D([], [], linestyle="", markersize=5, **LOOK[kind]) for kind in kinds]
    if zones:
        handles.append(Patch(color=IMPOSSIBLE, label="where the truth is proven not to be"))
    axes.figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        ncols=2,
        frameon=False,
        fontsize=TEXT - 0.5,
        labelcolor=INK,
        handletextpad=0.4,
        columnspacing=2.0,
    )
