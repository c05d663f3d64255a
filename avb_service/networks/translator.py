"""The translator: from an image to an image of the same shape.

Floor 1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from avb_service.config import Config
from avb_service.distributions import DataSpec
from avb_service.networks.trunks import ImageShape, Width
from avb_service.networks.warp import warp

EDGE = 0.02  # pixels are kept so far from 0 and 1, whose logits are infinite
START = 0.1  # of the usual weights: a translator begins near the identity


class TranslatorConfig(Config):
    """Convolutions down to half the size, residual blocks there, and up again.

    Attributes:
        channels: at full size; twice as many at half of it.
        blocks: residual blocks.
        affine: whether an affine map of the plane, one for all images, comes before them: domains may differ in size,
            slant and place, which takes convolutions many layers.
    """

    channels: Width = 16
    blocks: Annotated[int, Field(ge=1)] = 3
    affine: bool = False

    def build(self, spec: DataSpec) -> "Translator":
        """The module."""
        return Translator(self, spec)


class Translator(nn.Module):
    """y = x + h(x), in logits where pixels lie between 0 and 1, so that what has no reason to change stays.

    With `affine`, x is first resampled at A p for each place p of y, in halves of the image's sides from its centre; A
    is learned, and starts as the identity.

    Source: Zhu et al. 2017, supplement (Johnson et al. 2016), with nearest-neighbour upsampling, and normalisation over
    all channels of a datum, which also fits images of a few pixels; Jaderberg et al. 2015, eq. 1, for A.
    """

    def __init__(self, config: TranslatorConfig, spec: DataSpec) -> None:
        super().__init__()
        self.bounded, shape = spec.values != "real", spec.shape
        narrow, wide = config.channels, 2 * config.channels
        last = nn.Conv2d(narrow, shape[0], 3, padding=1)
        with torch.no_grad():
            last.weight.mul_(START)
        self.map = nn.Parameter(torch.eye(2, 3)) if config.affine else None
        self.network = nn.Sequential(
            *_convolution(shape[0], narrow),
            *_convolution(narrow, wide, stride=2),
            *(Residual(wide) for _ in range(config.blocks)),
            nn.Upsample(size=_size(shape)),
            *_convolution(wide, narrow),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of the one domain as images [B, C, H, W] of the other."""
        if self.map is not None:
            x = warp(x, self.map.expand(len(x), 2, 3))
        if not self.bounded:
            return x + self.network(x)
        return torch.sigmoid(torch.logit(x.clamp(EDGE, 1 - EDGE)) + self.network(x))


class Residual(nn.Module):
    """h + f(h)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(*_convolution(channels, channels), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, F, H, W] of features of the same shape."""
        return h + self.change(h)


def _convolution(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    # No bias: the normalisation has one, and takes this one's mean out again, which leaves its gradient to round-off.
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.GroupNorm(1, after), nn.ReLU()]


def _size(shape: ImageShape) -> tuple[int, int]:
    return shape[1], shape[2]
