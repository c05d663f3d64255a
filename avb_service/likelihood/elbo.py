"""Evidence lower bounds: one that is a bound, one that the adversary only believes to be, and the ceiling of both.

Floor 5.
"""

from typing import cast

from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import AdversarialModel, JointDensity
from avb_service.errors import UserError
from avb_service.likelihood.moments import exact_moments, kl, kl_floor
from avb_service.likelihood.needs import has_density, has_standard_normal_prior, prior_name, some_posterior
from avb_service.likelihood.scoring import Columns, Scorer
from avb_service.records import NATS, Key
from avb_service.seeding import seeded


def elbo(model: JointDensity, draws: int) -> Scorer:
    """E_q[log p(x|z)] - KL(q(z|x) || p(z)): a lower bound on log p(x).

    The KL is in closed form where there is one, else E_q[log q(z|x) - log p(z)] over the same draws.

    Args:
        model: with a posterior that has a density.
        draws: of the posterior, for each datum.

    Raises:
        UserError: the posterior is implicit.

    Source: Kingma & Welling 2014, eq. 7.
    """
    if not has_density(model):
        raise UserError(
            f"elbo needs a posterior with a density, that of {type(model).__name__} is implicit: use elbo_adversarial, "
            "which is no bound, or iwae, which is one"
        )

    def score(x: Tensor) -> Columns:
        q = cast(Distribution, model.posterior(x))
        z = q.sample((draws,))
        reconstruction = model.likelihood(z).log_prob(x).mean(0)
        divergence = kl(q, model.prior(), z)
        return {NATS: reconstruction - divergence, "reconstruction": reconstruction, "kl": divergence}

    return Scorer(Key("elbo"), "lower_bound", draws, score, recipe={"draws": draws})


def elbo_adversarial(model: JointDensity, draws: int, seed: int) -> Scorer:
    """E_q[log p(x|z) - T(x,z)], or its form with adaptive contrast.

    Its kind is `estimate`: an adversary that is not optimal moves it either way, so it bounds nothing.

    Args:
        model: with an adversary.
        draws: of the posterior, for each datum.
        seed: of the noise that is the same for all data, wherever they are scored: the moments of the contrast.

    Raises:
        UserError: the model has no adversary for its KL.

    Source: Mescheder et al. 2017, eq. 3.7, and section 4 for adaptive contrast.
    """
    if not isinstance(model, AdversarialModel):
        raise UserError(
            f"elbo_adversarial needs an adversary T(x,z) for its KL, which {type(model).__name__} has not: use "
            f"{'elbo' if has_density(model) else 'iwae'}"
        )

    def score(x: Tensor) -> Columns:
        q = model.posterior(x)
        z = q.sample((draws,))
        reconstruction = model.likelihood(z).log_prob(x).mean(0)
        with seeded(seed, "elbo_adversarial", "shared"):
            shared = model.shared()
        log_ratio = model.log_ratio(x, q, z, shared).mean(0)
        return {NATS: reconstruction - log_ratio, "reconstruction": reconstruction, "log_ratio": log_ratio}

    return Scorer(Key("elbo_adversarial"), "estimate", draws, score, recipe={"draws": draws})


def elbo_ceiling(model: JointDensity, draws: int) -> Scorer:
    """E_q[log p(x|z)] - KL(N(m, S) || p(z)), m and S the moments of q(z|x): no ELBO of this q is above it.

    **It bounds the ELBO of the model's own posterior, and not log p(x)**, which may be far above. It proves wrong an
    adversary whose ELBO exceeds it: KL(q || p) >= KL(N(m, S) || p), with equality where q is Gaussian.

    Args:
        model: with prior N(0, I).
        draws: of the posterior, for each datum; for its moments too, where it is not Gaussian.

    Raises:
        UserError: another prior, or fewer draws than a covariance needs.
    """
    if not has_standard_normal_prior(model):
        raise UserError(
            f"elbo_ceiling needs the prior N(0, I), that of {type(model).__name__} is {prior_name(model)}: use elbo"
        )
    dim = model.prior().event_shape[0]
    if exact_moments(some_posterior(model)) is None and draws < dim + 2:
        raise UserError(f"elbo_ceiling needs at least {dim + 2} draws for moments in {dim} dimensions, given {draws}")

    def score(x: Tensor) -> Columns:
        q = model.posterior(x)
        z = q.sample((draws,))
        reconstruction = model.likelihood(z).log_prob(x).mean(0)
        floor = kl_floor(q, z)
        return {NATS: reconstruction - floor, "reconstruction": reconstruction, "kl_floor": floor}

    return Scorer(Key("elbo_ceiling"), "upper_bound", draws, score, quantity="own_elbo", recipe={"draws": draws})
