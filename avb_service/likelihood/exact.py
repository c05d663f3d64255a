"""Log-likelihoods without sampling error, where the latent space is small enough.

Floor 5.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from avb_service.algorithm import LatentVariableModel
from avb_service.errors import UserError
from avb_service.likelihood.estimate import Estimate, Kind, LikelihoodConfig

HALF_WIDTH = 8.0  # the prior's density is e^-32 of its peak there
TOLERANCE = 1e-5  # nats per datum, mean over data
LARGEST = 512  # cells along an axis


def quadrature(model: LatentVariableModel, x: Tensor, config: LikelihoodConfig) -> Estimate:
    """Log p(x) = log int p(z) p(x|z) dz on a grid, for one or two latent dimensions.

    The grid is doubled until the value neither moves under doubling nor under a shift by half a cell.

    Args:
        model: with D <= 2 and a prior around the origin.
        x: data [n, C, H, W], of which the first `quadrature_data` are used.
        config: number of data, memory.

    Returns:
        Kind `exact` where both checks agree within 1e-5 nats, else `estimate`, with their figures in either case.

    Raises:
        UserError: D > 2, or a prior that is no factorised Gaussian.
    """
    prior = model.prior()
    if not isinstance(prior, Independent) or not isinstance(prior.base_dist, Normal):
        raise UserError(f"quadrature needs a factorised Gaussian prior, this one is {type(prior).__name__}: use iwae")
    x, dim = x[: config.quadrature_data], prior.event_shape[0]
    if dim > 2:
        raise UserError(f"quadrature needs at most 2 latent dimensions, this model has {dim}: use iwae")
    cells, previous = 64, _on_grid(model, x, dim, 64, 0.0, config)
    while True:
        cells *= 2
        value = _on_grid(model, x, dim, cells, 0.0, config)
        doubling = (value - previous).abs().mean().item()
        shift = (value - _on_grid(model, x, dim, cells, 0.5, config)).abs().mean().item()
        agreed = max(doubling, shift) < TOLERANCE
        if agreed or cells >= LARGEST:
            kind: Kind = "exact" if agreed else "estimate"
            return Estimate.of("quadrature", kind, value, cells=cells, doubling=doubling, shift=shift)
        previous = value


@torch.no_grad()
def _on_grid(
    model: LatentVariableModel, x: Tensor, dim: int, cells: int, offset: float, config: LikelihoodConfig
) -> Tensor:
    """Log of the sum over a grid of the given number of cells an axis, [n], float64."""
    step = 2 * HALF_WIDTH / cells
    axis = (torch.arange(cells, device=x.device, dtype=x.dtype) + offset) * step - HALF_WIDTH
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    size = max(1, config.memory_mib * 2**20 // (x.numel() * x.element_size() * 4))
    total = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    for part in grid.split(size):
        total = torch.logaddexp(total, torch.logsumexp(model.log_joint(x, part[:, None]).double(), 0))
    return total + dim * math.log(step)
