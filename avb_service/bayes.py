"""Bayesian models: unknowns z with a prior, observations x, and the joint density that inference needs.

Floor 1.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from avb_service.errors import UserError
from avb_service.kinds import Table, subclass_of
from avb_service.maths import standard_normal


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
