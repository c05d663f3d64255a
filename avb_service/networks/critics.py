"""Critics: from a datum to one number, which tells data of two kinds apart.

Floor 1.
"""

import torch
from torch import Tensor, nn

from avb_service.networks.trunks import ImageShape, TrunkConfig, layers


class Critic(nn.Module):
    """D(x) or V(x) before any output activation: features of x, and a linear layer.

    Args:
        trunk: the features.
        shape: of x, (C, H, W).
    """

    def __init__(self, trunk: TrunkConfig, shape: ImageShape) -> None:
        super().__init__()
        self.features, width = trunk.features(shape)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A number for each datum [B, C, H, W], [B]."""
        return self.head(self.features(x))[:, 0]

    def penalty(self, x: Tensor, weight: float) -> Tensor:
        """R1 = gamma / 2 E|dD(x)/dx|^2 on data [B, C, H, W], for weight gamma; nothing is computed where that is 0.

        Source: Mescheder, Geiger & Nowozin 2018, eq. 9.
        """
        if not weight:
            return x.new_zeros(())
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        return weight / 2 * slope.square().flatten(1).sum(1).mean()


class PairCritic(nn.Module):
    """D(x, z) before any output activation: features of x and the code, side by side, through further layers.

    Args:
        trunk: the features.
        shape: of x, (C, H, W).
        latent_dim: D.
        joint: widths of the further layers.
    """

    def __init__(self, trunk: TrunkConfig, shape: ImageShape, latent_dim: int, joint: tuple[int, ...]) -> None:
        super().__init__()
        self.features, width = trunk.features(shape)
        self.joint = nn.Sequential(*layers((width + latent_dim, *joint), "leaky_relu"), nn.Linear(joint[-1], 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """A number for each pair of a datum [B, C, H, W] and a code [B, D], [B]."""
        return self.joint(torch.cat([self.features(x), z], -1))[:, 0]
