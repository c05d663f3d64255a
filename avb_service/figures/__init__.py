"""Pictures of a model: what it makes, what it keeps, where it puts the data, and how it got there.

Floor 5. Every figure is a pure function of the model, the data and a seed, and leaves the model and the global
generators as they were.
"""

from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import Algorithm, CodedModel, DecodingModel, EncodingModel, TranslatingModel
from avb_service.figures.bounds import bounds
from avb_service.figures.canvas import to_array, to_png
from avb_service.figures.curves import History, training_curves
from avb_service.figures.grids import has_plane, interpolation, manifold, reconstructions, samples
from avb_service.figures.latents import latents
from avb_service.figures.points import are_points, points
from avb_service.figures.probe import continuous
from avb_service.figures.traversal import codes, cycles, traversal


def draw(
    model: Algorithm, x: Tensor, labels: Tensor | None = None, history: History | None = None, seed: int = 0,
    other: Tensor | None = None,
) -> dict[str, Figure]:
    """All figures that the model can have, by name.

    Args:
        model: any method's.
        x: data, [B, C, H, W], the same at every step so that the figures are comparable; 500 are plenty.
        labels: classes, [B], where the data has them.
        history: what training reported, see `training_curves`.
        seed: of all noise.
        other: data of the second source, [B, C, H, W], where there is one.
    """
    figures = {"samples": points(model, x, seed) if are_points(model.spec) else samples(model, seed=seed)}
    if isinstance(model, EncodingModel):
        figures["reconstructions"] = reconstructions(model, x, seed)
        figures["latents"] = latents(model, x, labels, seed)
        if len(x) > 1 and continuous(model.prior()):
            figures["interpolation"] = interpolation(model, x, seed=seed)
    if isinstance(model, DecodingModel) and has_plane(model):
        figures["manifold"] = manifold(model, seed=seed)
    if isinstance(model, DecodingModel) and continuous(model.prior()):
        figures["traversal"] = traversal(model, seed=seed)
    if isinstance(model, CodedModel):
        figures["codes"] = codes(model, seed=seed)
    if isinstance(model, TranslatingModel):
        figures["cycles"] = cycles(model, x, other)
    if history:
        figures["training_curves"] = training_curves(history)
    return figures


__all__ = [
    "History", "bounds", "codes", "cycles", "draw", "interpolation", "latents", "manifold", "points", "reconstructions",
    "samples", "to_array", "to_png", "training_curves", "traversal",
]  # fmt: skip
