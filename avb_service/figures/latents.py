"""Where the data are in the space of codes.

Floor 5.
"""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from avb_service.algorithm import EncodingModel
from avb_service.figures.canvas import FAINT, HAIRLINE, INK, LEGEND, PALETTE, TEXT, WIDTH, blank, legend, place, tidy
from avb_service.figures.probe import beside, components, still
from avb_service.maths import gaussian_marginals
from avb_service.seeding import derive_seed

PLANE, EMBEDDED = 2000, 500  # points: t-SNE of 500 takes a second
FEW = 20
MARKERS = ("o", "^")
SIZE = WIDTH - LEGEND
AXIS = 40


def latents(model: EncodingModel, x: Tensor, labels: Tensor | None = None, seed: int = 0) -> Figure:
    """Draws of q(z|x), coloured by class: as they are on a line or a plane, through t-SNE in more dimensions.

    A data set of at most 20 gives many draws a datum, so that the shape of each q(z|x) is seen.

    Args:
        model: whose posterior.
        x: data, [B, C, H, W]; the first 2000 are used, 500 under t-SNE.
        labels: classes, [B]; without them few data are coloured one by one.
        seed: of the draws and of t-SNE.

    Source: Mescheder et al. 2017, figure 5; van der Maaten & Hinton 2008.
    """
    prior = model.prior()
    dim = prior.event_shape[-1]
    limit = PLANE if dim <= 2 else EMBEDDED
    x = beside(model, x[:limit])
    draws = limit // len(x) if len(x) <= FEW else 1
    with still(model, "latents", seed):
        codes = model.encode(x, draws).flatten(0, 1).float().cpu().numpy()
        elsewhere = prior.sample((PLANE,)).float().cpu().numpy() if gaussian_marginals(prior) is None else None
    how = f"{dim}-D codes" if dim <= 2 else f"t-SNE of {dim}-D codes"
    subtitle = f"{how}, {len(x)} data" + (f" × {draws} draws" if draws > 1 else "")
    if dim == 2:
        subtitle += f", {_meaning(prior)}"
    figure, axes = _frame(dim, subtitle, float(np.abs(codes).max()))
    if dim == 2:
        _draw_prior(axes, prior, elsewhere)
    _scatter(axes, _positions(codes, seed), *_classes(x, labels), draws)
    return figure


def _frame(dim: int, subtitle: str, reach: float) -> tuple[Figure, Axes]:
    """Axes for codes of so many dimensions, at least three standard deviations of the usual prior wide."""
    edge = AXIS if dim <= 2 else 0
    figure = blank(WIDTH, SIZE + edge, "Codes z ~ q(z|x)", subtitle)
    axes = place(figure, edge, SIZE, SIZE)
    tidy(axes)
    reach = max(3.2, 1.05 * reach)
    if dim > 2:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.set_aspect("equal", adjustable="datalim")
        return figure, axes
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach) if dim == 2 else (-3, 3))
    axes.set_xlabel("z₁", size=TEXT, color=FAINT)
    if dim == 2:
        axes.set_ylabel("z₂", size=TEXT, color=FAINT)
    else:
        axes.set_yticks([])
    return figure, axes


def _draw_prior(axes: Axes, prior: Distribution, draws: np.ndarray | None) -> None:
    """Ellipses of a Gaussian prior and of a mixture's components, draws of any other."""
    marginals, parts = gaussian_marginals(prior), components(prior)
    if marginals is not None:
        (x, y), (width, height) = marginals.loc.tolist(), (2 * marginals.scale).tolist()
        for k in (1, 2):
            axes.add_patch(Ellipse((x, y), k * width, k * height, fill=False, color="#b5b5b5", linewidth=0.8, zorder=0))
    elif parts is not None:
        _draw_components(axes, *parts)
    elif draws is not None:
        axes.scatter(draws[:, 0], draws[:, 1], s=3, color=HAIRLINE, linewidths=0, zorder=0)


def _draw_components(axes: Axes, weights: Tensor, gaussians: MultivariateNormal) -> None:
    """One standard deviation of each component, the darker the more of the mixture it is."""
    variances, directions = torch.linalg.eigh(gaussians.covariance_matrix.double().cpu())
    shares = (weights / weights.max()).tolist()
    ellipses = zip(shares, gaussians.loc.tolist(), variances.sqrt().tolist(), directions, strict=True)
    for share, (x, y), (short, long), axis in ellipses:
        angle = math.degrees(math.atan2(axis[1, 1], axis[0, 1]))
        look: dict[str, Any] = {"color": INK, "alpha": 0.15 + 0.5 * share, "linewidth": 0.9, "zorder": 3}
        axes.add_patch(Ellipse((x, y), 2 * long, 2 * short, angle=angle, fill=False, **look))


def _meaning(prior: Distribution) -> str:
    """What `_draw_prior` has drawn, in words."""
    if gaussian_marginals(prior) is not None:
        return "circles: 1 and 2 σ of p(z)"
    parts = components(prior)
    return "grey: draws of p(z)" if parts is None else f"ellipses: 1 σ of the {len(parts[0])} components of p(z)"


def _classes(x: Tensor, labels: Tensor | None) -> tuple[np.ndarray | None, str]:
    """What colours the data, [B], and the name of what it is."""
    if labels is not None:
        return labels[: len(x)].cpu().numpy(), "class"
    return (np.arange(len(x)), "datum") if len(x) <= FEW else (None, "")


def _positions(codes: np.ndarray, seed: int) -> np.ndarray:
    """Codes [N, D] as points [N, 2]."""
    if codes.shape[1] == 2:
        return codes
    if codes.shape[1] == 1:
        heights = np.random.default_rng(derive_seed("figures", "positions", seed)).uniform(-1, 1, codes.shape)
        return np.concatenate([codes, heights], 1)
    return _embed(codes, derive_seed("figures", "t-SNE", seed) % 2**32)


def _embed(codes: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of codes [N, D], begun at their principal components so that steps of training look alike."""
    from sklearn.manifold import TSNE  # takes two seconds to import, and codes on a plane never need it

    centred = codes - codes.mean(0)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    start = 1e-4 * centred @ directions[:2].T / max(float(scales[0]) / len(codes) ** 0.5, 1e-6)
    perplexity = min(30.0, (len(codes) - 1) / 3)
    # its threads wait for one another in a busy loop, ten times slower beside training; one thread is as fast as two
    with threadpool_limits(1, user_api="openmp"):
        return TSNE(perplexity=perplexity, init=start, max_iter=500, random_state=seed, n_jobs=1).fit_transform(codes)


def _scatter(axes: Axes, points: np.ndarray, classes: np.ndarray | None, kind: str, draws: int) -> None:
    """The points [draws * B, 2] with a legend, or a colour bar for more classes than can be told apart."""
    look: dict[str, Any] = {"s": 16 if len(points) <= EMBEDDED else 7, "alpha": 0.75, "linewidths": 0}
    if classes is None:
        axes.scatter(points[:, 0], points[:, 1], color=PALETTE[0], **look)
        return
    names, index = np.unique(classes, return_inverse=True)
    if len(names) > len(PALETTE) * len(MARKERS):
        cloud = axes.scatter(points[:, 0], points[:, 1], c=np.tile(classes, draws), cmap="viridis", **look)
        bar = Colorbar(axes.inset_axes((1.04, 0.0, 0.03, 1.0)), cloud)
        bar.ax.set_title(kind, size=TEXT, color=FAINT)
        bar.ax.tick_params(labelsize=TEXT, labelcolor=FAINT, color=HAIRLINE)
        bar.outline.set_visible(False)
        return
    index = np.tile(index, draws)
    colours = np.array([to_rgb(PALETTE[i % len(PALETTE)]) for i in range(len(names))])
    for k, marker in enumerate(MARKERS):
        chosen = index // len(PALETTE) == k
        axes.scatter(points[chosen, 0], points[chosen, 1], color=colours[index[chosen]], marker=marker, **look)
    _legend(axes, names, colours, kind)


def _legend(axes: Axes, names: np.ndarray, colours: np.ndarray, kind: str) -> None:
    handles = [
        Line2D([], [], marker=MARKERS[i // len(PALETTE)], color=colour, linestyle="", markersize=5, label=str(name))
        for i, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]
    legend(axes, handles=handles, title=kind)
