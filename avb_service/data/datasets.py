"""Data sets by name: split by seed, binarised by seed, the same on every machine.

Floor 4. A source is one line of the table `SOURCES`; whatever it reads becomes a `Dataset` of three splits whose
pixels are bytes (binary data, levels) or 32-bit floats (real values).
"""

import hashlib
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor
from torch.nn.functional import interpolate

from avb_service.bayes import EightSchools
from avb_service.config import Config
from avb_service.data.files import (
    Array,
    channels_first,
    check_labels,
    decode_images,
    find_images,
    grid_levels,
    read_arrays,
    refuse,
)
from avb_service.data.mixtures import MIXTURES, POINTS
from avb_service.distributions import DataSpec, Values
from avb_service.errors import DataError
from avb_service.seeding import generator, permutation

Binarisation = Literal["none", "static", "dynamic"]

_ROWS_AT_ONCE = 4096  # a multiple of 4, so that binarising in parts uses up whole words of noise
_MEAN_ROWS = 2**16
_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


def _size(value: Any) -> Any:  # noqa: ANN401  whatever the YAML holds
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError("a count such as 5000, or a fraction such as 0.1")
    return value


Size = Annotated[int | float, BeforeValidator(_size)]


class DataConfig(Config):
    """Which data, where they lie, and how they are split and binarised.

    Attributes:
        name: a source of the table `SOURCES`; "file" reads `path`.
        root: folder that holds the files of a named source; by default $AVB_DATA_ROOT, else `data`.
        path: for "file": .npz (x, optionally y), .npy, or a folder of images with optional subfolders for classes.
            What is larger than `resident_gib` belongs into a .npy, since a .npz is read whole.
        binarisation: none; static, once at load; or dynamic, anew each time that a datum is seen.
        validation: size of the validation split, a count or a fraction of all but an official test split.
        test: likewise, where the source has no official test split.
        seed: of the splits and of static binarisation.
        limit: use only so many training data.
        image_size: crop images to a centred square and resize it to this side (celeba: 64 by default); levels become
            bytes.
        resident_gib: data larger than this are streamed from disk instead of being kept on the device.
        download: fetch missing files of a named source, where they can be fetched.
        other: the second source, for a method that translates between two; its data are not paired with the first's.
    """

    name: str
    root: str | None = None
    path: str | None = None
    binarisation: Binarisation = "none"
    validation: Size = 0.1
    test: Size = 0.1
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None
    resident_gib: Annotated[float, Field(ge=0)] = 2.0
    download: bool = True
    other: "DataConfig | None" = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            raise ValueError(f"one of {', '.join(SOURCES)}")
        return name

    def problems(self) -> Iterator[str]:
        """A path goes with the source that reads it, and with no other."""
        yield from super().problems()
        reads_path = SOURCES[self.name].reads_path
        if reads_path and self.path is None:
            yield f"path: required by name {self.name}; give a .npz or .npy file, or a folder of images"
        if self.path is not None and not reads_path:
            yield f"path: given {self.path!r}, but {self.name} does not read it; set name: file, or leave path out"
        if SOURCES[self.name].values == "real" and self.binarisation != "none":
            yield f"binarisation: {self.binarisation} needs pixels, and {self.name} has real values; set it to none"
        if self.other is not None and self.other.other is not None:
            yield "other.other: a method has two sources at most"

    @property
    def values(self) -> Values | None:
        """Which numbers a model will see; None where only loading the file can tell."""
        if self.binarisation != "none":
            return "binary"
        if self.path is not None and Path(self.path).expanduser().is_dir():
            return "levels"
        return SOURCES[self.name].values

    @property
    def folder(self) -> Path:
        """The folder for the files of named sources, absolute."""
        return Path(self.root or os.environ.get("AVB_DATA_ROOT") or "data").expanduser().absolute()

    def anchored(self) -> "DataConfig":
        """The same with absolute paths."""
        return self.model_copy(update={
            "root": str(self.folder),
            "path": self.path and str(Path(self.path).expanduser().absolute()),
            "other": self.other and self.other.anchored(),
        })  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits (a synthetic set, which is its own population, is all three) and what a datum is.

    With a second set, where the configuration names one.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    spec: DataSpec
    other: "Dataset | None" = None

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


class Source(NamedTuple):
    """A line of the table.

    Attributes:
        about: what it is, for people.
        values: which numbers occur; None where only loading can tell.
        load: reads it.
        reads_path: whether the user's `path` says what to read.
    """

    about: str
    values: Values | None
    load: Callable[[DataConfig], Parts]
    reads_path: bool = False


def load(config: DataConfig) -> Dataset:
    """Read, split and (if static) binarise.

    Raises:
        DataError: data that are missing, damaged, too few, or not what they should be.
    """
    parts = SOURCES[config.name].load(config)
    if config.limit is not None and config.limit < len(parts.train):
        parts = parts._replace(train=parts.train.only(torch.arange(config.limit)))
    if config.image_size is not None:
        parts = _of_size(parts, config.image_size, config.name)
    train, validation, test, levels = parts
    if config.binarisation == "static" and levels != 1:
        train = _binarised(train, levels, config.seed, "train")
        validation = _binarised(validation, levels, config.seed, "validation")
        test = _binarised(test, levels, config.seed, "test")
        levels = 1
    grid: Values = "levels" if levels > 1 else "real"
    values: Values = "binary" if levels == 1 or config.binarisation == "dynamic" else grid
    channels, height, width = train.pixels.shape[1:]
    spec = DataSpec((channels, height, width), values, levels, _mean(train, levels))
    other = None if config.other is None else load(config.other)
    if other is not None and other.spec[:2] != spec[:2]:
        raise DataError(
            f"the two sources must have one shape and kind of values: {config.name} {list(spec.shape)} {spec.values}"
            f" and {other.name} {list(other.spec.shape)} {other.spec.values}; set image_size or binarisation"
        )
    return Dataset(config.name, train, validation, test, spec, other)


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


def _binarised(split: Split, levels: int, seed: int, purpose: str) -> Split:
    if isinstance(split.pixels, Mapped):
        raise DataError(
            "static binarisation keeps the data in memory, and they are larger than data.resident_gib; "
            "raise it, or set data.binarisation: dynamic"
        )
    noise = generator("cpu", seed, "static binarisation", purpose)
    parts = [binarise(thresholds(part, levels), noise).to(torch.uint8) for part in split.parts()]
    return Split(torch.cat(parts), split.labels)


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
    train, validation, test = (_resized(split, parts.levels, size) for split in parts[:3])
    return Parts(train, validation, test, 255 if parts.levels else 0)


def _resized(split: Split, levels: int, size: int) -> Split:
    if isinstance(split.pixels, Mapped):
        raise DataError(
            "data.image_size keeps the resized images in memory, and these are larger than data.resident_gib; raise it"
        )
    resized: list[Tensor] = []
    for part in split.parts():
        height, width = part.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = part[..., top : top + side, left : left + side].float() / max(levels, 1)
        image = interpolate(square, (size, size), mode="bilinear", antialias=True)
        resized.append((255 * image).round_().clamp_(0, 255).to(torch.uint8) if levels else image)
    return Split(torch.cat(resized), split.labels)


def _mean(split: Split, levels: int) -> Tensor:
    """Mean [C, H, W] in the units that a model sees, of at most 65,536 data: a decoder only starts from it."""
    total = sum((part.sum(0, dtype=torch.float64) for part in split.parts(_MEAN_ROWS)), torch.zeros(()))
    return (total / (min(len(split), _MEAN_ROWS) * max(levels, 1))).float()


def _carve(config: DataConfig, pool: Split, levels: int, test: Split | None = None) -> Parts:
    """Split a pool by seed: validation, test (unless there is an official one), and the rest for training."""
    order = permutation(len(pool), config.seed, "split")
    validation, order = _take(order, config.validation, len(pool))
    if test is None:
        chosen, order = _take(order, config.test, len(pool))
        test = pool.only(chosen)
    if not len(order):
        raise DataError(
            f"{config.path or config.name} holds {len(pool)} data to split: data.validation {config.validation} and "
            f"data.test {config.test} leave none for training; lower them"
        )
    return Parts(pool.only(order), pool.only(validation), test, levels)


def _take(order: Tensor, size: int | float, total: int) -> tuple[Tensor, Tensor]:
    count = size if isinstance(size, int) else max(1, round(size * total))
    return order[:count], order[count:]


def _split(x: Array, y: Array | Tensor | None, levels: int, config: DataConfig) -> Split:
    """Hold an array [N, C, H, W] in memory if it is small enough."""
    dtype = torch.uint8 if levels else torch.float32
    labels = None if y is None else torch.as_tensor(y, dtype=torch.int64)
    if math.prod(x.shape) * dtype.itemsize > config.resident_gib * 2**30:
        return Split(Mapped(x, torch.arange(len(x)), dtype), labels)
    return Split(_tensor(x, dtype), labels)


def _tensor(x: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(x, dtype=np.uint8 if dtype == torch.uint8 else np.float32, order="C"))


def _everything(split: Split) -> Parts:
    """A synthetic set is its own population: training, validation and test see all of it."""
    return Parts(split, split, split, levels=1)


def _one_hot(dimension: int, config: DataConfig) -> Parts:
    return _everything(_split(np.eye(dimension)[:, None, None, :], np.arange(dimension), 1, config))


def _all_bits(dimension: int, config: DataConfig) -> Parts:
    bits = (np.arange(2**dimension)[:, None] >> np.arange(dimension)) & 1
    return _everything(_split(bits[:, None, None, :], bits.sum(1), 1, config))


def _eight_schools(config: DataConfig) -> Parts:
    """One datum: the estimated effects of all eight."""
    effects = np.array(EightSchools.effects).reshape(1, *EightSchools.shape)
    return _everything(_split(effects, None, 0, config))._replace(levels=0)


def _digits(config: DataConfig) -> Parts:
    from sklearn.datasets import load_digits  # takes a second to import

    x, y = load_digits(return_X_y=True)
    return _carve(config, _split(x.reshape(-1, 1, 8, 8), y, 16, config), 16)


def _points(name: str, config: DataConfig) -> Parts:
    x, modes = MIXTURES[name].draw(POINTS, config.seed)
    return _carve(config, _split(x[:, None, None].numpy(), modes, 0, config), 0)


def _torchvision(class_name: str, subfolder: str, files: tuple[str, ...], config: DataConfig) -> Parts:
    """Read a set of `torchvision.datasets` that keeps all its images in memory and has an official test split."""
    folder = config.folder / subfolder
    reason = _fetch(class_name, folder, files, config) if _missing(folder, files) else ""
    if missing := _missing(folder, files):
        raise DataError(_where_files_belong(config, folder, missing, reason))
    try:
        train, test = (_read_torchvision(class_name, config, train) for train in (True, False))
    except Exception as error:  # a damaged file fails in as many ways as its parser has lines
        raise DataError(f"{config.name}: cannot read the files in {folder}, replace them: {error!r}") from error
    return _carve(config, train, 255, test)


def _read_torchvision(class_name: str, config: DataConfig, train: bool) -> Split:
    import torchvision.datasets  # takes seconds to import

    data = getattr(torchvision.datasets, class_name)(config.folder, train=train, download=False)
    x = channels_first(np.asarray(data.data), config.name)
    return _split(x, check_labels(np.asarray(data.targets), len(x), config.name), 255, config)


def _fetch(class_name: str, folder: Path, files: tuple[str, ...], config: DataConfig) -> str:
    """Try to download; gives the reason where that failed."""
    if not config.download:
        return "data.download is false"
    import torchvision.datasets  # takes seconds to import

    lock = folder / ".download.lock"
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of the workers on one host, one downloads while the others wait for it.
        with FileLock(lock), _impatient():
            if _missing(folder, files):
                getattr(torchvision.datasets, class_name)(config.folder, download=True)
    except Exception as error:  # sockets, archives, checksums, disks: all leave files missing, which is what matters
        return f"downloading failed: {' '.join(str(error).split()) or error!r}"
    finally:  # nothing stays but what was fetched
        with suppress(OSError):
            lock.unlink(missing_ok=True)
            for each in made:
                each.rmdir()
    return "the download left them out"


@contextmanager
def _impatient() -> Iterator[None]:
    """Torchvision sets no timeout: without one, a firewall that drops packets would hold a run up for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _celeba(config: DataConfig) -> Parts:
    """Aligned faces, cut to the central 148 pixels; the official validation images join the training pool."""
    folder = config.folder / "celeba"
    if missing := _missing(folder, ("img_align_celeba", "list_eval_partition.txt")):
        reason = "its host asks for a browser: fetch img_align_celeba.zip and list_eval_partition.txt, and unpack"
        raise DataError(_where_files_belong(config, folder, missing, reason))
    try:
        lines = (folder / "list_eval_partition.txt").read_text(encoding="utf-8").splitlines()
        names, parts = zip(*(line.split() for line in lines if line.strip()), strict=True)
        part = torch.tensor([int(number) for number in parts])
    except (OSError, ValueError) as error:
        expected = "expected lines such as '000001.jpg 0'"
        raise DataError(f"cannot read {folder / 'list_eval_partition.txt'}: {error}; {expected}") from error
    files = [folder / "img_align_celeba" / name for name in names]
    x = channels_first(decode_images(files, crop=148, size=config.image_size or 64), str(folder))
    everything = _split(x, None, 255, config)
    test, pool = (part == 2).nonzero().flatten(), (part != 2).nonzero().flatten()
    return _carve(config, everything.only(pool), 255, everything.only(test))


def _missing(folder: Path, files: tuple[str, ...]) -> list[str]:
    return [name for name in files if not (folder / name).exists()]


def _where_files_belong(config: DataConfig, folder: Path, missing: list[str], reason: str) -> str:
    return (
        f"{config.name}: {', '.join(missing)} not found in {folder} ({reason}). Put them there, or name the folder "
        f"that contains {folder.relative_to(config.folder)} with --set data.root=FOLDER or AVB_DATA_ROOT=FOLDER"
    )


def _file(config: DataConfig) -> Parts:
    """The user's own data."""
    path = Path(config.path or "").expanduser().absolute()
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist; expected a .npz or .npy file, or a folder of images")
    if path.is_dir():
        files, labels = find_images(path)
        x = channels_first(decode_images(files, size=config.image_size), str(path))
        return _carve(config, _split(x, labels, 255, config), 255)
    given, y = read_arrays(path, config.resident_gib)
    x = channels_first(given, str(path))
    levels = grid_levels(given, str(path))
    if config.binarisation != "none" and not levels:
        expected = "probabilities in [0, 1] to binarise by; rescale x, or set data.binarisation: none"
        refuse(given, lambda part: (part < 0) | (part > 1), str(path), expected)
    labels = None if y is None else check_labels(y, len(x), str(path))
    return _carve(config, _split(x, labels, levels, config), levels)


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR = (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta")

SOURCES: dict[str, Source] = {
    "onehot-4": Source("the 4 one-hot vectors of 4 numbers", "binary", partial(_one_hot, 4)),
    "onehot-8": Source("the 8 one-hot vectors of 8 numbers", "binary", partial(_one_hot, 8)),
    "binary-8": Source("all 256 vectors of 8 bits, labelled by their sum", "binary", partial(_all_bits, 8)),
    "mixture1d": Source("20,000 numbers from two Gaussians, labelled by mode", "real", partial(_points, "mixture1d")),
    "gaussians8": Source(
        "20,000 points from 8 Gaussians on a circle, labelled by mode", "real", partial(_points, "gaussians8")
    ),
    "gaussians25": Source(
        "20,000 points from 25 Gaussians on a grid, labelled by mode", "real", partial(_points, "gaussians25")
    ),
    "eight_schools": Source("one datum: the effects of coaching in 8 schools (Rubin 1981)", "real", _eight_schools),
    "digits": Source("1,797 digits of 8x8 pixels, bundled (scikit-learn)", "levels", _digits),
    "mnist": Source(
        "70,000 digits of 28x28 pixels", "levels", partial(_torchvision, "MNIST", "MNIST/raw", _IDX)
    ),
    "fashion_mnist": Source(
        "70,000 articles of clothing, 28x28", "levels", partial(_torchvision, "FashionMNIST", "FashionMNIST/raw", _IDX)
    ),
    "kmnist": Source(
        "70,000 cursive Japanese characters, 28x28", "levels", partial(_torchvision, "KMNIST", "KMNIST/raw", _IDX)
    ),
    "cifar10": Source(
        "60,000 colour photographs, 32x32", "levels", partial(_torchvision, "CIFAR10", "cifar-10-batches-py", _CIFAR)
    ),
    "celeba": Source("202,599 aligned faces in colour, 64x64", "levels", _celeba),
    "file": Source("your own: data.path is a .npz, a .npy or a folder of images", None, _file, reads_path=True),
}
