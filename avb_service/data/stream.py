"""Batches that are a pure function of (seed, batch number, logical worker).

Floor 4. There is no loader process: the data lie on the device as integers, and a batch is a gather followed by a
scaling or, for dynamic binarisation, by a draw. What does not fit is gathered on the host, one batch ahead.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import torch
from torch import Tensor

from avb_service.data.splits import Binarisation, Split, binarise, thresholds
from avb_service.distributions import DataSpec
from avb_service.errors import UserError
from avb_service.seeding import generator

_BLOCK_ROWS = 8192

Slice = tuple[Tensor, Tensor | None]


class Stream:
    """An endless sequence of batches: epoch after epoch, each in an order of its own.

    Args:
        split: what to draw from.
        spec: what a datum is.
        binarisation: dynamic draws each pixel anew; static has been applied by `load`.
        batch_size: B, of the global batch.
        seed: of the order and of the binarisation.
        device: where batches are needed.
        dtype: of x.
        logical_workers: V, the number of slices of a batch.

    Raises:
        UserError: V does not divide B.
    """

    def __init__(
        self,
        split: Split,
        spec: DataSpec,
        *,
        binarisation: Binarisation,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        logical_workers: int = 1,
    ) -> None:
        if batch_size % logical_workers:
            raise UserError(
                f"training.batch_size {batch_size} cannot be cut into training.logical_workers {logical_workers} equal "
                "slices; choose a multiple"
            )
        self._device, self._dtype, self._seed, self._levels = torch.device(device), dtype, seed, spec.levels
        self._draws = binarisation == "dynamic" and spec.levels != 1
        resident = isinstance(split.pixels, Tensor)
        order = _Order(len(split), batch_size, logical_workers, seed, self._device if resident else torch.device("cpu"))
        self._fetch = (_Resident if resident else _ReadAhead)(split, order, self._device)

    def slice(self, index: int, worker: int = 0) -> Slice:
        """A logical worker's part of a batch.

        Args:
            index: k, the number of the global batch: positions kB to (k+1)B of the concatenated epochs.
            worker: v, which of its V slices.

        Returns:
            x [B/V, C, H, W] on the device and labels [B/V], where the data have them.
        """
        pixels, labels = self._fetch(index, worker)
        if self._draws:
            noise = generator(self._device, self._seed, "binarise", index, worker)
            return binarise(thresholds(pixels, self._levels), noise).to(self._dtype), labels
        return _scaled(pixels, self._levels, self._dtype), labels


def fixed(
    split: Split,
    spec: DataSpec,
    binarisation: Binarisation,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
) -> Slice:
    """A split as evaluation sees it: dynamic binarisation is drawn once, by seed, the same on every machine.

    Args:
        split: what to evaluate on.
        spec: what a datum is.
        binarisation: as in training.
        seed: of the binarisation.
        device: where the data are needed.
        dtype: of x.
        limit: take only the first so many; they are what they would be without a limit.

    Returns:
        x [N, C, H, W] and labels [N], where the data have them.
    """
    noise = generator("cpu", seed, "binarise", "fixed")
    if binarisation == "dynamic" and spec.levels != 1:
        parts = [binarise(thresholds(part, spec.levels), noise).to(dtype) for part in split.parts(limit)]
    else:
        parts = [_scaled(part, spec.levels, dtype) for part in split.parts(limit)]
    labels = None if split.labels is None else split.labels[:limit].to(device)
    return torch.cat(parts).to(device), labels


def _scaled(pixels: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    x = pixels.to(dtype)
    return x.div_(levels) if levels > 1 else x


class _Order:
    """Which data a slice holds: the epochs' permutations one after the other, cut into batches and slices."""

    def __init__(self, count: int, batch_size: int, logical_workers: int, seed: int, device: torch.device) -> None:
        # A block is whole epochs, many where they are short: four data make 32 epochs in a batch of 128.
        epochs = -(-_BLOCK_ROWS // count)
        self._block_rows = epochs * count
        self._batch_size, self._slice_size = batch_size, batch_size // logical_workers
        # Two blocks: a batch may straddle the end of one, and each of its slices asks again.
        self._block = lru_cache(maxsize=2)(partial(_block, count, epochs, seed, device))

    def rows(self, index: int, worker: int) -> Tensor:
        """Positions [B/V] in the split."""
        start, left = index * self._batch_size + worker * self._slice_size, self._slice_size
        runs: list[Tensor] = []
        while left:
            block, offset = divmod(start, self._block_rows)
            runs.append(self._block(block)[offset : offset + left])
            start, left = start + len(runs[-1]), left - len(runs[-1])
        return runs[0] if len(runs) == 1 else torch.cat(runs)


def _block(count: int, epochs: int, seed: int, device: torch.device, block: int) -> Tensor:
    # Sorting random keys draws all the permutations of a block in one call.
    keys = torch.rand(epochs, count, dtype=torch.float64, generator=generator("cpu", seed, "order", block))
    return keys.argsort(dim=1, stable=True).flatten().to(device)


class _Resident:
    """Gathers on the device."""

    def __init__(self, split: Split, order: _Order, device: torch.device) -> None:
        self._pixels = torch.cat(list(split.parts())).to(device)
        self._labels = None if split.labels is None else split.labels.to(device)
        self._order = order

    def __call__(self, index: int, worker: int) -> Slice:
        rows = self._order.rows(index, worker)
        return self._pixels.index_select(0, rows), None if self._labels is None else self._labels.index_select(0, rows)


class _ReadAhead:
    """Reads on the host, and the same slice of the next batch while this one is used."""

    def __init__(self, split: Split, order: _Order, device: torch.device) -> None:
        self._split, self._order, self._device = split, order, device
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._ahead: dict[tuple[int, int], Future[Slice]] = {}

    def __call__(self, index: int, worker: int) -> Slice:
        job = self._ahead.pop((index, worker), None) or self._reader.submit(self._read, index, worker)
        self._ahead = {slice_: guess for slice_, guess in self._ahead.items() if slice_[0] in (index, index + 1)}
        following = (index + 1, worker)
        if following not in self._ahead:
            self._ahead[following] = self._reader.submit(self._read, *following)
        pixels, labels = job.result()
        moved = None if labels is None else labels.to(self._device, non_blocking=True)
        return pixels.to(self._device, non_blocking=True), moved

    def _read(self, index: int, worker: int) -> Slice:
        rows = self._order.rows(index, worker)
        pixels = self._split.read(rows)
        labels = None if self._split.labels is None else self._split.labels[rows]
        if self._device.type == "cuda":  # only pinned memory is copied while the device computes
            return pixels.pin_memory(), None if labels is None else labels.pin_memory()
        return pixels, labels
