"""Critics: from a datum to one number, which tells data of two kinds apart.

Floor 1.
"""

from torch import Tensor, nn

from avb_service.networks.trunks import ImageShape, TrunkConfig


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
