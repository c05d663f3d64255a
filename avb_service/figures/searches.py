"""What a search has found: how its trials went, what each setting did to them, and what the time was spent on.

Floor 5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avb_service.figures.canvas import DPI, FAINT, HAIRLINE, HEADER, INK, PALETTE, TEXT, WIDTH, blank, tidy

BEST, OTHER, LOST = PALETTE[2], PALETTE[0], PALETTE[8]
TRANSIENT = 0.2  # of all values, the lowest, which would flatten the rest
Value = float | int | str | bool


@dataclass(frozen=True)
class Tried:
    """One trial, in the order in which trials were begun.

    Attributes:
        objective: the best that it has reached, nats per datum; None where it has reached none.
        curve: round and objective of each report.
        settings: what was searched, by path.
        core_seconds: that it took from its beginning to its end.
        training: of these, what it trained for.
    """

    objective: float | None
    curve: Sequence[Sequence[float]]
    settings: Mapping[str, Value]
    core_seconds: float
    training: float


def rounds(trials: Sequence[Tried]) -> Figure:
    """The objective of every trial at each of its reports."""
    figure, (axes,) = _panels(1, "Trials", "the objective at each report; the best trial is red")
    best = _best(trials)
    for trial in sorted(trials, key=lambda each: each is best):
        if trial.curve:
            at, values = np.array(trial.curve, dtype=float).T
            colour, width = (BEST, 1.8) if trial is best else (OTHER, 0.9)
            axes.plot(at, values, marker="o", markersize=2.5, color=colour, linewidth=width)
    _labels(axes, "round", "nats per datum")
    _upper_part(axes, [value for trial in trials for _, value in trial.curve])
    return figure


def settings(trials: Sequence[Tried], importances: Mapping[str, float], logarithmic: Sequence[str]) -> Figure:
    """The objective against each setting that was searched, the most important first.

    Args:
        trials: of the search.
        importances: share of the objective's variance that each setting explains, by path.
        logarithmic: paths whose range is a logarithmic one.
    """
    reached = [trial for trial in trials if trial.objective is not None]
    paths = sorted(importances, key=lambda path: -importances[path])
    figure, grid = _panels(len(paths), "Settings", "the best that each trial has reached; the most important first")
    for axes, path in zip(grid, paths, strict=True):
        given = [trial for trial in reached if path in trial.settings]
        _against(axes, [trial.settings[path] for trial in given], [trial.objective for trial in given])
        if path in logarithmic:
            axes.set_xscale("log")
        axes.set_title(f"explains {importances[path]:.0%}", size=TEXT, color=INK, loc="left")
        _labels(axes, path, "nats per datum")
        _upper_part(axes, [trial.objective for trial in reached if trial.objective is not None])
    return figure


def pair(trials: Sequence[Tried], first: str, second: str, logarithmic: Sequence[str]) -> Figure:
    """The objective, as a colour, against two settings together."""
    reached = [trial for trial in trials if trial.objective is not None and {first, second} <= trial.settings.keys()]
    figure, (axes,) = _panels(1, "The two most important settings", "lighter is better; the best trial has a ring")
    x, y = (_numbers([trial.settings[path] for trial in reached]) for path in (first, second))
    values = np.array([trial.objective for trial in reached], dtype=float)
    low = np.quantile(values, TRANSIENT) if len(values) else 0.0
    shown = axes.scatter(x.at, y.at, c=np.maximum(values, low), cmap="viridis", s=46)
    if len(values):
        i = int(values.argmax())
        axes.scatter([x.at[i]], [y.at[i]], s=150, facecolors="none", edgecolors=BEST, linewidths=1.6)
    for path, found, axis, scale in ((first, x, axes.xaxis, axes.set_xscale), (second, y, axes.yaxis, axes.set_yscale)):
        if found.names:
            axis.set_ticks(range(len(found.names)), found.names)
        elif path in logarithmic:
            scale("log")
    _labels(axes, first, second)
    bar = figure.colorbar(shown, ax=axes, fraction=0.05)
    bar.ax.tick_params(labelsize=TEXT, labelcolor=FAINT, color=HAIRLINE)
    bar.set_label("nats per datum", size=TEXT, color=FAINT)
    return figure


def progress(trials: Sequence[Tried]) -> Figure:
    """The best that was known after so many trials, and after so much work."""
    figure, (by_trial, by_work) = _panels(2, "Progress", "the best so far, in the order in which trials were begun")
    reached = [-math.inf if trial.objective is None else trial.objective for trial in trials]
    best = np.maximum.accumulate(np.array([value if math.isfinite(value) else -np.inf for value in reached]))
    known = np.isfinite(best)
    minutes = np.cumsum([trial.core_seconds for trial in trials]) / 60
    for axes, at, what in ((by_trial, np.arange(1, len(trials) + 1), "trials"), (by_work, minutes, "core-minutes")):
        axes.step(at[known], best[known], where="post", color=BEST, linewidth=1.6)
        own = np.array(reached)
        axes.scatter(at[np.isfinite(own)], own[np.isfinite(own)], s=14, color=OTHER)
        _labels(axes, what, "nats per datum")
        _upper_part(axes, [value for value in reached if math.isfinite(value)])
    by_trial.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def spent(trials: Sequence[Tried]) -> Figure:
    """What each trial's time went into."""
    training = sum(trial.training for trial in trials)
    whole = sum(max(trial.core_seconds, trial.training) for trial in trials)
    share = f"{training / whole:.0%} of {whole / 60:.1f} core-minutes were training" if whole else "nothing was trained"
    figure, (axes,) = _panels(1, "What the time was spent on", share)
    at = np.arange(1, len(trials) + 1)
    trained = np.array([trial.training for trial in trials])
    rest = np.array([max(trial.core_seconds - trial.training, 0.0) for trial in trials])
    axes.bar(at, trained, color=OTHER, label="training")
    axes.bar(at, rest, bottom=trained, color=LOST, label="starting, evaluating, drawing, saving")
    axes.legend(frameon=False, fontsize=TEXT, labelcolor=INK, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    _labels(axes, "trial", "core-seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@dataclass(frozen=True)
class _Axis:
    """Places on an axis, and their names where they are no numbers."""

    at: np.ndarray
    names: Sequence[str] = ()


def _numbers(values: Sequence[Value]) -> _Axis:
    """Numbers as they are; anything else by its place among those that occur."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _Axis(np.array(values, dtype=float))
    names = sorted({str(value) for value in values})
    return _Axis(np.array([names.index(str(value)) for value in values], dtype=float), names)


def _against(axes: Axes, values: Sequence[Value], objectives: Sequence[float | None]) -> None:
    found, best = _numbers(values), np.array(objectives, dtype=float)
    if len(best):
        colours = [BEST if value == best.max() else OTHER for value in best]
        axes.scatter(found.at, best, s=20, color=colours)
    if found.names:
        axes.set_xticks(range(len(found.names)), found.names)
    elif all(isinstance(value, int) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _best(trials: Sequence[Tried]) -> Tried | None:
    reached = [trial for trial in trials if trial.objective is not None]
    return max(reached, key=lambda trial: trial.objective or -math.inf, default=None)


def _panels(count: int, title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    """So many axes, two in a row."""
    columns = 1 if count == 1 else 2
    rows = math.ceil(count / columns)
    figure = blank(WIDTH + 320 * (columns - 1), 360 * rows, title, subtitle)
    inches = figure.get_size_inches()[1]
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - (HEADER + 8) / (DPI * inches)), hspace=0.08)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def _labels(axes: Axes, x: str, y: str) -> None:
    tidy(axes)
    axes.set_xlabel(x, size=TEXT, color=FAINT)
    axes.set_ylabel(y, size=TEXT, color=FAINT)
    axes.grid(axis="y", color=HAIRLINE, linewidth=0.5)
    axes.set_axisbelow(True)


def _upper_part(axes: Axes, values: Sequence[float]) -> None:
    """Leave out the lowest values, of trials that did not learn, where they would flatten the rest."""
    if not values:
        return
    low, high = float(np.quantile(values, TRANSIENT)), max(values)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
