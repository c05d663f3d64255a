"""Small formulas that have a name.

Floor 0.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal


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


def logit_of_mean(mean: Tensor) -> Tensor:
    """log(m / (1 - m)) of means of pixels, kept away from certainty, which networks start from.

    In float64: a float32 logarithm differs by processor, and models of one seed would start differently.
    """
    return torch.logit(mean.double().clamp(0.01, 0.99)).to(mean)
