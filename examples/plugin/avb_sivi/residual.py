"""Fully connected layers with shortcuts, x + f(x) each (He et al. 2016), for any place where a trunk is chosen."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avb_service.networks.trunks import ACTIVATIONS, ImageShape, Trunk, Width


class ResidualMLPConfig(Trunk):
    """Residual blocks of two fully connected layers.

    Attributes:
        width: of all layers.
        blocks: how many there are, one behind the other.
    """

    name: Literal["residual_mlp"] = "residual_mlp"
    width: Width = 128
    blocks: Annotated[int, Field(ge=1)] = 2

    def features(self, shape: ImageShape) -> tuple[nn.Module, int]:
        """A module [B, C, H, W] -> [B, F], and F."""
        return nn.Sequential(nn.Flatten(), *self._layers(shape[0] * shape[1] * shape[2])), self.width

    def generator(self, inputs: int, planes: int, shape: ImageShape, bias: Tensor) -> nn.Module:
        """A module [B, inputs] -> [B, planes, C, H, W], whose output starts around the bias [planes, C, H, W]."""
        last = nn.Linear(self.width, bias.numel())
        with torch.no_grad():
            last.bias.copy_(bias.flatten())
        return nn.Sequential(*self._layers(inputs), last, nn.Unflatten(-1, (planes, *shape)))

    def _layers(self, inputs: int) -> list[nn.Module]:
        blocks = [ResidualBlock(self.width, self.activation) for _ in range(self.blocks)]
        return [nn.Linear(inputs, self.width), *blocks, ACTIVATIONS[self.activation]()]


class ResidualBlock(nn.Module):
    """x + f(x), f two layers with an activation before each.

    Args:
        width: of x.
        activation: its name.
    """

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        pair = ([ACTIVATIONS[activation](), nn.Linear(width, width)] for _ in range(2))
        self.residual = nn.Sequential(*(layer for layers in pair for layer in layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, width]."""
        return x + self.residual(x)
