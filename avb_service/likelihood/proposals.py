"""Densities r(z|x) from which importance weights and annealing start.

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
from torch.distributions import Distribution, MultivariateNormal

from avb_service.algorithm import JointDensity
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError
from avb_service.likelihood.anneal import AnnealConfig, Path, pilot_chains, temperatures, transition
from avb_service.likelihood.gaussians import by_moments, by_scores
from avb_service.likelihood.needs import has_posterior, is_discrete, others, prior_name, some_posterior
from avb_service.likelihood.scoring import evaluating
from avb_service.maths import fit_gaussian, log_mean_exp, mean_and_factor
from avb_service.records.estimate import Recipe
from avb_service.seeding import seeded

PRIOR_DRAWS = 4096
PER_LATENT = 1.5  # states of pilot chains at least, so that scores at them tell every direction
TRIED = 64  # draws by which the better of two Gaussians is told, for each datum
CLEARLY = 2.0  # nats that moments must be ahead by; less where states outnumber the numbers of a covariance


@dataclass(frozen=True)
class Proposal:
    """Where draws and chains start.

    Attributes:
        propose: data [b, ...] -> r(z|x), batch shape [b], or none if it is the same for all data; event shape [D].
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
        rest: moves of each chain once it has arrived, and more where latents are many; the fit is to all of them.
        inflate: factor on the standard deviations; less of it where latents are many.
    """

    temperatures: Annotated[int, Field(ge=2)] = 250
    chains: Annotated[int, Field(ge=4)] = 16
    rest: Annotated[int, Field(ge=1)] = 20
    inflate: Annotated[float, Field(ge=1, le=3)] = 1.3


def own(model: JointDensity, draws: int, inflate: float) -> Proposal:
    """The posterior where it has a density, else a Gaussian fitted to draws of it that are not used again.

    Raises:
        UserError: the model has no posterior.
    """
    if not isinstance(some_posterior(model), ImplicitPosterior):
        return Proposal(lambda x: cast(Distribution, model.posterior(x)), recipe={"start": "posterior"})
    recipe: Recipe = {"start": "fitted", "fitted_to": draws, "inflate": inflate}
    return Proposal(lambda x: by_moments(model.posterior(x).sample((draws,)), inflate), draws, recipe)


def from_prior(model: JointDensity) -> Proposal:
    """The prior, whatever the posterior; where it is no Gaussian, the one with its moments, taken from draws."""
    prior = model.prior()
    if is_discrete(prior):
        raise UserError(
            f"annealing and its pilot chains need continuous codes, this prior is {prior_name(model)}: use "
            f"{others(model)}"
        )
    if mean_and_factor(prior) is not None:
        return Proposal(lambda x: prior.expand((len(x),)), recipe={"start": "prior"})

    @cache
    def whole() -> MultivariateNormal:  # once it is needed: who asks whether an estimator applies does not wait for it
        with evaluating(model), seeded("proposals", "prior"):
            return fit_gaussian(prior.sample((PRIOR_DRAWS, 1)))

    return Proposal(lambda x: whole().expand((len(x),)), recipe={"start": "prior"})


def refined(model: JointDensity, recipe: PilotConfig) -> Proposal:
    """A Gaussian fitted to where pilot chains go that were annealed from the prior, or to the scores there.

    It does not ask the model's own posterior, which may have collapsed where the true one has not. Nor does it weigh
    the chains: the weights of a few leave one of them. Scores do for many latents, and for few where the posterior is
    near a Gaussian; moments see how far a funnel reaches. A datum gets them where they have a clearly higher bound by
    draws of its own, which are not used again, so that what is then found is as valid as with either.
    """
    start, dim = from_prior(model), model.prior().event_shape[0]
    rest = max(recipe.rest, math.ceil(PER_LATENT * dim / recipe.chains))
    margin = CLEARLY * min(1.0, dim * (dim + 1) / 2 / (recipe.chains * (rest + 1)))

    def propose(x: Tensor) -> Distribution:
        path = Path(model, x, start(x))
        pilot = pilot_chains(path, temperatures(recipe.temperatures, "sigmoid", path.mean), recipe)
        visited = [pilot.state]
        for _ in range(rest):
            visited.append(transition(path, visited[-1], 1.0, pilot.steps[-1], recipe.leapfrog)[0])
        u, scores = (torch.cat([getattr(state, name) for state in visited]) for name in ("u", "gradient"))
        fits = [by_scores(u, scores, recipe.inflate), by_moments(u, recipe.inflate)]
        bounds = [log_mean_exp(model.log_joint(x, path.z(v := fit.sample((TRIED,)))) - fit.log_prob(v)) for fit in fits]
        better = (bounds[1] > bounds[0] + margin)[:, None]
        loc = torch.where(better, fits[1].loc, fits[0].loc)
        spread = torch.where(better[..., None], fits[1].scale_tril, fits[0].scale_tril)
        (mean,), factor = path.z(loc[None]), path.factor @ spread
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)

    numbers = 3 * recipe.chains * (rest + 1) * dim + 5 * dim**2  # at the fit, in float64
    rows = max(2 * recipe.chains, TRIED) + math.ceil(numbers / model.example.numel())
    told = {f"pilot_{key}": value for key, value in (recipe.tree() | {"rest": rest}).items()}
    return Proposal(propose, rows, {"start": "refined", **told})


def mixed(model: JointDensity, recipe: PilotConfig, draws: int, inflate: float) -> tuple[Proposal, ...]:
    """What a mixture is made of: the refined Gaussian, the model's own posterior where it has one, and the prior.

    Args:
        model: with a continuous latent space.
        recipe: of the first.
        draws: as for `own`.
        inflate: as for `own`.
    """
    prior = Proposal(lambda x: model.prior(), recipe={"start": "prior"})
    return refined(model, recipe), *([own(model, draws, inflate)] if has_posterior(model) else []), prior
