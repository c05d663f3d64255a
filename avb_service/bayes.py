"""Bayesian models: unknowns z with a prior, observations x, and the joint density that inference needs.

Floor 1.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import product
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from avb_service.errors import UserError
from avb_service.kinds import Table, subclass_of
from avb_service.maths import standard_normal
from avb_service.pathfinder import pathfinder


class BayesianModel(nn.Module):
    """A model of observations x with unknowns z on all of R^D.

    Inference asks for `log_joint` alone, so a model may be nothing but that function. The prior and the likelihood are
    needed besides by predictions, certificates, and proposals that are refined from the prior.

    Attributes:
        shape: of the observations, (C, H, W).
        dim: D.
        unknowns: names of what `natural` gives.
    """

    shape: ClassVar[tuple[int, int, int]]
    dim: ClassVar[int]
    unknowns: ClassVar[tuple[str, ...]]

    def prior(self) -> Distribution:
        """p(z), event shape [D].

        Raises:
            UserError: the model is given by its log joint alone.
        """
        raise UserError(f"{type(self).__name__} is given by its log joint alone and has no prior to draw from")

    def forward(self, z: Tensor) -> Distribution:
        """p(x|z), event shape [C, H, W], for unknowns [..., D].

        Raises:
            UserError: the model is given by its log joint alone.
        """
        raise UserError(f"{type(self).__name__} is given by its log joint alone and has no likelihood to draw from")

    def natural(self, z: Tensor) -> Tensor:
        """The unknowns in their own units, [..., len(unknowns)], for z [..., D]."""
        return z

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x,z) in nats, [..., B], for observations [B, C, H, W] and unknowns [..., B, D]."""
        return self(z).log_prob(x) + self.prior().log_prob(z)

    def prepare(self, x: Tensor) -> None:
        """Called with the observation [1, C, H, W] before training begins; what it finds is kept in buffers."""


class Unknown(NamedTuple):
    """What is to be inferred.

    Attributes:
        constraint: of torch.distributions, on the values that it may have.
        shape: of it; () for a number.
    """

    constraint: Constraint = constraints.real
    shape: tuple[int, ...] = ()

    @property
    def free_shape(self) -> torch.Size:
        """Of what stands for it where nothing is constrained: of a simplex [K], [K - 1]."""
        return self.transform.inverse_shape(torch.Size(self.shape))

    @property
    def transform(self) -> Transform:
        """From what is free to the unknown, as torch has registered it.

        Raises:
            UserError: there is none for the constraint.
        """
        try:
            return biject_to(self.constraint)
        except NotImplementedError:
            raise UserError(
                f"{self.constraint} is a constraint for which torch.distributions has no transform; use another, or "
                "register one with torch.distributions.biject_to"
            ) from None


class ConstrainedModel(BayesianModel):
    """A model that is given by the log density of its unknowns, in their own units and under their own constraints.

    Inference sees numbers z in R^D that are free of constraints and, before training begins, whitened: z = 0 is where
    `pathfinder` has found the posterior, and 1 its width, whatever the units are.

    Attributes:
        declared: the unknowns by name, in the order of `natural`.
    """

    declared: ClassVar[Mapping[str, Unknown]]
    center: Tensor
    factor: Tensor

    def __init_subclass__(cls) -> None:
        """Count what is declared."""
        super().__init_subclass__()
        declared = getattr(cls, "declared", {})
        cls.dim = sum(each.free_shape.numel() for each in declared.values())
        cls.unknowns = tuple(each for name, unknown in declared.items() for each in _entries(name, unknown.shape))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(self.dim))
        self.register_buffer("factor", torch.eye(self.dim))

    @abstractmethod
    def log_density(self, x: Tensor, **unknowns: Tensor) -> Tensor:
        """Log p(x, unknowns) in nats, [..., B], for observations [B, C, H, W] and unknowns [..., B, *shape]."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x,z): the density of the unknowns, and how much their transforms stretch."""
        unknowns, stretch = self.constrained(self.center + z @ self.factor.mT)
        return self.log_density(x, **unknowns) + stretch + self.factor.diagonal().log().sum()

    def natural(self, z: Tensor) -> Tensor:
        """See `BayesianModel.natural`."""
        values, _ = self.constrained(self.center + z @ self.factor.mT)
        return torch.cat([value.reshape(*z.shape[:-1], -1) for value in values.values()], -1)

    def constrained(self, free: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The unknowns [..., *shape] for free numbers [..., D], and the log determinant of how they depend on these."""
        sizes = [unknown.free_shape.numel() for unknown in self.declared.values()]
        values, stretch = {}, free.new_zeros(free.shape[:-1])
        for (name, unknown), part in zip(self.declared.items(), free.split(sizes, -1), strict=True):
            part, transform = part.reshape(*free.shape[:-1], *unknown.free_shape), unknown.transform
            values[name] = transform(part)
            change = transform.log_abs_det_jacobian(part, values[name])
            stretch = stretch + change.reshape(*free.shape[:-1], -1).sum(-1)
        return values, stretch

    def prepare(self, x: Tensor) -> None:
        """Whiten the unknowns by the Gaussian that is nearest to their posterior.

        Raises:
            UserError: there is none; says what the log joint was.
        """

        def log_p(free: Tensor) -> Tensor:
            unknowns, stretch = self.constrained(free.reshape(-1, 1, self.dim))
            return (self.log_density(x.double(), **unknowns) + stretch).reshape(free.shape[:-1])

        mean, factor = pathfinder(log_p, torch.zeros(self.dim, dtype=torch.float64))
        self.center.copy_(mean)
        self.factor.copy_(factor)


def _entries(name: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Names of the numbers of an unknown: beta[1], beta[2], ..."""
    for index in product(*(range(1, size + 1) for size in shape)):
        yield f"{name}[{','.join(map(str, index))}]" if index else name


class EightSchools(BayesianModel):
    """Effects of coaching in eight schools: y_j ~ N(theta_j, s_j^2), theta_j ~ N(mu, tau^2), s_j known.

    With mu ~ N(0, 5^2) and tau ~ HalfCauchy(5). The unknowns are z ~ N(0, I) in R^10, of which mu, tau and the effects
    are functions (mu = 5 z_1, tau = 5 tan(pi/2 Phi(z_2)), theta_j = mu + tau z_{2+j}).

    Source: Rubin 1981; Gelman et al., "Bayesian Data Analysis", section 5.5; Papaspiliopoulos et al. 2007 for the
    parametrisation.
    """

    shape: ClassVar[tuple[int, int, int]] = (1, 1, 8)
    dim: ClassVar[int] = 10
    unknowns: ClassVar[tuple[str, ...]] = ("mu", "tau", *(f"theta_{j}" for j in range(1, 9)))

    effects = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
    scale: Tensor
    errors = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(self.errors).view(self.shape), persistent=False)

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.dim, like=self.scale)

    def forward(self, z: Tensor) -> Distribution:
        """y_j ~ N(theta_j, s_j^2)."""
        effects = self.natural(z)[..., 2:].unflatten(-1, self.shape)
        return Independent(Normal(effects, self.scale, validate_args=False), 3, validate_args=False)

    def natural(self, z: Tensor) -> Tensor:
        """Mu, tau, theta_1 to theta_8."""
        mu = 5 * z[..., :1]
        # tan(pi/2 Phi(z)), by what is left of Phi, so that large tau keep their digits
        tau = 5 / torch.tan(0.5 * math.pi * torch.special.ndtr(-z[..., 1:2]))
        return torch.cat([mu, tau, mu + tau * z[..., 2:]], -1)


BAYESIAN_MODELS: Table[type[BayesianModel]] = Table(
    "bayesian_models", {"eight_schools": EightSchools}, subclass_of(BayesianModel)
)
