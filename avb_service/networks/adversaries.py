"""Adversaries T(x, z): networks that learn the log-ratio of two densities of z given x.

Floor 1. Called with data an adversary returns the function T(x, .), so that what depends on x alone is computed once
for the codes of both kinds.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from avb_service.config import Config
from avb_service.kinds import OneOf, Table, subclass_of
from avb_service.networks.trunks import ImageShape, MLPConfig, TrunkConfig, Width, beside, layers

LogRatio = Callable[[Tensor], Tensor]


class Adversary(Config):
    """What every adversary's section has.

    Attributes:
        name: the kind of adversary.
    """

    name: str

    @abstractmethod
    def build(self, shape: ImageShape, latent_dim: int, quadratic: bool) -> nn.Module:
        """A module that gives T(x, .), a function of codes [..., B, D] with values [..., B], for data [B, C, H, W].

        Args:
            shape: of x, (C, H, W).
            latent_dim: D.
            quadratic: add |z|^2 / 2, which is -log p(z) up to a constant, so that only log q(z|x) is left to learn.
        """


class InnerProductConfig(Adversary):
    """T(x, z) = theta(x) . s(z) + T_x(x) + T_z(z), the adversary of the 2017 experiments.

    Attributes:
        trunk: what theta and T_x are made of.
        hidden: widths of the layers that s and T_z are made of.
        rank: length of theta and s.
    """

    name: Literal["inner_product"] = "inner_product"
    trunk: TrunkConfig = MLPConfig(hidden=(512, 512), activation="leaky_relu")
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 512)
    rank: Width = 512

    def build(self, shape: ImageShape, latent_dim: int, quadratic: bool) -> "InnerProductAdversary":
        """The module."""
        return InnerProductAdversary(self, shape, latent_dim, quadratic)


class FlatConfig(Adversary):
    """T(x, z) = one network of the features of x and of z, side by side.

    Attributes:
        trunk: the features of x.
        hidden: widths of the layers that see both.
    """

    name: Literal["flat"] = "flat"
    trunk: TrunkConfig = MLPConfig(hidden=(512,), activation="leaky_relu")
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 512)

    def build(self, shape: ImageShape, latent_dim: int, quadratic: bool) -> "FlatAdversary":
        """The module."""
        return FlatAdversary(self, shape, latent_dim, quadratic)


class InnerProductAdversary(nn.Module):
    """T(x, z) = theta(x) . s(z) + T_x(x) + T_z(z) (+ |z|^2 / 2).

    Args:
        config: widths.
        shape: of x, (C, H, W).
        latent_dim: D.
        quadratic: add |z|^2 / 2, which is -log p(z) up to a constant, so that only log q(z|x) is left to learn.

    Source: Mescheder et al. 2017, supplement; T_x and T_z start at zero.
    """

    def __init__(self, config: InnerProductConfig, shape: ImageShape, latent_dim: int, quadratic: bool) -> None:
        super().__init__()
        self.quadratic = quadratic
        activation = config.trunk.activation
        self.features, width = config.trunk.features(shape)
        self.code = nn.Sequential(*layers((latent_dim, *config.hidden), activation))
        self.theta, self.t_x = nn.Linear(width, config.rank), _zero_linear(width)
        self.s, self.t_z = nn.Linear(config.hidden[-1], config.rank), _zero_linear(config.hidden[-1])

    def forward(self, x: Tensor) -> LogRatio:
        """T(x, .): codes [..., B, D] -> log-ratios [..., B]."""
        h = self.features(x)
        theta, t_x = self.theta(h), self.t_x(h)[:, 0]

        def log_ratio(z: Tensor) -> Tensor:
            c = self.code(z)
            t = (theta * self.s(c)).sum(-1) + t_x + self.t_z(c)[..., 0]
            return t + z.square().sum(-1) / 2 if self.quadratic else t

        return log_ratio


class FlatAdversary(nn.Module):
    """T(x, z) = MLP(h(x), z) (+ |z|^2 / 2), with the last layer starting at zero.

    Args: as for `InnerProductAdversary`.
    """

    def __init__(self, config: FlatConfig, shape: ImageShape, latent_dim: int, quadratic: bool) -> None:
        super().__init__()
        self.quadratic = quadratic
        self.features, width = config.trunk.features(shape)
        widths = (width + latent_dim, *config.hidden)
        self.joint = nn.Sequential(*layers(widths, config.trunk.activation), _zero_linear(widths[-1]))

    def forward(self, x: Tensor) -> LogRatio:
        """T(x, .): codes [..., B, D] -> log-ratios [..., B]."""
        joint = beside(self.joint, self.features(x))

        def log_ratio(z: Tensor) -> Tensor:
            t = joint(z)[..., 0]
            return t + z.square().sum(-1) / 2 if self.quadratic else t

        return log_ratio


def _zero_linear(inputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


ADVERSARIES: Table[type[Adversary]] = Table(
    "adversaries", {"inner_product": InnerProductConfig, "flat": FlatConfig}, subclass_of(Adversary)
)
AdversaryConfig = Annotated[Adversary, OneOf(ADVERSARIES)]
