"""Where data come from: a line of the table `SOURCES` each.

Floor 4.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock

from avb_service.bayes import EightSchools
from avb_service.data.files import (
    Array,
    Levels,
    channels_first,
    check_labels,
    grid_levels,
    read_arrays,
    refuse,
    too_fine,
)
from avb_service.data.folders import TEST, TRAIN, VALIDATION, read_folder
from avb_service.data.images import decode_images
from avb_service.data.mixtures import MIXTURES, POINTS
from avb_service.data.splits import Binarisation, Split, hold
from avb_service.distributions import Values
from avb_service.errors import DataError, listed
from avb_service.kinds import Table

_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


class Wanted(Protocol):
    """What sources read of a `DataConfig`, which says what each of these is."""

    name: str
    path: str | None
    levels: Levels | None
    binarisation: Binarisation
    seed: int
    image_size: int | None
    resident_gib: float
    download: bool

    @property
    def folder(self) -> Path:
        """The folder for the files of named sources, absolute."""


class Pool(NamedTuple):
    """What a source gives.

    Attributes:
        pool: of which training, validation and test data are taken, unless these are given.
        levels: the largest integer of the grid of pixels; 0 for real values.
        test: the official test split.
        validation: the official validation split.
        population: whether the pool is all that there can be, so that each split is all of it.
        classes: names of what the labels number.
        remarks: for people: how it was read, and what was left out and why.
    """

    pool: Split
    levels: int
    test: Split | None = None
    validation: Split | None = None
    population: bool = False
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


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
    load: Callable[[Wanted], Pool]
    reads_path: bool = False


def _population(x: Array, y: Array | None, levels: int, config: Wanted) -> Pool:
    """A synthetic set is its own population."""
    return Pool(hold(x, y, levels, config.resident_gib), levels, population=True)


def _one_hot(dimension: int, config: Wanted) -> Pool:
    return _population(np.eye(dimension)[:, None, None, :], np.arange(dimension), 1, config)


def _all_bits(dimension: int, config: Wanted) -> Pool:
    bits = (np.arange(2**dimension)[:, None] >> np.arange(dimension)) & 1
    return _population(bits[:, None, None, :], bits.sum(1), 1, config)


def _eight_schools(config: Wanted) -> Pool:
    """One datum: the estimated effects of all eight."""
    effects = np.array(EightSchools.effects).reshape(1, *EightSchools.shape)
    return _population(effects, None, 0, config)


def _digits(config: Wanted) -> Pool:
    from sklearn.datasets import load_digits  # takes a second to import

    x, y = load_digits(return_X_y=True)
    return Pool(hold(x.reshape(-1, 1, 8, 8), y, 16, config.resident_gib), 16)


def _points(name: str, config: Wanted) -> Pool:
    x, modes = MIXTURES[name].draw(POINTS, config.seed)
    return Pool(hold(x[:, None, None].numpy(), modes, 0, config.resident_gib), 0)


def _torchvision(class_name: str, subfolder: str, files: tuple[str, ...], config: Wanted) -> Pool:
    """Read a set of `torchvision.datasets` that keeps all its images in memory and has an official test split."""
    folder = config.folder / subfolder
    reason = _fetch(class_name, folder, files, config) if _missing(folder, files) else ""
    if missing := _missing(folder, files):
        raise DataError(_where_files_belong(config, folder, missing, reason))
    try:
        train, test = (_read_torchvision(class_name, config, train) for train in (True, False))
    except Exception as error:  # a damaged file fails in as many ways as its parser has lines
        raise DataError(f"{config.name}: cannot read the files in {folder}, replace them: {error!r}") from error
    return Pool(train, 255, test)


def _read_torchvision(class_name: str, config: Wanted, train: bool) -> Split:
    import torchvision.datasets  # takes seconds to import

    data = getattr(torchvision.datasets, class_name)(config.folder, train=train, download=False)
    x = channels_first(np.asarray(data.data), config.name)
    return hold(x, check_labels(np.asarray(data.targets), len(x), config.name), 255, config.resident_gib)


def _fetch(class_name: str, folder: Path, files: tuple[str, ...], config: Wanted) -> str:
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


def _celeba(config: Wanted) -> Pool:
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
    images = decode_images(folder / "img_align_celeba", list(map(Path, names)), crop=148, size=config.image_size or 64)
    x = _planes(images.pixels)
    everything = hold(x, None, 255, config.resident_gib)
    test, pool = (part == 2).nonzero().flatten(), (part != 2).nonzero().flatten()
    return Pool(everything.only(pool), 255, everything.only(test))


def _missing(folder: Path, files: tuple[str, ...]) -> list[str]:
    return [name for name in files if not (folder / name).exists()]


def _where_files_belong(config: Wanted, folder: Path, missing: list[str], reason: str) -> str:
    return (
        f"{config.name}: {', '.join(missing)} not found in {folder} ({reason}). Put them there, or name the folder "
        f"that contains {folder.relative_to(config.folder)} with --set data.root=FOLDER or AVB_DATA_ROOT=FOLDER"
    )


def _file(config: Wanted) -> Pool:
    """The user's own data."""
    path = Path(config.path or "").expanduser().absolute()
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist; expected a .npz or .npy file, or a folder of images")
    if path.is_dir():
        return _folder(path, config)
    if not path.is_file():
        raise DataError(f"data.path: {path} is neither a file nor a folder")
    given, y, left_out = read_arrays(path, config.resident_gib)
    x = channels_first(given, str(path))
    levels = grid_levels(given, str(path), config.levels)
    if config.binarisation != "none" and not levels:
        expected = "probabilities in [0, 1] to binarise by; rescale x, or set data.binarisation: none"
        refuse(given, lambda part: (part < 0) | (part > 1), str(path), expected)
    labels = None if y is None else check_labels(y, len(x), str(path))
    remarks = [f"left out: other arrays in the file ({listed(left_out)})"] if left_out else []
    if not levels and (lost := too_fine(x)):
        remarks.append(
            f"{lost} of the {x[0].size} numbers of a datum vary so little, so far from 0, that 32-bit floats hardly "
            "tell them apart; subtract their means before they are saved"
        )
    return Pool(hold(x, labels, levels, config.resident_gib), levels, remarks=tuple(remarks))


def _folder(path: Path, config: Wanted) -> Pool:
    """Images, split by folders of theirs where these say so."""
    found = read_folder(path)
    images = decode_images(path, found.names, size=config.image_size)
    levels = grid_levels(images.pixels, str(path), config.levels)
    everything = hold(_planes(images.pixels), found.labels, levels, config.resident_gib)
    done = [f"{images.grey} of them grey, read in colour"] if images.grey else []
    done += [f"{images.transparent} of them transparent in parts, laid on white"] if images.transparent else []
    pool = Pool(everything, levels, classes=found.classes, remarks=(*done, *found.remarks))
    if (splits := found.splits) is None:
        return pool
    train, validation, test = (torch.from_numpy((splits == each).nonzero()[0]) for each in (TRAIN, VALIDATION, TEST))
    return pool._replace(
        pool=everything.only(train),
        validation=everything.only(validation) if len(validation) else None,
        test=everything.only(test) if len(test) else None,
    )


def _planes(pixels: Array) -> Array:
    """A view [N, C, H, W] of [N, H, W] or [N, H, W, 3]; of images 1 or 3 high, the shape does not tell which it is."""
    return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR = (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta")

SOURCES: Table[Source] = Table(
    "sources",
    {
        "onehot-4": Source("the 4 one-hot vectors of 4 numbers", "binary", partial(_one_hot, 4)),
        "onehot-8": Source("the 8 one-hot vectors of 8 numbers", "binary", partial(_one_hot, 8)),
        "binary-8": Source("all 256 vectors of 8 bits, labelled by their sum", "binary", partial(_all_bits, 8)),
        "mixture1d": Source(
            "20,000 numbers from two Gaussians, labelled by mode", "real", partial(_points, "mixture1d")
        ),
        "gaussians8": Source(
            "20,000 points from 8 Gaussians on a circle, labelled by mode", "real", partial(_points, "gaussians8")
        ),
        "gaussians25": Source(
            "20,000 points from 25 Gaussians on a grid, labelled by mode", "real", partial(_points, "gaussians25")
        ),
        "eight_schools": Source("one datum: the effects of coaching in 8 schools (Rubin 1981)", "real", _eight_schools),
        "digits": Source("1,797 digits of 8x8 pixels, bundled (scikit-learn)", "levels", _digits),
        "mnist": Source("70,000 digits of 28x28 pixels", "levels", partial(_torchvision, "MNIST", "MNIST/raw", _IDX)),
        "fashion_mnist": Source(
            "70,000 articles of clothing, 28x28",
            "levels",
            partial(_torchvision, "FashionMNIST", "FashionMNIST/raw", _IDX),
        ),
        "kmnist": Source(
            "70,000 cursive Japanese characters, 28x28", "levels", partial(_torchvision, "KMNIST", "KMNIST/raw", _IDX)
        ),
        "cifar10": Source(
            "60,000 colour photographs, 32x32",
            "levels",
            partial(_torchvision, "CIFAR10", "cifar-10-batches-py", _CIFAR),
        ),
        "celeba": Source("202,599 aligned faces in colour, 64x64", "levels", _celeba),
        "file": Source("your own: data.path is a .npz, a .npy or a folder of images", None, _file, reads_path=True),
    },
    lambda name, found: None if isinstance(found, Source) else "an avb_service.data.sources.Source",
)
