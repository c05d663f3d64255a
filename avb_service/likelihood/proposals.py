"""Gaussians r(z|x) from which importance weights and annealing start.

Floor 5. Whatever r is, the estimate stays a lower bound, as long as r was not fitted to the draws that are weighed;
what a poor one costs is tightness.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from avb_service.algorithm import LatentVariableModel
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError
from avb_service.likelihood.anneal import AnnealConfig, Path, pilot_chains, temperatures, transition
from avb_service.likelihood.estimate import Recipe, evaluating
from avb_service.likelihood.needs import others, prior_name, some_posterior
from avb_service.maths import cholesky, fit_gaussian
from avb_service.seeding import seeded

PRIOR_DRAWS = 4096
RIDGE = 1e-4  # of the mean variance, so that a covariance always has a factor


@dataclass(frozen=True)
class Proposal:
    """Where draws and chains start.

    Attributes:
        propose: data [b, ...] -> r(z|x), batch shape [b], event shape [D].
        rows: evaluations of a network that a datum needs at a time for it, to bound the memory.
        recipe: how it is found.
    """

    propose: Callable[[Tensor], Distribution]
    rows: int = 1
    recipe: Recipe = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Distribution:
        """r(z|x) for data [b, ...]."""
        return self.propose(x)


class PilotConfig(AnnealConfig):
    """Pilot chains from the prior, and the Gaussian that is fitted to where they go at the end.

    Attributes:
        rest: moves of each chain once it has arrived; the fit is to all of them.
        inflate: factor on the standard deviations.
    """

    temperatures: Annotated[int, Field(ge=2)] = 250
    chains: Annotated[int, Field(ge=4)] = 16
    rest: Annotated[int, Field(ge=1)] = 20
    inflate: Annotated[float, Field(ge=1, le=3)] = 1.3


def own(model: LatentVariableModel, draws: int, inflate: float) -> Proposal:
    """The posterior where it has a density, else a Gaussian fitted to draws of it that are not used again.

    Raises:
        UserError: the model has no posterior.
    """
    if not isinstance(some_posterior(model), ImplicitPosterior):
        return Proposal(lambda x: cast(Distribution, model.posterior(x)), recipe={"start": "posterior"})
    recipe: Recipe = {"start": "fitted", "fitted_to": draws, "inflate": inflate}
    return Proposal(lambda x: fit_gaussian(model.posterior(x).sample((draws,)), inflate), draws, recipe)


def from_prior(model: LatentVariableModel) -> Proposal:
    """The prior, whatever the posterior; where it is no Gaussian, the one with its moments, taken from draws."""
    prior = model.prior()
    if getattr(prior.support, "is_discrete", False):
        raise UserError(
            f"annealing and its pilot chains need continuous codes, this prior is {prior_name(model)}: use "
            f"{others(model)}"
        )
    if isinstance(prior, MultivariateNormal) or isinstance(prior, Independent) and isinstance(prior.base_dist, Normal):
        return Proposal(lambda x: prior.expand((len(x),)), recipe={"start": "prior"})

    @cache
    def whole() -> MultivariateNormal:  # once it is needed: who asks whether an estimator applies does not wait for it
        with evaluating(model), seeded("proposals", "prior"):
            return fit_gaussian(prior.sample((PRIOR_DRAWS, 1)))

    return Proposal(lambda x: whole().expand((len(x),)), recipe={"start": "prior"})


def refined(model: LatentVariableModel, recipe: PilotConfig) -> Proposal:
    """A Gaussian fitted to weighted pilot chains that were annealed from the prior.

    It does not ask the model's own posterior, which may have collapsed where the true one has not.
    """
    start = from_prior(model)

    def propose(x: Tensor) -> Distribution:
        path = Path(model, x, start(x))
        pilot = pilot_chains(path, temperatures(recipe.temperatures, "sigmoid", path.mean), recipe)
        state, visited = pilot.state, [pilot.state.u]
        for _ in range(recipe.rest):
            state, _ = transition(path, state, 1.0, pilot.steps[-1], recipe.leapfrog)
            visited.append(state.u)
        z = path.z(torch.cat(visited))
        return weighted_gaussian(z, pilot.log_weights.repeat(len(visited), 1), recipe.inflate)

    codes = recipe.chains * (recipe.rest + 1) * model.prior().event_shape[0]  # numbers, four times over at the fit
    rows = 2 * recipe.chains + math.ceil(codes / math.prod(model.spec.shape))
    return Proposal(propose, rows, {"start": "refined", **{f"pilot_{k}": v for k, v in recipe.tree().items()}})


def weighted_gaussian(z: Tensor, log_weights: Tensor, inflate: float) -> MultivariateNormal:
    """The moments of weighted draws; few of them say little of correlations, so these are shrunk.

    Weights are truncated at sqrt(S) times their mean, so that no draw stands for all.

    Args:
        z: draws [S, b, D].
        log_weights: [S, b].
        inflate: factor on the standard deviations.

    Source: Ionides 2008, "Truncated importance sampling", for the weights.
    """
    log_limit = torch.logsumexp(log_weights, 0) - 0.5 * math.log(len(z))
    weights = torch.softmax(torch.minimum(log_weights, log_limit), 0).to(z.dtype)
    effective = 1 / weights.square().sum(0)
    mean = torch.einsum("cb,cbi->bi", weights, z)
    centred = z - mean
    unbiased = (effective / (effective - 1).clamp(min=0.5))[:, None, None]
    covariance = unbiased * torch.einsum("cb,cbi,cbj->bij", weights, centred, centred)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    variance = variance + RIDGE * variance.mean(-1, keepdim=True).clamp(min=1e-6)
    shrinkage = ((z.shape[-1] + 1) / (effective + z.shape[-1] + 1))[:, None, None]
    covariance = ((1 - shrinkage) * covariance).diagonal_scatter(variance, dim1=-2, dim2=-1)
    return MultivariateNormal(mean, scale_tril=inflate * cholesky(covariance), validate_args=False)
