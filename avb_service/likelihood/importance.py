"""Importance-weighted bounds.

Floor 5.
"""

from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import LatentVariableModel
from avb_service.likelihood.estimate import Estimate, LikelihoodConfig, over_data
from avb_service.maths import fit_gaussian, log_mean_exp


def iwae(model: LatentVariableModel, x: Tensor, config: LikelihoodConfig) -> Estimate:
    """Log mean_K p(x,z) / r(z|x), z ~ r: a lower bound on log p(x) in expectation, whatever r.

    r is the posterior where that has a density. Where it is implicit, r is a Gaussian fitted to draws of it that
    are not used again, its standard deviations inflated.

    Args:
        model: any latent-variable model.
        x: data [n, C, H, W].
        config: K, draws for the fit, inflation, seed, memory.

    Source: Burda et al. 2016, eq. 8.
    """
    draws = config.importance_draws

    def score(part: Tensor) -> Tensor:
        r = proposal(model, part, config)
        z = r.sample((draws,))
        return log_mean_exp(model.log_joint(part, z) - r.log_prob(z))

    return Estimate.of(f"iwae_{draws}", "lower_bound", over_data(score, x, draws, config, "iwae"))


def proposal(model: LatentVariableModel, x: Tensor, config: LikelihoodConfig) -> Distribution:
    """r(z|x): the posterior, or the Gaussian fitted to it."""
    q = model.posterior(x)
    return q if isinstance(q, Distribution) else fit_gaussian(q.sample((config.proposal_draws,)), config.inflate)
