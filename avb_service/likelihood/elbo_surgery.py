"""ELBO surgery: what the KL of an ELBO is made of.

Floor 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import LatentVariableModel
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import DataError
from avb_service.likelihood.moments import exact_moments, kl, kl_floor
from avb_service.likelihood.needs import has_standard_normal_prior
from avb_service.likelihood.scoring import evaluating
from avb_service.maths import fit_gaussian
from avb_service.seeding import seeded

ACTIVE = 0.01  # variance of E_q[z_d] over data
PART = 256  # data at a time


@dataclass(frozen=True)
class Surgery:
    """The terms of a mean ELBO, in nats per datum.

    ELBO = reconstruction - mutual_information - marginal_kl; mean KL = mutual_information + marginal_kl.

    Attributes:
        reconstruction: E_q log p(x|z).
        mutual_information: between the number n of a datum and its code, at most log N; large is not bad.
        marginal_kl: KL(q(z) || p(z)), q(z) = mean_n q(z|x_n): what a better prior could save.
        kl: their sum, the mean of KL(q(z|x_n) || p(z)).
        kl_per_dimension: mean KL of each coordinate of the code as a Gaussian, [D]; none unless the prior is N(0, I).
            They add up to `kl` where q(z|x) is a factorised Gaussian.
        variance_of_means: variance over data of E_q[z_d], [D].
        data: N.
        fitted: whether densities are those of Gaussians r(z|x) with the moments of an implicit q. `kl` and
            `mutual_information` are lower bounds then, and their difference is no bound.
    """

    reconstruction: float
    mutual_information: float
    marginal_kl: float
    kl: float
    kl_per_dimension: Tensor | None
    variance_of_means: Tensor
    data: int
    fitted: bool

    @property
    def active_units(self) -> int:
        """Coordinates whose mean the data move: Var_x E_q[z_d] > 0.01 (Burda et al. 2016, appendix C)."""
        return int((self.variance_of_means > ACTIVE).sum())

    def metrics(self, split: str) -> dict[str, float]:
        """Named for a tracker: `test/surgery.mutual_information`, `test/surgery.kl_dimension_03`."""
        names = ("reconstruction", "mutual_information", "marginal_kl", "kl")
        found = {name: getattr(self, name) for name in names} | {"active_units": float(self.active_units)}
        if self.kl_per_dimension is not None:
            found |= {f"kl_dimension_{d:02}": value for d, value in enumerate(self.kl_per_dimension.tolist())}
        kind = ".gaussian_fit" if self.fitted else ""
        return {f"{split}/surgery{kind}.{name}": value for name, value in found.items()}


def surgery(model: LatentVariableModel, x: Tensor, draws: int, seed: int, moment_draws: int = 512) -> Surgery:
    """Take the mean ELBO of data apart.

    I(n; z) = E_n E_q(z|x_n)[log q(z|x_n) - log q(z)], q(z) = mean_n q(z|x_n) over all the data given, exactly.

    An implicit q has no density; the Gaussian r(z|x) with its moments takes its place there, under draws of q. Then
    E_q[log r - log p] = KL(r || p) <= KL(q || p), and the mutual information is a bound by the classifier
    r(z|x_n) / sum_m r(z|x_m) (Barber & Agakov 2003).

    Args:
        model: any latent-variable model.
        x: data [N, ...]; N^2 densities are computed for each draw.
        draws: codes of each datum.
        seed: of all noise.
        moment_draws: codes that the moments of an implicit q are taken from.

    Raises:
        DataError: fewer than two data.

    Source: Hoffman & Johnson 2016, "ELBO surgery: yet another way to carve up the variational evidence lower bound".
    """
    if len(x) < 2:
        raise DataError(f"ELBO surgery compares data with one another, given {len(x)}; give at least 2")
    parts = x.split(PART)
    with evaluating(model), seeded(seed, "surgery"):
        codes = [_codes(model, part, moment_draws) for part in parts]
        terms = torch.cat([_terms(model, part, of, codes, draws) for part, of in zip(parts, codes, strict=True)], 1)
    reconstruction, log_q, log_marginal = terms.mean(1).tolist()
    mean_kl, information = torch.cat([of.kl for of in codes]).mean().item(), log_q - log_marginal
    mean, variance = torch.cat([of.mean for of in codes]), torch.cat([of.variance for of in codes])
    per_dimension = None
    if has_standard_normal_prior(model):
        per_dimension = ((variance + mean.square() - 1 - variance.log()) / 2).mean(0)
    moved = mean.var(0) - codes[0].noise * variance.mean(0)
    return Surgery(
        reconstruction, information, mean_kl - information, mean_kl, per_dimension, moved, len(x), codes[0].fitted
    )


class _Codes(NamedTuple):
    """What is known of q(z|x) of some data.

    Attributes:
        q: for draws.
        density: q itself, or the Gaussian in its place.
        kl: KL(q || p), or its floor, [b].
        mean: [b, D].
        variance: [b, D].
        noise: of the mean, where it is one of draws: its variance over that of q.
        fitted: whether the density is that of a Gaussian in the place of q.
    """

    q: Distribution | ImplicitPosterior
    density: Distribution
    kl: Tensor
    mean: Tensor
    variance: Tensor
    noise: float
    fitted: bool


def _codes(model: LatentVariableModel, x: Tensor, moment_draws: int) -> _Codes:
    q, p = model.posterior(x), model.prior()
    known = exact_moments(q)
    z = q.sample((moment_draws,))
    if known is not None:
        mean, variance, noise = known[0], known[1].diagonal(dim1=-2, dim2=-1), 0.0
    else:
        mean, variance, noise = z.mean(0).flatten(1), z.var(0).flatten(1), 1 / moment_draws
    if isinstance(q, Distribution):
        return _Codes(q, q, kl(q, p, z), mean, variance, noise, False)
    r = fit_gaussian(z)
    floor = kl_floor(q, z) if has_standard_normal_prior(model) else (r.log_prob(z) - p.log_prob(z)).mean(0)
    return _Codes(q, r, floor, mean, variance, noise, True)


def _terms(model: LatentVariableModel, x: Tensor, of: _Codes, everybody: Sequence[_Codes], draws: int) -> Tensor:
    """Log p(x|z), log q(z|x) and log q(z) for draws of the codes of some data, [3, draws * b], float64."""
    terms: list[Tensor] = []
    for _ in range(draws):
        z = of.q.sample()
        each = [torch.logsumexp(other.density.log_prob(z[:, None]).double(), 1) for other in everybody]
        log_marginal = torch.logsumexp(torch.stack(each), 0) - math.log(sum(len(other.mean) for other in everybody))
        log_p, log_q = model.likelihood(z).log_prob(x).double(), of.density.log_prob(z).double()
        terms.append(torch.stack([log_p, log_q, log_marginal]))
    return torch.cat(terms, 1)
