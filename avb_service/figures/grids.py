"""Pictures of data: drawn, reconstructed, interpolated, and over the plane of codes.

Floor 5. Each is a pure function of the model, the data and a seed: the noise is the same at every step of training,
so that pictures of two steps differ by the model alone.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from avb_service.algorithm import Algorithm, DecodingModel, EncodingModel, LatentVariableModel
from avb_service.distributions import DataSpec
from avb_service.errors import DataError
from avb_service.figures.canvas import columns_for, mosaic, number
from avb_service.figures.probe import beside, continuous, quantiles, still
from avb_service.maths import gaussian_marginals

PAIRS = 40


def samples(model: Algorithm, n: int = 64, seed: int = 0) -> Figure:
    """What the model makes of n draws of its noise: means of p(x|z), or draws of a model that has no p(x|z)."""
    with still(model, "samples", seed):
        if isinstance(model, LatentVariableModel):
            return tiled(model.decode(model.prior().sample((n,))), model.spec, sampled(model, means=True))
        return tiled(model.sample(n), model.spec, sampled(model, means=False))


def tiled(tiles: Tensor, spec: DataSpec, subtitle: str) -> Figure:
    """Samples [N, C, H, W] side by side."""
    shown, scale = intensity(tiles, tiles, spec)
    return mosaic(shown, "Samples", subtitle + scale, [columns_for(len(shown), *extent(shown))])


def sampled(model: Algorithm, means: bool) -> str:
    """What samples of a model are, in words."""
    if not isinstance(model, DecodingModel):
        return "draws from the model"
    if isinstance(model, LatentVariableModel):
        return f"{'means of' if means else 'draws from'} p(x|z) for z ~ p(z)"
    return "draws g(z) for z ~ p(z)"


def decoded(model: DecodingModel) -> str:
    """What a model makes of a code, in words."""
    return "means of p(x|z)" if isinstance(model, LatentVariableModel) else "g(z)"


def reconstructions(model: EncodingModel, x: Tensor, seed: int = 0) -> Figure:
    """Data in the upper row of each pair, what comes back from one of their codes in the lower row.

    Args:
        model: whose reconstructions.
        x: data, [B, C, H, W]; the first 40 are shown.
        seed: of the codes.
    """
    x = beside(model, x[:PAIRS])
    with still(model, "reconstructions", seed):
        returned = model.reconstruct(x)
    (x, scale), (returned, _) = intensity(x, x, model.spec), intensity(returned, x, model.spec)
    height, width = extent(x)
    columns = columns_for(len(x), 2 * height, width)
    rows = []
    for above, below in zip(x.split(columns), returned.split(columns), strict=True):
        filling = torch.full((columns - len(above), *x.shape[1:]), torch.nan)
        rows += [above, filling, below, filling]
    subtitle = f"above: data x, below: {decoded(model)} for z ~ q(z|x)" + scale
    return mosaic(torch.cat(rows), "Reconstructions", subtitle, [columns], group=2)


def interpolation(model: EncodingModel, x: Tensor, rows: int = 8, steps: int = 9, seed: int = 0) -> Figure:
    """What codes stand for along paths between those of two data, each row between the data at its ends.

    Paths turn about the origin at steady speed where the prior is a Gaussian of more than two dimensions, whose codes
    lie near a sphere (White 2016), and are straight elsewhere.

    Args:
        model: whose codes.
        x: data, [B, C, H, W] with B >= 2; the first half is paired with the second.
        rows: pairs shown, at most.
        steps: codes on each path, both ends included.
        seed: of the codes.

    Raises:
        DataError: when there is no pair.
    """
    if len(x) < 2:
        raise DataError(f"interpolation is between two data, given {len(x)}; give at least 2")
    rows = min(rows, len(x) // 2)
    ends = beside(model, torch.cat([x[:rows], x[len(x) // 2 :][:rows]]))
    with still(model, "interpolation", seed):
        prior = model.prior()
        start, end = model.encode(ends)[0].chunk(2)
        spherical = gaussian_marginals(prior) is not None and start.shape[-1] > 2
        at = torch.linspace(0, 1, steps).to(start)[None, :, None]
        path = (_arc if spherical else torch.lerp)(start[:, None], end[:, None], at)
        between = model.decode(path.flatten(0, 1)).unflatten(0, (rows, steps))
    first, last = ends.chunk(2)
    tiles = torch.cat([first[:, None], between, last[:, None]], 1).flatten(0, 1)
    tiles, scale = intensity(tiles, ends, model.spec)
    kind = "spherical" if spherical else "linear"
    subtitle = f"{decoded(model)} on {kind} paths of z between the data at the ends" + scale
    return mosaic(tiles, "Interpolation", subtitle, [1, steps, 1])


def manifold(model: DecodingModel, side: int = 20, seed: int = 0) -> Figure:
    """What codes stand for over a grid of their plane that is even in the prior's probability.

    Args:
        model: with a two-dimensional continuous code.
        side: codes in each direction, at the levels 1/2s, 3/2s, ... of the prior's marginals.
        seed: of the draws that stand in for the prior's quantiles where it is not a Gaussian.

    Raises:
        DataError: for any other code.

    Source: Kingma & Welling 2014, figure 4.
    """
    prior = model.prior()
    if not has_plane(model):
        raise DataError(f"a manifold needs a continuous code of 2 numbers, given {tuple(prior.event_shape)}")
    with still(model, "manifold", seed):
        axes = quantiles(prior, (torch.arange(side) + 0.5) / side)
        up, right = torch.meshgrid(axes[:, 1].flip(0), axes[:, 0], indexing="ij")
        tiles = model.decode(torch.stack([right, up], -1).flatten(0, 1))
    tiles, scale = intensity(tiles, tiles, model.spec)
    low, high = (number(bound.item(), ".1f") for bound in axes[[0, -1], 0])
    subtitle = f"{decoded(model)}, z₁ to the right, z₂ upwards, {low} to {high}" + scale
    return mosaic(tiles, "Manifold", subtitle, [side], gap=2)


def has_plane(model: DecodingModel) -> bool:
    """Whether the codes are a plane."""
    prior = model.prior()
    return tuple(prior.event_shape) == (2,) and continuous(prior)


def extent(tiles: Tensor) -> tuple[int, int]:
    """Height and width at which a tile is shown."""
    channels, height, width = tiles.shape[1:]
    return height, width if channels == 3 else channels * width


def _arc(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """From start to end [..., D]: the direction turns at steady speed while the length goes evenly."""
    lengths = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    a, b = start / lengths[0].clamp(min=1e-6), end / lengths[1].clamp(min=1e-6)
    angle = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-1, 1))
    turned = (torch.sin((1 - at) * angle) * a + torch.sin(at * angle) * b) / torch.sin(angle)
    # parallel and opposite codes span no plane to turn in
    defined = torch.sin(angle) > 1e-4
    return torch.where(defined, turned * torch.lerp(*lengths, at), torch.lerp(start, end, at))


def intensity(values: Tensor, reference: Tensor, spec: DataSpec) -> tuple[Tensor, str]:
    """Values as intensities in [0, 1], and what the subtitle says of the scale: real values span the reference's."""
    values = values.detach().float().cpu()
    if spec.values != "real":
        return values, ""
    low, high = (bound.item() for bound in reference.detach().float().cpu().aminmax())
    return (values - low) / max(high - low, 1e-6), f", x from {number(low, '.2g')} to {number(high, '.2g')}"
