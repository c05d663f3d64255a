"""Gaussians for the posterior of each datum: by the moments of draws, or by the scores at them.

Floor 5. A covariance has D(D+1)/2 numbers, and draws of it are often fewer than D; so its moments are shrunk. The score
of a Gaussian is linear in z, so that the scores at as many draws as the data have directions tell it to the end.
"""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avb_service.maths import cholesky

SPREAD = 1e-5  # standard deviation of a code that all draws agree on
TINY = 1e-12  # in the place of zero, where it would divide
RIDGE = 1e-3  # of the mean variance of draws: along what no draw has tried, nothing is learned
RESOLVED = 1e-3  # of the largest curvature: a smaller one is not told from what is no Gaussian about the posterior


def by_moments(z: Tensor, inflate: float = 1.0) -> MultivariateNormal:
    """The moments of draws, their correlations shrunk as their number asks for.

    Args:
        z: independent draws [S, b, D], S > 1; fewer than D will do.
        inflate: as for `inflation`.

    Returns:
        The Gaussians, batch shape [b], event shape [D].

    Source: Chen, Wiesel, Eldar & Hero 2010, "Shrinkage algorithms for MMSE covariance estimation", eq. 23 (OAS)
    for many dimensions, as scikit-learn has it; of draws brought to variance 1, as Schäfer & Strimmer 2005 do.
    """
    count, _, dim = z.shape
    mean, scale = z.mean(0), z.std(0).clamp(min=SPREAD)
    white = (z - mean) / scale
    correlation = torch.einsum("sbi,sbj->bij", white, white) / count
    squares = correlation.square().sum((-2, -1))  # tr S^2
    trace = correlation.diagonal(dim1=-2, dim2=-1).sum(-1)
    unlike = (count + 1) * (squares - trace.square() / dim)
    wanted = (squares + trace.square()) / unlike.clamp(min=TINY)
    shrinkage = torch.where(unlike > TINY, wanted, 1.0).clamp(max=1.0)[:, None, None]
    target = torch.where(trace > 0, trace / dim, 1.0)[:, None, None] * torch.eye(dim).to(z)
    factor = scale[..., None] * cholesky((1 - shrinkage) * correlation + shrinkage * target)
    return MultivariateNormal(mean, scale_tril=inflation(inflate, dim) * factor, validate_args=False)


def by_scores(u: Tensor, scores: Tensor, inflate: float = 1.0) -> MultivariateNormal:
    """The Gaussian whose scores these are, N(0, I) being what is known of u without them.

    Of a posterior N(m, (I + M)^-1) the score is grad log p(u) = (I + M)(m - u), wherever u may be: the draws need not
    be of the posterior, nor weighed. What M does to the span of the draws is found by least squares, and the rest of it
    follows from M being symmetric, M >= 0, and of few directions (Nystrom's completion). It is exact for a Gaussian
    posterior where the draws outnumber the directions that the data say something about.

    Args:
        u: draws [S, b, D], S > 1, in coordinates in which the start of the chains is N(0, I).
        scores: the gradient of log p(x,u) by u there, [S, b, D]; draws where it is not finite are left out.
        inflate: as for `inflation`.

    Returns:
        The Gaussians, batch shape [b], event shape [D].

    Source: Martinsson & Tropp 2020, "Randomized numerical linear algebra", section 14, for the completion.
    """
    dtype, dim = u.dtype, u.shape[-1]
    sound = (u + scores).isfinite().all(-1, keepdim=True)
    mean_draw, draws = _centred(u, sound)
    mean_slope, slopes = _centred(scores + u, sound)  # without that of N(0, I)
    gram, eye = draws.mT @ draws, torch.eye(dim, dtype=torch.float64, device=u.device)
    ridge = RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=TINY)[:, None, None]
    span, image = torch.linalg.solve(gram + ridge * eye, torch.cat([gram, -draws.mT @ slopes], -1)).split(dim, -1)
    curvature, directions = torch.linalg.eigh(_symmetric(span @ image.mT))  # of M within the span
    known = curvature > RESOLVED * curvature.abs().amax(-1, keepdim=True)
    root = image.mT @ directions * torch.where(known, curvature.abs().rsqrt(), 0.0)[:, None]
    covariance, failed = torch.linalg.inv_ex(eye + root @ root.mT)  # of scores beyond all measure there is none
    covariance = covariance.masked_fill(failed[..., None, None] != 0, math.nan)
    mean = mean_draw + (mean_slope - mean_draw) @ covariance  # a Newton step
    factor = inflation(inflate, dim) * cholesky(_symmetric(covariance))
    return MultivariateNormal(mean[:, 0].to(dtype), scale_tril=factor.to(dtype), validate_args=False)


def inflation(inflate: float, dim: int) -> float:
    """The factor on standard deviations that a fit may be widened by, so that no tail of a posterior is left out.

    It is `inflate`, but for many latents less: widened by s, the weights of a Gaussian have the second moment
    (s^4 / (2 s^2 - 1))^(D/2), which s^2 - 1 <= 2 / sqrt(D) keeps below e^2.
    """
    return math.sqrt(1 + min(inflate**2 - 1, 2 / math.sqrt(dim)))


def _centred(values: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
    """Means [b, 1, D] of the sound ones of values [S, b, D], and the distances from it [b, S, D], 0 of the others."""
    values, sound = values.double().transpose(0, 1), sound.transpose(0, 1)
    mean = torch.where(sound, values, 0.0).sum(1, keepdim=True) / sound.sum(1, keepdim=True)
    return mean, torch.where(sound, values - mean, 0.0)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
