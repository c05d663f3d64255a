"""A history: the newest so many data that were pushed, kept in buffers.

Floor 1.
"""

import torch
from torch import Tensor, nn

from avb_service.networks.trunks import ImageShape


class History(nn.Module):
    """The newest data, to draw from.

    What is pushed must be the same on all workers, as the statistics of `Player.update_statistics` are; what is drawn
    differs.

    Args:
        size: how many are kept.
        shape: of a datum, (C, H, W).
    """

    data: Tensor
    pushed: Tensor

    def __init__(self, size: int, shape: ImageShape) -> None:
        super().__init__()
        self.register_buffer("data", torch.zeros(size, *shape))
        self.register_buffer("pushed", torch.zeros(()))  # how many ever; exact up to 2^24 also in 32-bit floats

    def push(self, data: Tensor) -> None:
        """Keep data [B, C, H, W] in the place of the oldest."""
        size = len(self.data)
        kept = data[-size:]
        start = self.pushed.long() + len(data) - len(kept)
        self.data[(start + torch.arange(len(kept), device=data.device)) % size] = kept.to(self.data)
        # Counted on after 2^20 in a circle that keeps the place and that the history is full.
        count = start + len(kept)
        self.pushed.copy_(torch.where(count < 2**20, count, size + count % size))

    def draw(self, n: int) -> Tensor:
        """N of them at random, with replacement, [n, C, H, W]; blank ones before any was pushed."""
        filled = self.pushed.clamp(1, len(self.data))
        places = torch.rand(n, dtype=self.data.dtype, device=self.data.device) * filled
        return self.data[places.long()]
