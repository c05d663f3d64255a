"""What estimators need of a model; each says by name what is not there, and what to use.

Floor 5.
"""

from torch.distributions import Distribution, Independent

from avb_service.algorithm import JointDensity
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError
from avb_service.likelihood.scoring import evaluating
from avb_service.maths import gaussian_marginals
from avb_service.records.record import PROBABILITIES
from avb_service.seeding import seeded


def some_posterior(model: JointDensity) -> Distribution | ImplicitPosterior:
    """The posterior of the model's example, to see of what kind its posteriors are."""
    with evaluating(model), seeded("needs"):
        return model.posterior(model.example)


def has_posterior(model: JointDensity) -> bool:
    """Whether the model has a q(z|x); one that was put around a generator has none."""
    try:
        some_posterior(model)
    except UserError:
        return False
    return True


def has_density(model: JointDensity) -> bool:
    """Whether log q(z|x) can be computed."""
    return isinstance(some_posterior(model), Distribution)


def others(model: JointDensity) -> str:
    """What to use in place of an estimator that does not fit the prior."""
    discrete = is_discrete(model.prior())
    if not has_posterior(model):
        return "parzen" if discrete else "ais"  # which ask for no posterior
    return "enumeration, iwae or elbo" if discrete else "ais or iwae"


def is_discrete(distribution: Distribution) -> bool:
    """Whether its values can be counted; where it does not say what they are, as a flow, they are numbers."""
    try:
        return getattr(distribution.support, "is_discrete", False)
    except NotImplementedError:
        return False


def has_standard_normal_prior(model: JointDensity) -> bool:
    """Whether p(z) = N(0, I); no where the model has no prior."""
    try:
        marginals = gaussian_marginals(model.prior())
    except UserError:
        return False
    return marginals is not None and bool((marginals.loc == 0).all() and (marginals.scale == 1).all())


def prior_name(model: JointDensity) -> str:
    """What the prior is, for people."""
    prior = model.prior()
    base = prior.base_dist if isinstance(prior, Independent) else prior
    return f"{type(base).__name__}, event shape {list(prior.event_shape)}"


def on_a_grid(model: JointDensity) -> bool:
    """Whether p(x|z) gives probabilities to levels, and not a density; no where the model has no prior."""
    try:
        with evaluating(model), seeded("needs"):
            p = model.likelihood(model.prior().sample((1,)))
    except UserError:
        return False
    return is_discrete(p)


def measure(model: JointDensity) -> str:
    """What p(x|z) is for data on a grid {0, 1, ..., L} / L: probabilities, or a density, larger by log L a pixel."""
    return PROBABILITIES if on_a_grid(model) else "a density"
