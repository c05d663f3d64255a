"""Pixels of one purpose, in memory or on disk; binarised, resized, averaged.

Floor 4.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from avb_service.data.files import Array
from avb_service.errors import DataError
from avb_service.seeding import generator

Binarisation = Literal["none", "static", "dynamic"]

_ROWS_AT_ONCE = 4096  # a multiple of 4, so that binarising in parts uses up whole words of noise
_MEAN_ROWS = 2**16


@dataclass(frozen=True, eq=False)
class Mapped:
    """Pixels that stay where they are, usually on disk, and are read a batch at a time.

    Args:
        array: [M, C, H, W], memory-mapped.
        rows: those of the array that belong here, in order, [N].
        dtype: what is read becomes this: bytes or 32-bit floats.
    """

    array: Array
    rows: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self.rows), *self.array.shape[1:]))

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def read(self, index: Tensor) -> Tensor:
        """Pixels [B, C, H, W] on the CPU, for positions [B]."""
        return _tensor(self.array[self.rows[index].numpy()], self.dtype)

    def only(self, index: Tensor) -> "Mapped":
        """The same array, restricted to positions [B]."""
        return Mapped(self.array, self.rows[index], self.dtype)


@dataclass(frozen=True, eq=False)
class Split:
    """Data of one purpose.

    Args:
        pixels: uint8 or float32 [N, C, H, W], in memory or mapped.
        labels: int64 [N], where the source has them.
    """

    pixels: Tensor | Mapped
    labels: Tensor | None

    def __len__(self) -> int:
        """N."""
        return len(self.pixels)

    def read(self, index: Tensor) -> Tensor:
        """A copy of the pixels [B, C, H, W] at positions [B], on the CPU."""
        return self.pixels.read(index) if isinstance(self.pixels, Mapped) else self.pixels.index_select(0, index)

    def only(self, index: Tensor) -> "Split":
        """The data at positions [B]."""
        pixels = self.pixels.only(index) if isinstance(self.pixels, Mapped) else self.pixels.index_select(0, index)
        return Split(pixels, None if self.labels is None else self.labels[index])

    def parts(self, limit: int | None = None) -> Iterator[Tensor]:
        """The pixels, or the first `limit` of them, a few thousand rows at a time."""
        stop = len(self) if limit is None else min(limit, len(self))
        for start in range(0, stop, _ROWS_AT_ONCE):
            yield self.read(torch.arange(start, min(start + _ROWS_AT_ONCE, stop)))


def hold(x: Array, y: Array | Tensor | None, levels: int, resident_gib: float) -> Split:
    """An array [N, C, H, W], in memory if it is small enough there.

    Args:
        x: pixels.
        y: labels [N], where there are any.
        levels: the largest integer of the grid of pixels, which are bytes then; 0 for real values.
        resident_gib: what is larger is read from where it lies, a batch at a time.
    """
    dtype = torch.uint8 if levels else torch.float32
    labels = None if y is None else torch.as_tensor(y, dtype=torch.int64)
    if math.prod(x.shape) * dtype.itemsize > resident_gib * 2**30:
        return Split(Mapped(x, torch.arange(len(x)), dtype), labels)
    return Split(_tensor(x, dtype), labels)


def _tensor(x: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(x, dtype=np.uint8 if dtype == torch.uint8 else np.float32, order="C"))


def thresholds(pixels: Tensor, levels: int) -> Tensor:
    """What a 16-bit random integer has to stay below for a pixel to be drawn as 1, int16 of the pixels' shape.

    Args:
        pixels: bytes from 0 to levels, or numbers in [0, 1] where levels is 0.
        levels: the largest integer of the grid.
    """
    if pixels.dtype == torch.uint8:  # looking 256 numbers up takes a third of the time of computing them again
        return _byte_thresholds(levels, pixels.device).index_select(0, pixels.flatten().int()).view(pixels.shape)
    scaled = pixels.to(torch.float32, copy=True).mul_(2**16 / max(levels, 1)).round_().sub_(2**15)
    return scaled.clamp_(max=2**15 - 1).to(torch.int16)


@cache
def _byte_thresholds(levels: int, device: torch.device) -> Tensor:
    return thresholds(torch.arange(256, dtype=torch.float32), levels).to(device)


def binarise(below: Tensor, noise: torch.Generator) -> Tensor:
    """Draws from Bernoulli(pixels / levels), int16 zeros and ones.

    Args:
        below: the pixels' `thresholds`, any shape.
        noise: generator on the same device.
    """
    # Four pixels share a 64-bit draw: probabilities are right to 1.5e-5, and the draw costs a quarter of floats.
    words = torch.empty(-(-below.numel() // 4), dtype=torch.int64, device=below.device)
    words.random_(-(2**63), None, generator=noise)
    bits = words.view(torch.int16)[: below.numel()].view(below.shape)
    return bits.clamp_(max=2**15 - 2).lt_(below)  # clamped, so that probability 1 has a threshold above all of them


def binarised(split: Split, levels: int, seed: int, purpose: str) -> Split:
    """The split with each pixel drawn once.

    Raises:
        DataError: it is not in memory.
    """
    if isinstance(split.pixels, Mapped):
        raise DataError(
            "static binarisation keeps the data in memory, and they are larger than data.resident_gib; "
            "raise it, or set data.binarisation: dynamic"
        )
    noise = generator("cpu", seed, "static binarisation", purpose)
    parts = [binarise(thresholds(part, levels), noise).to(torch.uint8) for part in split.parts()]
    return Split(torch.cat(parts), split.labels)


def resized(split: Split, levels: int, size: int) -> Split:
    """The split with images cropped to a centred square and resized to a side; levels become bytes.

    Raises:
        DataError: it is not in memory.
    """
    if isinstance(split.pixels, Mapped):
        raise DataError(
            "data.image_size keeps the resized images in memory, and these are larger than data.resident_gib; raise it"
        )
    images: list[Tensor] = []
    for part in split.parts():
        height, width = part.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = part[..., top : top + side, left : left + side].float() / max(levels, 1)
        image = interpolate(square, (size, size), mode="bilinear", antialias=True)
        images.append((255 * image).round_().clamp_(0, 255).to(torch.uint8) if levels else image)
    return Split(torch.cat(images), split.labels)


def two_valued(split: Split, levels: int) -> bool:
    """Whether every pixel is 0 or the largest that there can be, as in masks and line drawings."""
    return all(bool(((part == 0) | (part == levels)).all()) for part in split.parts())


def mean(split: Split, levels: int) -> Tensor:
    """Mean [C, H, W] in the units that a model sees, of at most 65,536 data: a decoder only starts from it."""
    total = sum((part.sum(0, dtype=torch.float64) for part in split.parts(_MEAN_ROWS)), torch.zeros(()))
    return (total / (min(len(split), _MEAN_ROWS) * max(levels, 1))).float()
