"""What was read, in words, for a person to check before anything is trained on it.

Floor 4.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avb_service.data.splits import Binarisation, Split
from avb_service.distributions import DataSpec
from avb_service.errors import listed


class _Content(NamedTuple):
    """Of a split: a hash of each datum, and the range of the numbers."""

    hashes: NDArray[np.int64]
    least: float
    greatest: float


@dataclass(frozen=True, eq=False)
class Reading:
    """What a source was read as; the data are looked through when the text is asked for.

    Attributes:
        source: name or path.
        splits: training, validation and test data, before binarisation; all the same where they are the population.
        spec: what a datum is to a model.
        binarisation: what is done to the pixels.
        classes: names of what the labels number, where there are any.
        remarks: of the source: how it was read, what was left out and why.
    """

    source: str
    splits: Mapping[str, Split]
    spec: DataSpec
    binarisation: Binarisation
    classes: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """How many data of which size, kind and classes, how they are split, and what is to be said of them; lines."""
        return self._text

    @cached_property
    def _text(self) -> str:
        one = next(iter(self.splits.values()))
        if all(split is one for split in self.splits.values()):
            contents, divided = {"all": _content(one)}, ["training, validation and testing have all of them"]
        else:
            contents = {name: _content(split) for name, split in self.splits.items()}
            counts = ", ".join(f"{len(split)} for {name}" for name, split in self.splits.items())
            divided = [counts, *_shared(contents)]
        what = [self._datum(sum(len(each.hashes) for each in contents.values())), self._values(contents)]
        classes = self._classes() if one.labels is not None else []
        return "\n  ".join([f"{listed([self.source])}: {', '.join([*what, *classes])}", *divided, *self.remarks])

    def _datum(self, count: int) -> str:
        channels, height, width = self.spec.shape
        if (channels, height) == (1, 1):
            return f"{_counted(count, 'vector')} of {_counted(width, 'number')}"
        kind = {1: "grey ", 3: "colour "}.get(channels, f"{channels}-channel ")
        return f"{_counted(count, f'{kind}image')} of {width}x{height} (width x height)"

    def _values(self, contents: Mapping[str, _Content]) -> str:
        if self.spec.values == "levels":
            return f"{self.spec.levels + 1} levels"
        if self.spec.values == "binary":
            masks = " (black and white)" if self.spec.levels > 1 else ""
            return f"binary{masks}" if self.binarisation == "none" else f"binary ({self.binarisation} binarisation)"
        ends = [(each.least, each.greatest) for each in contents.values()]
        return f"real numbers from {min(least for least, _ in ends):g} to {max(greatest for _, greatest in ends):g}"

    def _classes(self) -> list[str]:
        labels = torch.cat([split.labels for split in self.splits.values() if split.labels is not None])
        numbers, counts = (each.tolist() for each in labels.unique(return_counts=True))
        if not self.classes:
            return [_counted(len(numbers), "class", "classes")]
        named = [f"{self.classes[number]} {count}" for number, count in zip(numbers, counts, strict=True)]
        return [f"{_counted(len(numbers), 'class', 'classes')} ({listed(named, 10)})"]


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def _content(split: Split) -> _Content:
    hashes: list[NDArray[np.int64]] = []
    least, greatest = math.inf, -math.inf
    for part in split.parts():
        hashes.append(np.fromiter((hash(row.tobytes()) for row in part.numpy()), dtype=np.int64, count=len(part)))
        least, greatest = min(least, part.min().item()), max(greatest, part.max().item())
    return _Content(np.concatenate(hashes), least, greatest)


def _shared(contents: Mapping[str, _Content]) -> Iterator[str]:
    """Which splits hold the same data, and how many."""
    for (first, one), (second, other) in combinations(contents.items(), 2):
        if count := int(np.isin(other.hashes, one.hashes).sum()):
            yield f"identical to data for {first}: {count} of the {len(other.hashes)} for {second}"
