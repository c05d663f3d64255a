"""What single numbers of a code do, and where translations lead.

Floor 5.
"""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import CodedModel, DecodingModel, TranslatingModel
from avb_service.errors import DataError
from avb_service.figures.canvas import mosaic
from avb_service.figures.grids import decoded, intensity
from avb_service.figures.probe import beside, continuous, quantiles, still

STEPS = 11
DIMENSIONS = 16
CYCLES = 20
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def traversal(model: DecodingModel, steps: int = STEPS, seed: int = 0) -> Figure:
    """A row for each number of the code: it goes through the prior's quantiles, the others stay as they were drawn.

    Args:
        model: with a continuous code.
        steps: codes in a row, at the levels 1/2s, 3/2s, ... of the prior's marginals.
        seed: of the code that is changed, the same in all rows.

    Raises:
        DataError: codes between two codes are no codes.

    Source: Higgins et al. 2017, figure 1.
    """
    prior = model.prior()
    if not continuous(prior):
        raise DataError("a traversal needs a continuous code, and this one's is discrete")
    at = (torch.arange(steps) + 0.5) / steps
    with still(model, "traversal", seed):
        levels = quantiles(prior, at)
        rows = min(levels.shape[1], DIMENSIONS)
        z = prior.sample().expand(rows, steps, -1).clone()
        for d in range(rows):
            z[d, :, d] = levels[:, d]
        tiles = model.decode(z.flatten(0, 1))
    tiles, scale = intensity(tiles, tiles, model.spec)
    of = f", the first {rows} of {levels.shape[1]}" if rows < levels.shape[1] else ""
    subtitle = f"{decoded(model)}; rows: numbers of one code{of}; columns: quantiles of p(z){scale}"
    names = [f"z{str(d + 1).translate(SUBSCRIPTS)}" for d in range(rows)]
    return mosaic(tiles, "Traversal", subtitle, [steps], heads=_named(at), sides=names)


def codes(model: CodedModel, steps: int = 5, seed: int = 0) -> Figure:
    """Columns: the categories of the code. Rows: draws of the rest, then each continuous code from low to high.

    Args:
        model: whose code begins with the categories, as one of K.
        steps: rows for the draws, and for each continuous code.
        seed: of the draws; the continuous codes are changed in the first of them.

    Source: Chen et al. 2016, figure 2.
    """
    prior = model.prior()
    at = (torch.arange(steps) + 0.5) / steps
    with still(model, "codes", seed):
        read = model.recognise(beside(model, model.spec.mean[None]))
        categories = read.sizes[0]
        levels = quantiles(prior, at)
        z = prior.sample((steps,))
        rows = [z]
        for d in range(categories, read.event_shape[0]):
            swept = z[:1].repeat(steps, 1)
            swept[:, d] = levels[:, d]
            rows.append(swept)
        grid = torch.cat(rows)[:, None].repeat(1, categories, 1)
        grid[..., :categories] = torch.eye(categories).to(z)
        tiles = model.decode(grid.flatten(0, 1))
    tiles, scale = intensity(tiles, tiles, model.spec)
    subtitle = f"columns: categories; rows: {steps} draws, then each continuous code at quantiles of p(c){scale}"
    sides = [""] * steps + _named(at) * (len(rows) - 1)
    heads = [str(k) for k in range(categories)]
    return mosaic(tiles, "Codes", subtitle, [categories], group=steps, heads=heads, sides=sides)


def _named(levels: Tensor) -> list[str]:
    """The levels 1/2s, 3/2s, ... as text, with the digits that tell them apart."""
    digits = math.ceil(math.log10(2 * len(levels)))
    return [f"{level:.{digits}f}" for level in levels.tolist()]


def cycles(model: TranslatingModel, x: Tensor, other: Tensor | None = None) -> Figure:
    """From each domain to the other and back: rows x, G(x), F(G(x)), then y, F(y), G(F(y)).

    Args:
        model: that translates.
        x: data that it models, [B, C, H, W]; the first 20 are shown.
        other: data of the second source, likewise.

    Source: Zhu et al. 2017, figure 4.
    """
    x = beside(model, x[:CYCLES])
    with still(model, "cycles", 0):
        there = model.translate_back(x)
        rows = [x, there, model.translate(there)]
        if other is not None:
            y = beside(model, other[: len(x)])
            there = model.translate(y)
            rows += [y, there, model.translate_back(there)]
    tiles, scale = intensity(torch.cat(rows), x, model.spec)
    subtitle = "rows: data x, translated, and back" + scale
    if other is not None:
        subtitle += "; then data y of the other source"
    return mosaic(tiles, "Cycles", subtitle, [len(x)], group=3)
