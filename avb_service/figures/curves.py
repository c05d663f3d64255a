"""How training went.

Floor 5.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avb_service.errors import DataError
from avb_service.figures.canvas import DPI, FAINT, HAIRLINE, HEADER, INK, PALETTE, TEXT, WIDTH, blank, legend, tidy

Series = Sequence[tuple[int, float]]
History = Sequence[Mapping[str, float]] | Mapping[str, Series]

NATS = "nats per datum"
UNITS = {
    "accuracy": "fraction",
    "acceptance": "fraction",
    "fraction": "fraction",
    "lr": "learning rate",
    "norm": "norm",
    "seconds": "seconds",
    "second": "per second",
    "perplexity": "perplexity",
    "temperature": "temperature",
    "ess": "effective draws",
    "unverifiable": "fraction",
    "reach": "fraction",
    "bandwidth": "bandwidth",
    "found": "modes",
    "draws": "fraction",
}
WORDS = {"kl": "KL", "elbo": "ELBO", "ais": "AIS", "iwae": "IWAE"}
SHORT = 22  # characters of a name that has room for another beside it
DENSE = 60  # points beyond which a line is drawn faint under its running mean


def training_curves(history: History) -> Figure:
    """Every reported number against the round: a panel for each player or data split, and for each unit.

    Args:
        history: one mapping a report, {"round": r, "train/model/kl": v, "validation/log_likelihood.iwae_256": v, ...},
            or one series a name, {"train/model/kl": [(r, v), ...], ...}. Names without a "/" are left out.

    Raises:
        DataError: when there is nothing to show.
    """
    panels: dict[tuple[str, str], dict[str, Series]] = {}
    for name, points in _series(history).items():
        group, _, term = name.rpartition("/")
        if term.startswith("adversary."):  # many, and for who asks whether the adversary can be believed
            group, term = f"{group}/adversary", term.removeprefix("adversary.")
        panels.setdefault((group, _unit(term)), {})[term] = points
    if not panels:
        raise DataError('training curves need metrics named "<player or split>/<term>", given none; report some first')
    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = blank(WIDTH + 320 * (columns - 1), 330 * rows, "Training", "each player's terms, and what was held out")
    figure.set_layout_engine(
        "constrained", rect=(0.01, 0.01, 0.98, 1 - (HEADER + 8) / (DPI * figure.get_size_inches()[1])), hspace=0.08
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((group, unit), series) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, group, unit, series)
    return figure


def _series(history: History) -> dict[str, Series]:
    """Both shapes of a history as one series a name, finite values only."""
    series: dict[str, list[tuple[int, float]]] = {}
    if isinstance(history, Mapping):
        series = {name: [(int(r), float(v)) for r, v in points] for name, points in history.items()}
    else:
        for report in history:
            for name, value in report.items():
                series.setdefault(name, []).append((int(report["round"]), float(value)))
    kept = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items() if _shown(name, series)}
    return {name: points for name, points in kept.items() if points}


def _shown(name: str, series: Mapping[str, Series]) -> bool:
    """Not error bars, nor clocks, nor a short name of what is there under a longer one."""
    aside = name.endswith(("stderr", ".own_error")) or name.startswith("time/")
    longer = [points for other, points in series.items() if other.startswith(f"{name}.")]
    return "/" in name and not aside and series[name] not in longer


def _unit(term: str) -> str:
    """What a term is measured in: nats, unless the last word of its name says otherwise."""
    return UNITS.get(re.split(r"[/._ ]", term)[-1], NATS)


def _spoken(term: str) -> str:
    """A metric's name as words: `log_likelihood.iwae_256` is "log likelihood, IWAE 256"."""
    parts = (part.split("_") for part in term.split("."))
    return ", ".join(" ".join(WORDS.get(word, word) for word in words) for words in parts)


def _panel(axes: Axes, group: str, unit: str, series: Mapping[str, Series]) -> None:
    for (term, points), colour in zip(series.items(), _cycle(len(series)), strict=True):
        rounds, values = np.array(points).T
        if len(points) > DENSE:
            axes.plot(rounds, values, color=colour, linewidth=0.6, alpha=0.3)
            rounds, values = _smooth(rounds, values)
        marker = "o" if len(points) <= DENSE // 4 else None
        axes.plot(rounds, values, color=colour, linewidth=1.5, marker=marker, markersize=3, label=_spoken(term))
    tidy(axes)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("round", size=TEXT, color=FAINT)
    axes.set_ylabel(unit, size=TEXT, color=FAINT)
    axes.set_ylim(*_limits(series))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=HAIRLINE, linewidth=0.5)
    axes.set_axisbelow(True)
    _head(axes, group)


def _head(axes: Axes, group: str) -> None:
    """What the panel is of, and below that its legend, above the axes, where neither covers a line."""
    look: dict[str, Any] = {"title_fontsize": TEXT + 1, "fontsize": TEXT - 1, "handlelength": 1.2, "alignment": "left"}
    names = axes.get_legend_handles_labels()[1]
    look["ncols"] = 1 if max(map(len, names)) > SHORT else 2
    made = legend(axes, title=group, loc="lower left", bbox_to_anchor=(0.0, 1.0), handletextpad=0.6, **look)
    made.get_title().set_color(INK)


def _cycle(n: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def _smooth(rounds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The running mean over a thirtieth of the points, where the window is whole."""
    window = np.ones(len(values) // 30) / (len(values) // 30)
    return np.convolve(rounds, window, "valid"), np.convolve(values, window, "valid")


def _limits(series: Mapping[str, Series]) -> tuple[float, float]:
    """The range after the first twentieth of training, whose transient would flatten all that follows."""
    last = max(points[-1][0] for points in series.values())
    values = [v for points in series.values() for r, v in _late(points, last)]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _late(points: Series, last: int) -> Series:
    return [p for p in points if p[0] >= last / 20] or points
