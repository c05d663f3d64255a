"""Means and covariances of posteriors, and what they say of the KL.

Floor 5.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, kl_divergence

from avb_service.distributions import ImplicitPosterior
from avb_service.maths import cholesky, gaussian_marginals, mean_and_factor


def exact_moments(q: Distribution | ImplicitPosterior) -> tuple[Tensor, Tensor] | None:
    """Mean [B, D] and covariance [B, D, D] of a Gaussian posterior; none of any other."""
    moments = mean_and_factor(q)
    return None if moments is None else (moments[0], moments[1] @ moments[1].mT)


def kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """KL(q || p), [B]: in closed form where torch knows one, else E_q[log q - log p] over draws z [S, B, D] of q."""
    marginals = gaussian_marginals(p)
    if isinstance(q, MultivariateNormal) and marginals is not None:
        p = MultivariateNormal(marginals.loc, scale_tril=torch.diag_embed(marginals.scale), validate_args=False)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return (q.log_prob(z) - p.log_prob(z)).mean(0)


def kl_floor(q: Distribution | ImplicitPosterior, z: Tensor) -> Tensor:
    """KL(N(m, S) || N(0, I)) = (tr S + |m|^2 - D - log det S) / 2, the least KL(q || N(0, I)) that moments m, S allow.

    Of all densities with these moments the Gaussian has the largest entropy, and E_q[log p] depends on these alone.
    It is the KL itself where q is Gaussian. Moments of draws would overstate it, by (D^2 + 3 D) / 4n and more where q
    has heavy tails; that is taken off.

    Args:
        q: posteriors, batch shape [B].
        z: draws of them [n, B, D], n > D + 1; not used where the moments are known.

    Returns:
        [B], in nats.

    Source: Cover & Thomas, "Elements of information theory", theorem 8.6.5; Mardia 1970 for the tails.
    """
    known = exact_moments(q)
    if known is not None:
        return _gaussian_kl(known[0], cholesky(known[1]))
    n, dim = z.shape[0], z.shape[-1]
    mean = z.mean(0)
    centred = z - mean
    covariance = torch.einsum("nbi,nbj->bij", centred, centred) / (n - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    ridge = 1e-6 * variance.mean(-1, keepdim=True).clamp(min=1e-9)  # so that a factor exists; it lowers the floor
    factor = cholesky(covariance.diagonal_scatter(variance + ridge, dim1=-2, dim2=-1))
    white = torch.linalg.solve_triangular(factor, centred.movedim(0, -1), upper=False)
    tails = white.square().sum(1).square().mean(-1) * (n + 1) / (n - 1) - dim * (dim + 2)  # 0 of a Gaussian
    of_mean = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / n
    return _gaussian_kl(mean, factor) - (of_mean - _log_det_bias(n, dim).to(z) + tails / (2 * n)) / 2


def _gaussian_kl(mean: Tensor, factor: Tensor) -> Tensor:
    """KL(N(m, L L') || N(0, I)), [B]."""
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (factor.square().sum((-2, -1)) + mean.square().sum(-1) - mean.shape[-1] - log_det) / 2


def _log_det_bias(n: int, dim: int) -> Tensor:
    """E[log det S_n] - log det S for the covariance of n draws of a Gaussian, negative."""
    half = (n - torch.arange(1, dim + 1, dtype=torch.float64)) / 2
    return (torch.digamma(half) - torch.tensor((n - 1) / 2, dtype=torch.float64).log()).sum()
