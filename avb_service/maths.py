"""Small formulas that have a name.

Floor 0.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

Shape = torch.Size | tuple[int, ...]  # of draws


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean of exp(values) along a dimension, without overflow."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def effective_size(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Effective sample size (sum w)^2 / sum w^2 along a dimension; between 1 and the number of weights."""
    return torch.exp(2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim))


def variance_of_log_mean(log_weights: Tensor, dim: int = 0) -> Tensor:
    """Variance of log mean_K w by its K draws, to first order: (1/ESS - 1/K) K / (K - 1); NaN for K = 1."""
    k = log_weights.shape[dim]
    return (1 / effective_size(log_weights, dim) - 1 / k) * (k / (k - 1) if k > 1 else math.nan)


def one_hot(index: Tensor, size: int, like: Tensor) -> Tensor:
    """One-hot vectors [..., size] of numbers [...], in the precision of a tensor.

    As torch's own, which asks the device whether all numbers are in range: a program of tensors cannot wait for that.
    """
    return (index[..., None] == torch.arange(size, device=index.device)).to(like)


def standard_normal(dim: int, like: Tensor) -> Independent:
    """N(0, I) on R^dim, on the device and in the precision of a tensor."""
    zero = like.new_zeros(dim)
    return Independent(Normal(zero, torch.ones_like(zero), validate_args=False), 1, validate_args=False)


def cholesky(matrix: Tensor) -> Tensor:
    """L of L L' = matrix, [..., D, D]; NaN where there is none, so that divergence shows where it is looked for."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return factor.masked_fill(failed[..., None, None] != 0, math.nan)


def fit_gaussian(draws: Tensor, inflate: float = 1.0, ridge: float = 1e-4) -> MultivariateNormal:
    """A full-covariance Gaussian for each datum, fitted by moments.

    Args:
        draws: samples [S, B, D].
        inflate: factor on the standard deviations.
        ridge: added to the diagonal, relative to the mean variance, so that the factorisation exists.

    Returns:
        The Gaussians, batch shape [B], event shape [D].
    """
    mean = draws.mean(0)
    centred = draws - mean
    covariance = torch.einsum("sbi,sbj->bij", centred, centred) / (len(draws) - 1)
    floor = ridge * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-6)
    covariance = covariance + floor[:, None, None] * torch.eye(draws.shape[-1]).to(draws)
    return MultivariateNormal(mean, scale_tril=inflate * cholesky(covariance), validate_args=False)


def gaussian_marginals(distribution: object) -> Normal | None:
    """The marginals [..., D] of a factorised Gaussian; None of anything else."""
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        return distribution.base_dist
    return None


def mean_and_factor(distribution: object) -> tuple[Tensor, Tensor] | None:
    """The mean m [..., D] of a Gaussian N(m, L L') and the triangular L [..., D, D]; None of anything else."""
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc, distribution.scale_tril
    marginals = gaussian_marginals(distribution)
    return None if marginals is None else (marginals.loc, torch.diag_embed(marginals.scale))


def whiten(gaussian: Distribution, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whitened codes u = L^-1 (z - m), standard normal where z follows the Gaussian, and its log-density at z.

    Args:
        gaussian: N(m, L L'), batch shape [B] or none, event shape [D].
        z: codes [..., B, D].

    Returns:
        u [..., B, D] and log N(z; m, L L') = -|u|^2 / 2 - log|L| - D/2 log 2 pi, in nats, [..., B].

    Raises:
        TypeError: for anything that is no Gaussian.
    """
    if (marginals := gaussian_marginals(gaussian)) is not None:
        u, scale = (z - marginals.loc) / marginals.scale, marginals.scale
    elif (moments := mean_and_factor(gaussian)) is not None:
        mean, factor = moments
        u = torch.linalg.solve_triangular(factor, (z - mean)[..., None], upper=False)[..., 0]
        scale = factor.diagonal(dim1=-2, dim2=-1)
    else:
        raise TypeError(f"cannot whiten under {type(gaussian).__name__}, expected a Gaussian")
    constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return u, -0.5 * u.square().sum(-1) - scale.log().sum(-1) - constant


def logit_of_mean(mean: Tensor) -> Tensor:
    """log(m / (1 - m)) of means of pixels, kept away from certainty, which networks start from.

    In float64: a float32 logarithm differs by processor, and models of one seed would start differently.
    """
    return torch.logit(mean.double().clamp(0.01, 0.99)).to(mean)
