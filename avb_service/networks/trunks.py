"""Trunks: from an image to features, and from a code to an image; any height, width and channel count.

Floor 1.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from avb_service.config import Config
from avb_service.kinds import OneOf, Table, subclass_of

ImageShape = tuple[int, int, int]
Width = Annotated[int, Field(ge=1, le=65_536)]  # beyond it, the weights of one layer are what fills a memory
Activation = Literal["relu", "leaky_relu", "elu", "silu", "softplus", "tanh"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Trunk(Config):
    """What every trunk's section has.

    Its modules may keep no statistics of a batch, which would depend on how a batch is cut: `nn.BatchNorm2d` is
    refused, `nn.GroupNorm` is not.

    Attributes:
        name: the kind of trunk.
        activation: behind each layer, also of those that others put behind the features.
    """

    name: str
    activation: Activation = "relu"

    @abstractmethod
    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """A module [B, C, H, W] -> [B, F], and F."""

    @abstractmethod
    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias [planes, C, H, W]."""


class MLPConfig(Trunk):
    """Fully connected layers.

    Attributes:
        hidden: widths of the layers.
    """

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (300, 300)

    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """A module [B, C, H, W] -> [B, F], and F."""
        inputs = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), *layers((inputs, *self.hidden), self.activation)), self.hidden[-1]

    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias [planes, C, H, W]."""
        last = _around(nn.Linear(self.hidden[-1], bias.numel()), bias)
        return nn.Sequential(*layers((inputs, *self.hidden), self.activation), last, nn.Unflatten(-1, (planes, *shape)))


class ConvConfig(Trunk):
    """Strided 3x3 convolutions down, nearest-neighbour upsampling and 3x3 convolutions up.

    Attributes:
        channels: of the stages, the one next to the data first.
        hidden: width of the dense layer between stages and features, or code and stages.
        normalise: what goes up, at every stage, over all numbers of one datum; such statistics, unlike a batch's, are
            the same however a batch is cut.
    """

    name: Literal["conv"] = "conv"
    channels: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64)
    hidden: Width = 256
    normalise: bool = False

    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """A module [B, C, H, W] -> [B, F], and F."""
        stack: list[nn.Module] = []
        for before, after in zip((shape[0], *self.channels), self.channels, strict=False):
            stack += [nn.Conv2d(before, after, 3, stride=2, padding=1), ACTIVATIONS[self.activation]()]
        height, width = halved(shape, len(self.channels))[-1]
        flat = self.channels[-1] * height * width
        return nn.Sequential(*stack, nn.Flatten(), *layers((flat, self.hidden), self.activation)), self.hidden

    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias, averaged over pixels."""
        sizes, activation = halved(shape, len(self.channels)), ACTIVATIONS[self.activation]
        height, width = sizes[-1]
        stack: list[nn.Module] = layers((inputs, self.hidden, self.channels[-1] * height * width), self.activation)
        stack += [nn.Unflatten(-1, (self.channels[-1], height, width)), *self._normaliser(self.channels[-1])]
        upward = (*reversed(self.channels), self.channels[0])
        for before, after, size in zip(upward[:-1], upward[1:], reversed(sizes[:-1]), strict=True):
            convolution = nn.Conv2d(before, after, 3, padding=1)
            stack += [nn.Upsample(size=size), convolution, *self._normaliser(after), activation()]
        return nn.Sequential(*stack, *_image(self.channels[0], planes, shape, bias))

    def _normaliser(self, channels: int) -> list[nn.Module]:
        return [nn.GroupNorm(1, channels)] if self.normalise else []


class AffineConfig(Trunk):
    """No hidden layer: a decoder of it is factor analysis, a generator of it one Gaussian."""

    name: Literal["affine"] = "affine"

    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """The data themselves as vectors, [B, C, H, W] -> [B, F], and F."""
        return nn.Flatten(), math.prod(shape)

    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias [planes, C, H, W]."""
        last = _around(nn.Linear(inputs, bias.numel()), bias)
        nn.init.normal_(last.weight, std=0.1)  # as near the bias as deeper networks start
        return nn.Sequential(last, nn.Unflatten(-1, (planes, *shape)))


class ResNetConfig(Trunk):
    """Residual convolutions down and up, of images of any size; numbers are normalised within a datum.

    Source: He et al. 2016 ("Identity mappings"), figure 4e; halved and doubled as in Mescheder et al. 2018, supplement.

    Attributes:
        channels: of the stages, the one next to the data first; each stage has half the height and width.
        blocks: residual blocks of a stage.
        groups: of channels that are normalised together; at most so many.
        hidden: width of the dense layer between stages and features, or code and stages.
    """

    name: Literal["resnet"] = "resnet"
    channels: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64, 128)
    blocks: Annotated[int, Field(ge=1)] = 1
    groups: Width = 8
    hidden: Width = 256

    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """A module [B, C, H, W] -> [B, F], and F."""
        height, width = halved(shape, len(self.channels))[-1]
        stack: list[nn.Module] = [nn.Conv2d(shape[0], self.channels[0], 3, padding=1)]
        for before, after in zip((self.channels[0], *self.channels), self.channels, strict=False):
            stack += [*self._stage(before, after), nn.AvgPool2d(3, stride=2, padding=1)]
        flat = self.channels[-1] * height * width
        dense = layers((flat, self.hidden), self.activation)
        return nn.Sequential(*stack, ACTIVATIONS[self.activation](), nn.Flatten(), *dense), self.hidden

    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias, averaged over pixels."""
        sizes, last = halved(shape, len(self.channels)), self.channels[-1]
        height, width = sizes[-1]
        stack: list[nn.Module] = layers((inputs, self.hidden), self.activation)
        stack += [nn.Linear(self.hidden, last * height * width), nn.Unflatten(-1, (last, height, width))]
        upward = (*reversed(self.channels), self.channels[0])
        for before, after, size in zip(upward[:-1], upward[1:], reversed(sizes[:-1]), strict=True):
            stack += [nn.Upsample(size=size), *self._stage(before, after)]
        return nn.Sequential(*stack, ACTIVATIONS[self.activation](), *_image(self.channels[0], planes, shape, bias))

    def _stage(self, before: int, after: int) -> list[nn.Module]:
        channels = (before, *[after] * self.blocks)
        pairs = zip(channels, channels[1:], strict=False)
        return [Residual(first, second, self.groups, self.activation) for first, second in pairs]


class Residual(nn.Module):
    """x + f(x) / 10, f two convolutions, each behind a normalisation within the datum and an activation.

    Args:
        before: channels of x.
        after: channels of what comes out.
        groups: of channels that are normalised together, at most.
        activation: behind each normalisation.
    """

    def __init__(self, before: int, after: int, groups: int, activation: str) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)
        stack: list[nn.Module] = []
        for inner in (before, after):
            norm = nn.GroupNorm(math.gcd(groups, inner), inner)
            stack += [norm, ACTIVATIONS[activation](), nn.Conv2d(inner, after, 3, padding=1)]
        self.residual = nn.Sequential(*stack)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H, W]."""
        return self.shortcut(x) + 0.1 * self.residual(x)


TRUNKS: Table[type[Trunk]] = Table(
    "trunks",
    {"mlp": MLPConfig, "conv": ConvConfig, "affine": AffineConfig, "resnet": ResNetConfig},
    subclass_of(Trunk),
)
TrunkConfig = Annotated[Trunk, OneOf(TRUNKS)]


def _around(last: nn.Linear, bias: Tensor) -> nn.Linear:
    """The layer, with outputs that start around the bias."""
    with torch.no_grad():
        last.bias.copy_(bias.flatten())
    return last


def _image(channels: int, planes: int, shape: ImageShape, bias: Tensor) -> list[nn.Module]:
    """From the last stage [B, channels, H, W] to [B, planes, C, H, W], around the bias, averaged over pixels."""
    last = nn.Conv2d(channels, planes * shape[0], 3, padding=1)
    with torch.no_grad():
        last.bias.copy_(bias.mean((-2, -1)).flatten())  # type: ignore[union-attr]
    return [last, nn.Unflatten(1, (planes, shape[0]))]


def halved(shape: ImageShape, times: int) -> list[tuple[int, int]]:
    """Height and width of an image, and after each time that they are halved, rounded up."""
    sizes = [shape[1:]]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def layers(widths: tuple[int, ...], activation: str) -> list[nn.Module]:
    """Linear layers through the widths, each followed by the activation."""
    stack: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        stack += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return stack


def beside(stack: nn.Sequential, h: Tensor) -> Callable[[Tensor], Tensor]:
    """A stack of layers on (h, z) as a function of z alone: its first layer is W_h h + W_z z, and W_h h is found once.

    Args:
        stack: its first layer is linear.
        h: [B, H].

    Returns:
        Codes [..., B, Z] -> [..., B, outputs].
    """
    first, rest = cast(nn.Linear, stack[0]), stack[1:]
    of_h, of_z = first.weight.split([h.shape[-1], first.in_features - h.shape[-1]], 1)
    known = linear(h, of_h, first.bias)
    return lambda z: rest(known + linear(z, of_z))
