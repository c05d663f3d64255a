"""The generator: from a code straight to a datum, x = g(z), with no density of x given z.

Floor 1.
"""

import torch
from torch import Tensor, nn

from avb_service.distributions import DataSpec
from avb_service.maths import logit_of_mean
from avb_service.networks.trunks import TrunkConfig


class Generator(nn.Module):
    """x = g(z): a sigmoid keeps pixels between 0 and 1, real values are what the network gives.

    Args:
        latent_dim: D.
        spec: what a datum is; the output starts around the training set's mean.
        trunk: the network.
    """

    def __init__(self, latent_dim: int, spec: DataSpec, trunk: TrunkConfig) -> None:
        super().__init__()
        self.bounded = spec.values != "real"
        bias = logit_of_mean(spec.mean) if self.bounded else spec.mean
        self.network = trunk.generator(latent_dim, 1, spec.shape, bias[None])

    def forward(self, z: Tensor) -> Tensor:
        """Data [..., C, H, W] of codes [..., D]."""
        x = self.network(z.reshape(-1, z.shape[-1])).squeeze(1).unflatten(0, z.shape[:-1])
        return torch.sigmoid(x) if self.bounded else x
