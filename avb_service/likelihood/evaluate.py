"""Every estimator that applies to a model.

Floor 5.
"""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from avb_service.algorithm import AdversarialModel, Algorithm, LatentVariableModel
from avb_service.errors import UserError
from avb_service.likelihood.elbo import elbo, elbo_adversarial
from avb_service.likelihood.estimate import Estimate, LikelihoodConfig
from avb_service.likelihood.exact import quadrature
from avb_service.likelihood.importance import iwae

Estimator = Callable[[LatentVariableModel, Tensor, LikelihoodConfig], Estimate]


def latent_variable_model(model: Algorithm) -> LatentVariableModel:
    """The model as one that has a likelihood.

    Raises:
        UserError: it has none; names what it lacks.
    """
    if not isinstance(model, LatentVariableModel):
        raise UserError(f"{type(model).__name__} defines no p(x|z), so it has no log-likelihood")
    return model


def applicable(model: LatentVariableModel, x: Tensor) -> Iterator[Estimator]:
    """The estimators that the model supports, the one that searches compare by first."""
    yield iwae
    if isinstance(model.posterior(x[:1]), Distribution):
        yield elbo
    if isinstance(model, AdversarialModel):
        yield elbo_adversarial
    prior = model.prior()
    if isinstance(prior, Independent) and isinstance(prior.base_dist, Normal) and prior.event_shape[0] <= 2:
        yield quadrature


def evaluate(model: Algorithm, x: Tensor, config: LikelihoodConfig) -> list[Estimate]:
    """All applicable estimates on data [n, C, H, W], the one that searches compare by first."""
    scored = latent_variable_model(model)
    return [estimator(scored, x, config) for estimator in applicable(scored, x)]
