"""Data of one or two numbers: draws from the model where the data lie.

Floor 5.
"""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import Algorithm
from avb_service.distributions import DataSpec
from avb_service.errors import DataError
from avb_service.figures.canvas import FAINT, LEGEND, PALETTE, TEXT, WIDTH, blank, legend, place, tidy
from avb_service.figures.grids import sampled
from avb_service.figures.probe import still

DRAWS = 2000
AXIS = 40
BINS = 40
FEW = 500  # draws that are shown large
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
        raise DataError(f"a plot of points needs data of 1 or 2 real numbers, given {list(model.spec.shape)}")
    with still(model, "points", seed):
        drawn = model.sample(DRAWS)
    return scattered(drawn, sampled(model, means=False), x)


def scattered(drawn: Tensor, subtitle: str, x: Tensor | None = None) -> Figure:
    """Samples [N, 1, 1, D] with D at most 2, over data likewise, in whose frame they are shown; else in their own.

    Args:
        drawn: samples.
        subtitle: what they are.
        x: data.
    """
    above = drawn.float().cpu().flatten(1).numpy()
    data = None if x is None else x.float().cpu().flatten(1).numpy()
    subtitle = f"{len(above)} {subtitle}" + ("" if data is None else f" over {len(data)} data")
    return _cloud(above, data, subtitle) if above.shape[1] == 2 else _histogram(above, data, subtitle)


def _cloud(drawn: np.ndarray, data: np.ndarray | None, subtitle: str) -> Figure:
    """Pairs as a scatter; over data, the frame is theirs, so that steps of training are comparable."""
    framed = drawn if data is None else data
    low, high = framed.min(0), framed.max(0)
    margin = 0.12 * (high - low).max() or 1.0
    outside = ((drawn < low - margin) | (drawn > high + margin)).any(1).mean()
    size = WIDTH - AXIS - LEGEND
    figure = blank(WIDTH, size + AXIS, "Samples", subtitle + (f", {outside:.0%} of them outside" if outside else ""))
    axes = place(figure, AXIS, size, size)
    tidy(axes)
    if data is not None:
        axes.scatter(data[:, 0], data[:, 1], s=14, color=DATA, linewidths=0, label="data")
    size, alpha = (4, 0.5) if len(drawn) > FEW else (14, 0.8)
    axes.scatter(drawn[:, 0], drawn[:, 1], s=size, color=PALETTE[0], alpha=alpha, linewidths=0, label="samples")
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("x₁", size=TEXT, color=FAINT)
    axes.set_ylabel("x₂", size=TEXT, color=FAINT)
    legend(axes)
    return figure


def _histogram(drawn: np.ndarray, data: np.ndarray | None, subtitle: str) -> Figure:
    """One density, or two on the frame of the data."""
    framed = drawn if data is None else data
    margin = 0.25 * (framed.max() - framed.min()) or 1.0
    edges = np.linspace(framed.min() - margin, framed.max() + margin, BINS + 1).tolist()
    figure = blank(WIDTH, WIDTH // 2 + AXIS, "Samples", f"density of {subtitle}")
    axes = place(figure, 0, WIDTH - LEGEND, WIDTH // 2)
    tidy(axes)
    if data is not None:
        axes.hist(data[:, 0], edges, density=True, color="#dddddd", label="data")
    axes.hist(drawn[:, 0], edges, density=True, histtype="step", color=PALETTE[0], linewidth=1.4, label="samples")
    axes.set(yticks=[], xlim=(edges[0], edges[-1]))
    legend(axes)
    return figure
