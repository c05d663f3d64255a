"""Pictures of a model: what it makes, what it keeps, where it puts the data, and how it got there.

Floor 5. Every plot is a pure function of the model, the data and a seed, and leaves the model and the global
generators as they were.
"""

from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import Algorithm, CodedModel, DecodingModel, EncodingModel, TranslatingModel
from avb_service.figures.bounds import bounds
from avb_service.figures.canvas import caption, to_array, to_png
from avb_service.figures.curves import History, training_curves
from avb_service.figures.grids import has_plane, interpolation, manifold, reconstructions, sampled, samples, tiled
from avb_service.figures.latents import latents
from avb_service.figures.points import are_points, points, scattered
from avb_service.figures.probe import continuous
from avb_service.figures.traversal import codes, cycles, traversal


def draw(
    model: Algorithm,
    x: Tensor,
    labels: Tensor | None = None,
    history: History | None = None,
    seed: int = 0,
    other: Tensor | None = None,
    subject: str = "",
    data: str = "",
) -> dict[str, Figure]:
    """All plots that the model can have, by name.

    Args:
        model: any method's.
        x: data, [B, C, H, W], the same at every step so that the plots are comparable; 500 are plenty.
        labels: classes, [B], where the data has them.
        history: what training reported, see `training_curves`.
        seed: of all noise.
        other: data of the second source, [B, C, H, W], where there is one.
        subject: the model in words, for the caption of all plots.
        data: what x is, for the caption of those that show some of it.
    """
    plots, of_data = _of_the_model(model, seed), _of_data(model, x, labels, seed, other)
    if history:
        plots["training_curves"] = training_curves(history)
    for name, plot in {**plots, **of_data}.items():
        caption(plot, ", ".join(filter(None, (subject, data if name in of_data else ""))))
    return {**plots, **of_data}


def _of_the_model(model: Algorithm, seed: int) -> dict[str, Figure]:
    """Plots that show no data."""
    plots = {} if are_points(model.spec) else {"samples": samples(model, seed=seed)}
    if isinstance(model, DecodingModel) and has_plane(model):
        plots["manifold"] = manifold(model, seed=seed)
    if isinstance(model, DecodingModel) and continuous(model.prior()):
        plots["traversal"] = traversal(model, seed=seed)
    if isinstance(model, CodedModel):
        plots["codes"] = codes(model, seed=seed)
    return plots


def _of_data(model: Algorithm, x: Tensor, labels: Tensor | None, seed: int, other: Tensor | None) -> dict[str, Figure]:
    """Plots that show some of the data, or what becomes of them."""
    plots = {"samples": points(model, x, seed)} if are_points(model.spec) else {}
    if isinstance(model, EncodingModel):
        plots["reconstructions"] = reconstructions(model, x, seed)
        plots["latents"] = latents(model, x, labels, seed)
        if len(x) > 1 and continuous(model.prior()):
            plots["interpolation"] = interpolation(model, x, seed=seed)
    if isinstance(model, TranslatingModel):
        plots["cycles"] = cycles(model, x, other)
    return plots


def sheet(samples: Tensor, model: Algorithm, means: bool = False) -> Figure:
    """Samples that are there already, side by side, or as points.

    Args:
        samples: of the model, [n, C, H, W].
        model: that made them.
        means: whether they are means of p(x|z), and no draws.
    """
    what = sampled(model, means)
    return scattered(samples, what) if are_points(model.spec) else tiled(samples, model.spec, what)


__all__ = [
    "History",
    "bounds",
    "caption",
    "codes",
    "cycles",
    "draw",
    "interpolation",
    "latents",
    "manifold",
    "points",
    "reconstructions",
    "samples",
    "sheet",
    "to_array",
    "to_png",
    "training_curves",
    "traversal",
]
