"""A model that is given by its densities, whoever has trained it.

Floor 5. `likelihood/trial.py` tries out what a user has given before anything is made of it.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)

from avb_service.algorithm import JointDensity
from avb_service.distributions import ImplicitPosterior
from avb_service.errors import UserError
from avb_service.seeding import seeded

Likelihood = Callable[[Tensor], Distribution]  # codes [..., D] -> p(x|z), batch shape [...], event shape a datum's
Network = Callable[[Tensor], Tensor]  # codes [N, D] -> outputs [N, ...], in the shape of the data
Posterior = Callable[[Tensor], Distribution]  # data [B, ...] -> q(z|x), batch shape [B], event shape [D]
Observation = Literal["bernoulli", "gaussian"]


class GivenModel(JointDensity):
    """p(z) p(x|z), each given as a torch distribution.

    Chains move through all of R^D. Where the prior is on a part of it (an interval, a simplex), the codes that are seen
    from outside are u = T(z) for a bijection T of torch's, which leaves p(x) as it is.

    Args:
        likelihood: codes [..., D] -> p(x|z). A torch module, or a method of one, is in evaluation mode meanwhile.
        prior: p(z), event shape [D].
        posterior: data [B, ...] -> q(z|x), where there is one; if its density is not known, it is what its draws are.
        example: a datum [1, ...] in the precision of the prior's codes, where they are.
    """

    def __init__(
        self, likelihood: Likelihood, prior: Distribution, posterior: Posterior | None, example: Tensor
    ) -> None:
        super().__init__()
        self._likelihood, self._posterior, self._example = likelihood, posterior, example
        self._to_support = _to_support(prior)
        self._prior = self._unconstrained(prior)
        owners = (getattr(function, "__self__", None) for function in (likelihood, posterior))
        self._owners = nn.ModuleList([owner for owner in owners if isinstance(owner, nn.Module)])

    @property
    def example(self) -> Tensor:
        """A datum, [1, ...]."""
        return self._example

    def prior(self) -> Distribution:
        """p(z)."""
        return self._prior

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self._likelihood(z if self._to_support is None else self._to_support(z))

    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        """q(z|x); implicit where its density is not known.

        Raises:
            UserError: none was given.
        """
        if self._posterior is None:
            raise UserError("no posterior q(z|x) was given: use ais, ais_prior or iwae_mixture, which ask for none")
        q = self._unconstrained(self._posterior(x))
        return q if self._has_density else ImplicitPosterior(q.sample)

    @cached_property
    def _has_density(self) -> bool:
        """Whether log q(z|x) is known: tried out once, under noise of its own."""
        if self._posterior is None:
            return False
        with seeded("given"):
            q = self._unconstrained(self._posterior(self._example))
            try:
                q.log_prob(q.sample())
            except NotImplementedError:
                return False
        return True

    def _unconstrained(self, codes: Distribution) -> Distribution:
        return codes if self._to_support is None else TransformedDistribution(codes, [self._to_support.inv])


def _to_support(prior: Distribution) -> Transform | None:
    """A bijection from all of R^D to where the codes are; None where that is R^D itself, or they can be counted.

    Raises:
        UserError: torch has none.
    """
    try:
        support: Any = prior.support
    except NotImplementedError:
        return None
    if isinstance(prior, MixtureSameFamily):
        support = support.base_constraint  # what torch wraps it in has no bijection, and is where its parts are
    each = support
    while isinstance(each, constraints.independent):
        each = each.base_constraint
    if each is None or each.is_discrete or isinstance(each, type(constraints.real)):
        return None
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise UserError(
            f"prior: its codes are in {support}, and torch has no bijection from there to all of R^D, through which "
            "chains move: give the prior of codes that are carried there"
        ) from error


class Observed(nn.Module):
    """A network whose outputs say what p(x|z) is.

    Args:
        network: codes [N, D] -> logits of binary data, or means of real ones, [N, ...] with the shape of the data.
        observation: which of the two.
        scale: standard deviation of the Gaussian noise.

    Raises:
        UserError: there is no such observation, or the scale is missing, not positive, or of no use.
    """

    def __init__(self, network: Network, observation: Observation, scale: float | None = None) -> None:
        super().__init__()
        if observation not in ("bernoulli", "gaussian"):
            raise UserError(
                f"observation: given {observation!r}, expected bernoulli (the network gives logits) or gaussian (it "
                "gives means); for any other, give a function of codes that returns a torch distribution"
            )
        if observation == "bernoulli" and scale is not None:
            raise UserError(f"scale: given {scale} for bernoulli, which has none")
        if observation == "gaussian" and not (scale is not None and 0 < scale < math.inf):
            raise UserError(f"scale: given {scale}, expected the standard deviation of the noise around the means")
        self.network, self.scale = network, scale

    def forward(self, z: Tensor) -> Distribution:
        """p(x|z) for codes [..., D]."""
        flat = self.network(z.flatten(0, -2))
        outputs = flat.unflatten(0, z.shape[:-1])
        p = Bernoulli(logits=outputs) if self.scale is None else Normal(outputs, self.scale)
        return Independent(p, flat.dim() - 1)
