"""Evidence lower bounds: one that is a bound, and one that the adversary only believes to be.

Floor 5.
"""

from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from avb_service.algorithm import AdversarialModel, LatentVariableModel
from avb_service.errors import UserError
from avb_service.likelihood.estimate import Estimate, LikelihoodConfig, over_data
from avb_service.seeding import generator


def elbo(model: LatentVariableModel, x: Tensor, config: LikelihoodConfig) -> Estimate:
    """E_q[log p(x|z)] - KL(q(z|x) || p(z)), the KL in closed form: a lower bound on log p(x).

    Args:
        model: with a posterior that has a density.
        x: data [n, C, H, W].
        config: number of draws, seed, memory.

    Raises:
        UserError: the posterior is implicit.

    Source: Kingma & Welling 2014, eq. 7.
    """

    def score(part: Tensor) -> Tensor:
        q = model.posterior(part)
        if not isinstance(q, Distribution):
            raise UserError("elbo needs a posterior with a density; this one is implicit: use elbo_adversarial or iwae")
        z = q.sample((config.elbo_draws,))
        return model.likelihood(z).log_prob(part).mean(0) - kl_divergence(q, model.prior())

    return Estimate.of("elbo", "lower_bound", over_data(score, x, config.elbo_draws, config, "elbo"))


def elbo_adversarial(model: LatentVariableModel, x: Tensor, config: LikelihoodConfig) -> Estimate:
    """E_q[log p(x|z) - T(x,z)], or its form with adaptive contrast.

    Its kind is `estimate`: an adversary that is not optimal moves it either way, so it bounds nothing.

    Args:
        model: with an adversary.
        x: data [n, C, H, W].
        config: number of draws, seed, memory.

    Raises:
        UserError: the model has no adversary for its KL.

    Source: Mescheder et al. 2017, eq. 3.7, and section 4 for adaptive contrast.
    """
    if not isinstance(model, AdversarialModel):
        raise UserError(f"elbo_adversarial needs an adversary, which {type(model).__name__} has not: use elbo")

    def score(part: Tensor) -> Tensor:
        q = model.posterior(part)
        z = q.sample((config.elbo_draws,))
        log_ratio = model.log_ratio(part, q, z, generator(part.device, config.seed, "elbo_adversarial", "shared"))
        return (model.likelihood(z).log_prob(part) - log_ratio).mean(0)

    values = over_data(score, x, config.elbo_draws, config, "elbo_adversarial")
    return Estimate.of("elbo_adversarial", "estimate", values)
