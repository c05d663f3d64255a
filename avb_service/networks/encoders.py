"""Encoders: Gaussians of data, and of data beside a vector; two whose posterior is implicit; logits of discrete codes.

Floor 1.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from avb_service.config import Config
from avb_service.distributions import BasisMoments, ImplicitPosterior, NoiseBasisPosterior
from avb_service.kinds import OneOf, Table, subclass_of
from avb_service.maths import Shape
from avb_service.networks.trunks import ACTIVATIONS, ImageShape, MLPConfig, TrunkConfig, Width, beside, layers


class GaussianEncoder(nn.Module):
    """q(z|x) = N(m(x), diag s(x)^2). Source: Kingma & Welling 2014, eq. 9."""

    def __init__(self, trunk: TrunkConfig, shape: ImageShape, latent_dim: int) -> None:
        super().__init__()
        self.features, width = trunk.features(shape)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, x: Tensor) -> Independent:
        """q(z|x), batch shape [B], event shape [D]."""
        return self.gaussian(self.features(x))

    def gaussian(self, h: Tensor) -> Independent:
        """N(m, diag s^2), as it is read off features [B, F]."""
        return _factorised(self.head(h))


class PairEncoder(nn.Module):
    """r(v|x,z) = N(m(x,z), diag s(x,z)^2), of vectors v and z.

    Args:
        trunk: the features of x, h(x).
        shape: of x, (C, H, W).
        given: numbers in z.
        hidden: widths of the layers that see h and z.
        dim: D, numbers in v.
    """

    def __init__(self, trunk: TrunkConfig, shape: ImageShape, given: int, hidden: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.features, width = trunk.features(shape)
        widths = (width + given, *hidden)
        self.head = nn.Sequential(*layers(widths, trunk.activation), nn.Linear(widths[-1], 2 * dim))

    def forward(self, x: Tensor) -> Callable[[Tensor], Independent]:
        """A function of z [..., B, given] that gives r(v|x,z), batch shape [..., B], event shape [D]."""
        head = beside(self.head, self.features(x))
        return lambda z: _factorised(head(z))


def _factorised(numbers: Tensor) -> Independent:
    """N(m, diag s^2) of m and log s side by side, [..., 2 D]."""
    mean, log_scale = numbers.chunk(2, -1)
    return Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)


class LogitsEncoder(nn.Module):
    """Logits of a discrete posterior."""

    def __init__(self, trunk: TrunkConfig, shape: ImageShape, outputs: int) -> None:
        super().__init__()
        self.features, width = trunk.features(shape)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] for data [B, C, H, W]."""
        return self.head(self.features(x))


class Encoder(Config):
    """What the section of every encoder with noise of its own has.

    Attributes:
        name: the kind of encoder.
    """

    name: str

    @abstractmethod
    def build(self, shape: ImageShape, latent_dim: int) -> nn.Module:
        """A module that gives q(z|x), an `ImplicitPosterior` of codes [B, latent_dim], for data [B, C, H, W]."""


class NoiseInputConfig(Encoder):
    """An encoder that takes noise as a further input; its posterior can take any shape.

    Attributes:
        trunk: the features of x, h(x).
        noise_dim: numbers of noise, eps.
        hidden: widths of the layers that see both.
    """

    name: Literal["noise_input"] = "noise_input"
    trunk: TrunkConfig = MLPConfig()
    noise_dim: Width = 32
    hidden: tuple[Width, ...] = (300,)

    def build(self, shape: ImageShape, latent_dim: int) -> "NoiseInputEncoder":
        """The module."""
        return NoiseInputEncoder(self, shape, latent_dim)


class NoiseInputEncoder(nn.Module):
    """z = g(h(x), eps), eps ~ N(0, I). Source: Mescheder et al. 2017, section 3.1."""

    def __init__(self, config: NoiseInputConfig, shape: ImageShape, latent_dim: int) -> None:
        super().__init__()
        self.noise_dim = config.noise_dim
        self.features, width = config.trunk.features(shape)
        widths = (width + config.noise_dim, *config.hidden)
        self.head = nn.Sequential(*layers(widths, config.trunk.activation), nn.Linear(widths[-1], latent_dim))

    def forward(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x) for data [B, C, H, W]."""
        h = self.features(x)
        head = beside(self.head, h)

        def draw(sample_shape: Shape) -> Tensor:
            return head(torch.randn(*sample_shape, len(h), self.noise_dim, device=h.device, dtype=h.dtype))

        return ImplicitPosterior(draw)


class NoiseBasisConfig(Encoder):
    """An encoder that mixes noise variables v_i with weights a_i(x); its moments are tractable.

    Attributes:
        trunk: the features of x, which offset and weights are read off.
        bases: how many noise variables.
        noise_dim: numbers of noise that each is made of.
        hidden: widths of the layers that make it.
    """

    name: Literal["noise_basis"] = "noise_basis"
    trunk: TrunkConfig = MLPConfig()
    bases: Width = 16
    noise_dim: Width = 32
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (128, 128, 128)

    def build(self, shape: ImageShape, latent_dim: int) -> "NoiseBasisEncoder":
        """The module."""
        return NoiseBasisEncoder(self, shape, latent_dim)


class NoiseBasisEncoder(nn.Module):
    """z = z0(x) + sum_i a_i(x) * v_i(eps_i), a_i = elu(FC - 5) + 1 > 0.

    Source: Mescheder et al. 2017, section 4 and the network described in its supplement.
    """

    def __init__(self, config: NoiseBasisConfig, shape: ImageShape, latent_dim: int) -> None:
        super().__init__()
        self.features, width = config.trunk.features(shape)
        self.offset = nn.Linear(width, latent_dim)
        self.weights = nn.Linear(width, config.bases * latent_dim)
        self.basis = NoiseBasis(config.bases, (config.noise_dim, *config.hidden, latent_dim))

    def forward(self, x: Tensor) -> NoiseBasisPosterior:
        """q(z|x) for data [B, C, H, W]."""
        h = self.features(x)
        weights = F.elu(self.weights(h).unflatten(-1, (self.basis.bases, -1)) - 5.0) + 1.0
        return NoiseBasisPosterior(self.offset(h), weights, self.basis)


class NoiseBasis(nn.Module):
    """N independent networks v_i, run side by side as batched matrix products.

    Args:
        bases: N.
        widths: noise dimension, hidden widths, latent dimension.
    """

    def __init__(self, bases: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.bases, self.noise_dim = bases, widths[0]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.matrices = nn.ParameterList(_uniform((bases, before, after), before) for before, after in pairs)
        self.biases = nn.ParameterList(_uniform((bases, 1, after), before) for before, after in pairs)
        self.activation = ACTIVATIONS["elu"]()

    def forward(self, shape: tuple[int, ...]) -> Tensor:
        """Draws of v_1 .. v_N, [*shape, N, D]."""
        return self._draw(math.prod(shape)).transpose(0, 1).unflatten(0, shape)

    def moments(self, draws: int) -> BasisMoments:
        """Means and covariances of v_1 .. v_N, from so many draws of each."""
        v = self._draw(draws)
        mean = v.mean(1, keepdim=True)
        centred = v - mean
        return BasisMoments(mean[:, 0], centred.mT @ centred / (draws - 1))

    def _draw(self, n: int) -> Tensor:
        """Draws [N, n, D]."""
        first = self.matrices[0]
        h = torch.randn(self.bases, n, self.noise_dim, device=first.device, dtype=first.dtype)
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            h = torch.bmm(h if i == 0 else self.activation(h), matrix) + bias
        return h


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """`nn.Linear`'s initialisation."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


ENCODERS: Table[type[Encoder]] = Table(
    "encoders", {"noise_input": NoiseInputConfig, "noise_basis": NoiseBasisConfig}, subclass_of(Encoder)
)
EncoderConfig = Annotated[Encoder, OneOf(ENCODERS)]
