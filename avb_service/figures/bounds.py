"""What is known of a model's likelihood, on one axis.

Floor 5.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from avb_service.errors import DataError
from avb_service.figures.canvas import FAINT, HAIRLINE, INK, PALETTE, TEXT, blank, number, place, tidy
from avb_service.records import Estimate, mean_and_stderr

LABELS, AXIS, FIGURES = 262, 520, 150  # pixels: names, axis, figures
ROW, BELOW = 38, 120  # pixels: of a row; of the ticks, their name and the legend
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

Row = tuple[str, Estimate]


def bounds(estimates: Sequence[Estimate], gap: float | None = None) -> Figure:
    """Every figure of a model's ELBO and of its log-likelihood, and zones where the truth cannot be.

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
        raise DataError(f"a figure of bounds needs an ELBO or a log-likelihood, given {names}; evaluate one")
    count = max(len(e.per_datum) for _, e in elbos + likelihoods)
    lines = len(elbos + likelihoods) + bool(elbos) + bool(likelihoods)
    subtitle = f"means over {count} data ± standard error, bars twice that; the error is common to all rows"
    figure = blank(LABELS + AXIS + FIGURES, ROW * lines + BELOW, "What is known of log p(x)", subtitle)
    axes = place(figure, LABELS, AXIS, ROW * lines)
    low, high = _limits(elbos + likelihoods, gap)
    axes.set(xlim=(low, high), ylim=(lines, 0), yticks=[])
    sure = [e for _, e in elbos + likelihoods if len(e.per_datum) == count]  # means of other data are not comparable
    above = min((e for e in sure if e.kind in ("upper_bound", "exact")), key=lambda e: e.value, default=None)
    below = max((e for e in sure if e.kind in ("lower_bound", "exact")), key=lambda e: e.value, default=None)
    if elbos:
        _zone(axes, 0, len(elbos), (high if above is None else above.value, high), "no ELBO of this q is here")
        _group(axes, 0, "ELBO of the model's q(z|x)", elbos, above)
    if likelihoods:
        top = len(elbos) + bool(elbos)
        _zone(axes, top, len(likelihoods), (low, low if below is None else below.value), "log p(x) is not here")
        _group(axes, top, "log p(x)", likelihoods, None)
        _draw_gap(axes, top, likelihoods, gap)
    _finish(axes, elbos + likelihoods, (ROW * lines + BELOW) / (ROW * lines))
    return figure


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
                rows.append((spoken + draws + noise + few, estimate))
    return rows


def _limits(rows: Sequence[Row], gap: float | None) -> tuple[float, float]:
    """All bars and the gap, with a margin."""
    low, high = min(e.value - _bar(e) for _, e in rows), max(e.value + _bar(e) for _, e in rows)
    annealed = next((e for _, e in rows if e.key.estimator == "ais"), None)
    if annealed is not None and gap is not None:
        high = max(high, annealed.value + gap)
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


def _bar(estimate: Estimate) -> float:
    return ERRORS * estimate.stderr if math.isfinite(estimate.stderr) else 0.0


def _zone(axes: Axes, top: int, rows: int, extent: tuple[float, float], meaning: str) -> None:
    """Where nothing true can be, behind a group; in words where there is room for them."""
    start, end = extent
    axes.add_patch(Rectangle((start, top + 0.3), end - start, rows + 0.6, color=IMPOSSIBLE, linewidth=0, zorder=0))
    left, right = axes.get_xlim()
    if end - start > 0.35 * (right - left):
        look: dict[str, Any] = {"ha": "center", "va": "center", "style": "italic"}
        axes.text((start + end) / 2, top + 0.62, meaning, size=TEXT - 0.5, color=PROVEN, **look)


def _group(axes: Axes, top: int, title: str, rows: Sequence[Row], above: Estimate | None) -> None:
    """A heading, and its rows below it; `above` is what their truth is not above."""
    side = axes.get_yaxis_transform()
    axes.text(-LABELS / AXIS, top + 0.62, title, transform=side, size=TEXT + 0.5, weight="bold", color=INK, va="center")
    for line, (name, estimate) in enumerate(rows, top + 1):
        _row(axes, line + 0.5, name, estimate)
        if above is not None and estimate.kind == "estimate" and len(estimate.per_datum) == len(above.per_datum):
            _draw_error(axes, line + 0.5, estimate, above)


def _row(axes: Axes, y: float, name: str, estimate: Estimate) -> None:
    """A name, a marker with its bar, and the figure."""
    look, side = LOOK[estimate.kind], axes.get_yaxis_transform()
    reach = (estimate.value - _bar(estimate), estimate.value + _bar(estimate))
    axes.plot(reach, (y, y), color=look["color"], alpha=0.55)
    axes.plot(estimate.value, y, marker=look["marker"], color=look["color"], markersize=6, zorder=3)
    axes.text(-(LABELS - 12) / AXIS, y, name, transform=side, size=TEXT, color=INK, va="center")
    digits = ".2f" if not estimate.stderr < 0.1 else ".3f"
    text = f"{number(estimate.value, digits)} ± {number(estimate.stderr, digits)}"
    axes.text(1 + 14 / AXIS, y, text, transform=side, size=TEXT, color=INK, va="center")


def _draw_error(axes: Axes, y: float, estimate: Estimate, above: Estimate) -> None:
    """How far an estimate is beyond what its truth can be, where that is more than chance."""
    excess, stderr = mean_and_stderr(estimate.per_datum - above.per_datum)
    if not excess > ERRORS * stderr:
        return
    words = f"proven wrong, by {number(excess, '.2g' if excess < 1 else '.1f')} nats at least"
    where: dict[str, Any] = {"textcoords": "offset points", "size": TEXT - 0.5, "color": PROVEN, "va": "center"}
    left = _on_the_right(axes, estimate.value)
    end = estimate.value + (-_bar(estimate) if left else _bar(estimate))
    axes.annotate(words, (end, y), (-5 if left else 5, 0), ha="right" if left else "left", **where)
    axes.plot((above.value, estimate.value), (y + 0.3, y + 0.3), color=PROVEN, linewidth=1.0, solid_capstyle="butt")


def _on_the_right(axes: Axes, value: float) -> bool:
    left, right = axes.get_xlim()
    return value > (left + right) / 2


def _draw_gap(axes: Axes, top: int, rows: Sequence[Row], gap: float | None) -> None:
    """A bracket from AIS to the right: how far the two bounds were apart on data that the model drew itself."""
    lines = [line for line, (_, estimate) in enumerate(rows, top + 1) if estimate.key.estimator == "ais"]
    if gap is None or not lines:
        return
    value = rows[lines[0] - top - 1][1].value
    y = lines[0] + 0.78
    axes.plot(
        (value, value, value + gap, value + gap),
        (y - 0.08, y, y, y - 0.08),
        color=LOOK["upper_bound"]["color"],
        linewidth=1.0,
    )
    where: dict[str, Any] = {"textcoords": "offset points", "size": TEXT - 1, "color": FAINT, "va": "center"}
    words = f"gap on simulated data: {number(gap, '.2g')}"
    if _on_the_right(axes, value):
        axes.annotate(words, (value, y), (-4, 0), ha="right", **where)
    elif _on_the_right(axes, value + gap):  # where the figures begin
        axes.annotate(words, (value + gap / 2, y), (0, 6), ha="center", **where)
    else:
        axes.annotate(words, (value + gap, y), (4, 0), ha="left", **where)


def _finish(axes: Axes, rows: Sequence[Row], scale: float) -> None:
    """Ticks, their name, and what the markers mean."""
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", color=HAIRLINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("nats per datum", size=TEXT, color=FAINT)
    kinds = [kind for kind in LOOK if any(estimate.kind == kind for _, estimate in rows)]
    handles: list[Line2D | Patch] = [Line2D([], [], linestyle="", markersize=5, **LOOK[kind]) for kind in kinds]
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
