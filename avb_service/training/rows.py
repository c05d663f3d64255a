"""Rows of numbers, one for each step, that are kept until they are asked for.

Floor 4.
"""

import torch
from torch import Tensor


class Rows:
    """Rows of numbers in one tensor that grows.

    Were each row a tensor of its own, small ones that stay would lie between the large ones that come and go with every
    step, and the C library would not use that room again: a VAE on MNIST grew by half a MiB with every round.
    """

    def __init__(self) -> None:
        self._room, self._count = torch.zeros(0, 0), 0

    def append(self, *parts: Tensor) -> None:
        """A row [N] of parts that are side by side, numbers or vectors."""
        sizes = [part.numel() for part in parts]
        if not self._room.numel():
            self._room = torch.cat([part.view(-1) for part in parts]).new_empty(256, sum(sizes))
        elif self._count == len(self._room):
            self._room = torch.cat([self._room, torch.empty_like(self._room)])
        for place, part in zip(self._room[self._count].split(sizes), parts, strict=True):
            place.copy_(part.view(-1))
        self._count += 1

    def all(self) -> Tensor:
        """The rows [n, N]; what is appended after `clear` overwrites them."""
        return self._room[: self._count]

    def clear(self) -> None:
        """Begin anew."""
        self._count = 0
