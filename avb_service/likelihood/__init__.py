"""Log-likelihoods that say what they are: exact, a bound, or an estimate.

Floor 5.
"""

from avb_service.likelihood.elbo import elbo, elbo_adversarial
from avb_service.likelihood.estimate import Estimate, LikelihoodConfig
from avb_service.likelihood.evaluate import evaluate, latent_variable_model
from avb_service.likelihood.exact import quadrature
from avb_service.likelihood.importance import iwae

__all__ = [
    "Estimate", "LikelihoodConfig", "elbo", "elbo_adversarial", "evaluate", "iwae", "latent_variable_model",
    "quadrature",
]
