"""Data of one or two numbers: draws from the model where the data lie.

Floor 5.
"""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import Algorithm
from avb_service.distributions import DataSpec
from avb_service.errors import DataError
from avb_service.figures.canvas import FAINT, HAIRLINE, INK, PALETTE, TEXT, WIDTH, blank, place, tidy
from avb_service.figures.probe import still

DRAWS = 2000
AXIS = 40
BINS = 40
DATA = "#b8b8b8"


def are_points(spec: DataSpec) -> bool:
    """Whether a datum is one or two real numbers, and no image."""
    return spec.values == "real" and spec.shape[:2] == (1, 1) and spec.shape[2] <= 2


def points(model: Algorithm, x: Tensor, seed: int = 0) -> Figure:
    """Draws from the model over data: a cloud of pairs, or the density of single numbers.

    Args:
        model: of points.
        x: data, [B, 1, 1, D] with D at most 2.
        seed: of the draws.

    Raises:
        DataError: the model is of other data.
    """
    if not are_points(model.spec):
        raise DataError(f"a figure of points needs data of 1 or 2 real numbers, given {list(model.spec.shape)}")
    with still(model, "points", seed):
        drawn = model.sample(DRAWS).float().cpu().flatten(1).numpy()
    data = x.float().cpu().flatten(1).numpy()
    return _cloud(drawn, data) if data.shape[1] == 2 else _histogram(drawn[:, 0], data[:, 0])


def _cloud(drawn: np.ndarray, data: np.ndarray) -> Figure:
    """Pairs as a scatter; the frame is that of the data, so that steps of training are comparable."""
    low, high = data.min(0), data.max(0)
    margin = 0.12 * (high - low).max()
    outside = ((drawn < low - margin) | (drawn > high + margin)).any(1).mean()
    size = WIDTH - AXIS
    subtitle = f"{len(drawn)} draws from the model over {len(data)} data"
    figure = blank(WIDTH, size + AXIS, "Samples", subtitle + (f", {outside:.0%} of them outside" if outside else ""))
    axes = place(figure, AXIS, size, size)
    tidy(axes)
    axes.scatter(data[:, 0], data[:, 1], s=14, color=DATA, linewidths=0, label="data")
    axes.scatter(drawn[:, 0], drawn[:, 1], s=4, color=PALETTE[0], alpha=0.5, linewidths=0, label="draws")
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("x₁", size=TEXT, color=FAINT)
    axes.set_ylabel("x₂", size=TEXT, color=FAINT)
    axes.legend(fontsize=TEXT, labelcolor=INK, facecolor="white", edgecolor=HAIRLINE, loc="upper right")
    return figure


def _histogram(drawn: np.ndarray, data: np.ndarray) -> Figure:
    """Two densities on the frame of the data."""
    margin = 0.25 * (data.max() - data.min())
    edges = np.linspace(data.min() - margin, data.max() + margin, BINS + 1).tolist()
    width, height = WIDTH, WIDTH // 2
    subtitle = f"density of {len(drawn)} draws from the model over that of {len(data)} data"
    figure = blank(width, height + AXIS, "Samples", subtitle)
    axes = place(figure, 0, width, height)
    tidy(axes)
    axes.hist(data, edges, density=True, color="#dddddd", label="data")
    axes.hist(drawn, edges, density=True, histtype="step", color=PALETTE[0], linewidth=1.4, label="draws")
    axes.set(yticks=[], xlim=(edges[0], edges[-1]))
    axes.legend(fontsize=TEXT, labelcolor=INK, facecolor="white", edgecolor=HAIRLINE, loc="upper right")
    return figure
