"""Data sets by name: split by seed, binarised by seed, the same on every machine.

Floor 4. Whatever a source reads becomes a `Dataset` of three splits whose pixels are bytes (binary data, levels) or
32-bit floats (real values).
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from avb_service.config import Config
from avb_service.data.files import Levels
from avb_service.data.reading import Reading
from avb_service.data.sources import SOURCES, Pool
from avb_service.data.splits import Binarisation, Split, binarised, mean, resized, two_valued
from avb_service.distributions import DataSpec, Values
from avb_service.errors import DataError, listed
from avb_service.kinds import OneOf
from avb_service.seeding import permutation


def _size(value: Any) -> Any:  # noqa: ANN401  whatever the YAML holds
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError("a count such as 5000, or a fraction such as 0.1")
    return value


def _levels(value: Any) -> Any:  # noqa: ANN401  whatever the YAML holds
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255
    if not whole and value not in ("real", None):
        raise ValueError("what white is, such as 255, at most; or real, for numbers that are no pixels")
    return value


Size = Annotated[int | float, BeforeValidator(_size)]


class DataConfig(Config):
    """Which data, where they lie, and how they are split and binarised.

    Attributes:
        name: a source of the table `SOURCES`; "file" reads `path`.
        root: folder that holds the files of a named source; by default $AVB_DATA_ROOT, else `data`.
        path: for "file": .npz (x, optionally y), .npy, or a folder of images with optional subfolders for classes, or
            for splits (train, val, test). What is larger than `resident_gib` belongs into a .npy, since a .npz is read
            whole.
        levels: for "file": what the numbers of an array are: pixels from 0 to so many, 255 at most (1 for binary data);
            or real, for counts and measurements. Bytes are pixels and fractions are real unless this says otherwise;
            of other whole numbers it has to be said. Pixels that are all black or white are binary data unless this
            says 255.
        binarisation: none; static, once at load; or dynamic, anew each time that a datum is seen.
        validation: size of the validation split, a count or a fraction of all that no official split holds.
        test: likewise of the test split; named sets, and folders with images in `test`, have official ones.
        seed: of the splits and of static binarisation.
        limit: use only so many training data.
        image_size: crop images to a centred square and resize it to this side (celeba: 64 by default); levels become
            bytes.
        resident_gib: data larger than this are streamed from disk instead of being kept on the device.
        download: fetch missing files of a named source, where they can be fetched.
        other: the second source, for a method that translates between two; its data are not paired with the first's.
    """

    name: Annotated[str, OneOf(SOURCES)]
    root: str | None = None
    path: str | None = None
    levels: Annotated[Levels | None, BeforeValidator(_levels)] = None
    binarisation: Binarisation = "none"
    validation: Size = 0.1
    test: Size = 0.1
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None
    resident_gib: Annotated[float, Field(ge=0)] = 2.0
    download: bool = True
    other: "DataConfig | None" = None

    def problems(self) -> Iterator[str]:
        """A path goes with the source that reads it, and with no other."""
        yield from super().problems()
        reads_path = SOURCES[self.name].reads_path
        if reads_path and self.path is None:
            yield f"path: required by name {self.name}; give a .npz or .npy file, or a folder of images"
        if self.path is not None and not reads_path:
            yield f"path: given {self.path!r}, but {self.name} does not read it; set name: file, or leave path out"
        if self.levels is not None and (not reads_path or (self._is_folder and self.levels != 255)):
            yield f"levels: given {self.levels!r}, but it is known what {self.path or self.name} holds; leave it out"
        if SOURCES[self.name].values == "real" and self.binarisation != "none":
            yield f"binarisation: {self.binarisation} needs pixels, and {self.name} has real values; set it to none"
        if self.other is not None and self.other.other is not None:
            yield "other.other: a method has two sources at most"

    @property
    def values(self) -> Values | None:
        """Which numbers a model will see; None where only loading the file can tell."""
        if self.binarisation != "none":
            return "binary"
        if self.levels is not None:
            return "real" if self.levels == "real" else "binary" if self.levels == 1 else "levels"
        return SOURCES[self.name].values

    @property
    def _is_folder(self) -> bool:
        return self.path is not None and Path(self.path).expanduser().is_dir()

    @property
    def folder(self) -> Path:
        """The folder for the files of named sources, absolute."""
        return Path(self.root or os.environ.get("AVB_DATA_ROOT") or "data").expanduser().absolute()

    def anchored(self) -> "DataConfig":
        """The same with absolute paths."""
        return self.model_copy(
            update={
                "root": str(self.folder),
                "path": self.path and str(Path(self.path).expanduser().absolute()),
                "other": self.other and self.other.anchored(),
            }
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits (a synthetic set, which is its own population, is all three) and what a datum is.

    Attributes:
        name: of the source.
        train: to learn from.
        validation: to choose by.
        test: to report on.
        spec: what a datum is.
        reading: what the source was read as.
        other: the second set, where the configuration names one.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    spec: DataSpec
    reading: Reading
    other: "Dataset | None" = None

    @property
    def description(self) -> str:
        """What was read and what was left out, for people; lines."""
        return "\n".join([str(self.reading), *([] if self.other is None else [self.other.description])])

    @cached_property
    def sha256(self) -> str:
        """Hash of all pixels in order, as they are before dynamic binarisation; the same on every machine."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(str(tuple(split.pixels.shape)).encode())
            for part in split.parts():
                digest.update(part.numpy().data)
        if self.other is not None:
            digest.update(self.other.sha256.encode())
        return digest.hexdigest()


class Parts(NamedTuple):
    """What a source gives: the splits, and the largest integer of the grid of pixels (0 for real values)."""

    train: Split
    validation: Split
    test: Split
    levels: int


def load(config: DataConfig) -> Dataset:
    """Read, split and (if static) binarise.

    Raises:
        DataError: data that are missing, damaged, too few, or not what they should be.
    """
    pool = SOURCES[config.name].load(config)
    parts = _carve(config, pool)
    masks = parts.levels > 1 and config.levels is None and all(two_valued(each, parts.levels) for each in parts[:3])
    if config.limit is not None and config.limit < len(parts.train):
        parts = parts._replace(train=parts.train.only(torch.arange(config.limit)))
    if config.image_size is not None:
        given, parts = parts, _of_size(parts, config.image_size, config.name)
        masks = masks and parts is given
    train, validation, test, levels = parts
    splits = {"training": train, "validation": validation, "testing": test}
    if config.binarisation == "static" and levels != 1:
        train = binarised(train, levels, config.seed, "train")
        validation = binarised(validation, levels, config.seed, "validation")
        test = binarised(test, levels, config.seed, "test")
        levels = 1
    grid: Values = "levels" if levels > 1 else "real"
    values: Values = "binary" if levels == 1 or config.binarisation == "dynamic" or masks else grid
    channels, height, width = train.pixels.shape[1:]
    spec = DataSpec((channels, height, width), values, levels, mean(train, levels))
    other = None if config.other is None else load(config.other)
    if other is not None and (other.spec.shape != spec.shape or (other.spec.levels == 0) != (levels == 0)):
        raise DataError(
            f"data.other: the two sources must have one shape, and be both pixels or both real: data is {config.name} "
            f"{list(spec.shape)} {spec.values}, data.other {other.name} {list(other.spec.shape)} {other.spec.values}; "
            "set data.image_size and data.other.image_size, or data.levels and data.other.levels"
        )
    source = config.path or config.name
    reading = Reading(source, splits, spec, config.binarisation, pool.classes, pool.remarks)
    return Dataset(config.name, train, validation, test, spec, reading, other)


def _of_size(parts: Parts, size: int, name: str) -> Parts:
    """Images resized to a side, as bytes unless they are real-valued; those of that size already are left alone.

    Raises:
        DataError: vectors, or more than is kept in memory.
    """
    height, width = parts.train.pixels.shape[2:]
    if (height, width) == (size, size):
        return parts
    if min(height, width) == 1:
        raise DataError(f"data.image_size {size} resizes images, and {name} holds vectors of {width}; leave it out")
    train, validation, test = (resized(split, parts.levels, size) for split in parts[:3])
    return Parts(train, validation, test, 255 if parts.levels else 0)


def _carve(config: DataConfig, given: Pool) -> Parts:
    """Split a pool by seed: validation and test (unless there are official ones), and the rest for training."""
    pool, validation, test = given.pool, given.validation, given.test
    if given.population:
        return Parts(pool, pool, pool, given.levels)
    to_give = {"training": None, "validation": validation, "testing": test}
    purposes = [purpose for purpose, official in to_give.items() if official is None]
    if len(pool) < len(purposes):
        few = "1 datum" if len(pool) == 1 else f"{len(pool)} data"
        raise DataError(
            f"{config.path or config.name} holds {few} to split, too few to train on: {listed(purposes)} need one of "
            "their own each at the least, and learning some hundreds; add data"
        )
    order = permutation(len(pool), config.seed, "split")
    if validation is None:
        chosen, order = _take(order, config.validation, len(pool))
        validation = pool.only(chosen)
    if test is None:
        chosen, order = _take(order, config.test, len(pool))
        test = pool.only(chosen)
    if not len(order):
        raise DataError(
            f"{config.path or config.name} holds {len(pool)} data to split: data.validation {config.validation} and "
            f"data.test {config.test} leave none for training; lower them"
        )
    return Parts(pool.only(order), validation, test, given.levels)


def _take(order: Tensor, size: int | float, total: int) -> tuple[Tensor, Tensor]:
    count = size if isinstance(size, int) else max(1, round(size * total))
    return order[:count], order[count:]
