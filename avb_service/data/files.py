"""The user's own arrays: read and checked.

Floor 4. Nothing here trusts a file: each complaint names the file, what it holds, and what it should hold.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avb_service.errors import DataError, listed

Array = NDArray[Any]
Levels = int | Literal["real"]

_CHUNK_BYTES = 2**24
_NPY, _ZIP = b"\x93NUMPY", b"PK"  # how .npy and .npz files begin


class Arrays(NamedTuple):
    """What a file holds: data, labels where there are any, and the names of arrays that are neither."""

    x: Array
    y: Array | None = None
    left_out: tuple[str, ...] = ()


def read_arrays(path: Path, resident_gib: float) -> Arrays:
    """Read x, and y where there is one, from a .npz or .npy file; a .npy file stays on disk, memory-mapped.

    Args:
        path: of the file.
        resident_gib: what a .npz file may hold, which has to be read whole.

    Raises:
        DataError: unreadable, damaged, pickled, without an array `x`, or larger than that.
    """
    try:
        # allow_pickle=False: unpickling would run whatever code the file contains.
        with path.open("rb") as stream:
            start = stream.read(6)
            if start == _NPY:
                return Arrays(np.load(path, mmap_mode="r", allow_pickle=False))
            if not start.startswith(_ZIP):
                raise ValueError("it is neither a NumPy array nor an archive of arrays")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                if "x" in archive.files:
                    _check_size(archive.zip, path, resident_gib)
                    left_out = tuple(name for name in archive.files if name not in ("x", "y"))
                    return Arrays(archive["x"], archive["y"] if "y" in archive.files else None, left_out)
                found = listed(archive.files) or "nothing"
        raise DataError(
            f"{path} holds {found}; expected an array 'x', and optionally labels 'y', as written by "
            "numpy.savez(path, x=..., y=...); an archive of images has to be unpacked, and its folder given"
        )
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"cannot read {path}: {error}; expected numbers written by numpy.save, or numpy.savez(path, x=..., y=...), "
            "or a folder of images (an archive of them has to be unpacked)"
        ) from error


def _check_size(archive: zipfile.ZipFile, path: Path, resident_gib: float) -> None:
    size = max(member.file_size for member in archive.infolist() if member.filename in ("x", "x.npy")) / 2**30
    if size > resident_gib:
        raise DataError(
            f"{path} holds {size:.1f} GiB in x, more than data.resident_gib {resident_gib:g}, and an archive is read "
            "whole: write x with numpy.save('x.npy', x), of which a batch at a time is read, or raise "
            "data.resident_gib where there is memory for it"
        )


def channels_first(x: Array, source: str) -> Array:
    """A view [N, C, H, W] of data given as [N, D], [N, H, W], [N, H, W, C] or [N, C, H, W].

    The channels are the first or the last axis of four: the one that has 1 or 3 of them, else the one beside a square,
    else the shorter; and the first where both are.

    Raises:
        DataError: no data, or another shape.
    """
    given = x.shape
    if x.ndim == 2:
        x = x[:, None, None, :]
    elif x.ndim == 3:
        x = x[:, None, :, :]
    elif x.ndim == 4 and _channels_last(*x.shape[1:]):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4:
        expected = "[N, D], [N, H, W], [N, H, W, C] or [N, C, H, W]"
        raise DataError(f"{source}: x has shape {list(given)} and dtype {x.dtype}; expected {expected}")
    if 0 in x.shape:
        raise DataError(f"{source}: x has shape {list(given)}, which holds no data; expected one datum or more")
    return x


def _channels_last(first: int, middle: int, last: int) -> bool:
    signs = ((first in (1, 3), last in (1, 3)), (middle == last, first == middle), (first <= last, last < first))
    return next(not of_first for of_first, of_last in signs if of_first or of_last)


def grid_levels(x: Array, source: str, declared: Levels | None = None) -> int:
    """The largest integer of the grid that the numbers lie on: 255 for bytes, 1 for binary data, 0 for real values.

    Only bytes are pixels without a word from the user. Other whole numbers may be pixels or counts, and neither their
    type nor how large they happen to be tells which. Zeros and ones are binary data, however they are stored, and so
    are black and white, 0 and 255. Floats so large that none of them can have a fraction are measurements.

    Args:
        x: the numbers.
        source: what to call them in an error.
        declared: what the user says that they are.

    Raises:
        DataError: no numbers, numbers that are not finite or not as declared, or whole numbers that may be either.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{source}: x has dtype {x.dtype}; expected bool, integers or floats")
    if x.dtype.kind == "f":
        refuse(x, lambda part: ~np.isfinite(_single(part)), source, "finite numbers, in the range of 32-bit floats")
    if declared == "real":
        return 0
    if declared is not None:
        expected = f"whole numbers from 0 to {declared}, as data.levels {declared} says"
        refuse(x, lambda part: (part < 0) | (part > declared) | (part % 1 != 0), source, expected)
        return declared
    if all(((part == 0) | (part == 1)).all() for _, part in _chunks(x)):
        return 1
    if x.dtype == np.uint8 or all(((part == 0) | (part == 255)).all() for _, part in _chunks(x)):
        return 255
    if all((part % 1 == 0).all() for _, part in _chunks(x)) and _could_be_fractions(x):
        raise DataError(_pixels_or_counts(x, source))
    return 0


def too_fine(x: Array) -> int:
    """How many numbers of a datum vary by less than 256 steps of 32-bit floats, and by more than 64-bit ones round off.

    Args:
        x: the numbers, before they become 32-bit floats.
    """
    if x.dtype.itemsize <= 2 or x.dtype == np.float32:
        return 0
    ends = [(part.min(0).astype(float), part.max(0).astype(float)) for _, part in _chunks(x)]
    low, high = np.min([low for low, _ in ends], 0), np.max([high for _, high in ends], 0)
    size, spread = np.maximum(abs(low), abs(high)), high - low
    return int(((spread > 1e-12 * size) & (spread < 256 * np.spacing(size.astype(np.float32)))).sum())


def _could_be_fractions(x: Array) -> bool:
    """Whether it says something of numbers that they are whole: floats far from 0 have no digits left for fractions."""
    if x.dtype.kind != "f":
        return True
    far = 1 / np.finfo(x.dtype).eps
    return any(((part != 0) & (np.abs(part) < far)).any() for _, part in _chunks(x))


def _pixels_or_counts(x: Array, source: str) -> str:
    ends = [(part.min(), part.max()) for _, part in _chunks(x)]
    low, high = int(min(low for low, _ in ends)), int(max(high for _, high in ends))
    fit = 0 <= low and high <= 255
    pixels = "pixels" if fit else "pixels, once they are brought to 0 to 255"
    return (
        f"{source}: x holds whole numbers of dtype {x.dtype}, from {low} to {high}, which may be pixels or counts; say "
        f"--set data.levels=255 for {pixels} (or what white is instead of 255), or --set data.levels=real for counts "
        "and measurements"
    )


def refuse(x: Array, wrong: Callable[[Array], Array], source: str, expected: str) -> None:
    """Look through all the numbers, a part at a time.

    Raises:
        DataError: with the index and the value of the first number for which `wrong` holds.
    """
    for start, part in _chunks(x):
        bad = wrong(part)
        if bad.any():
            first, *rest = map(int, np.unravel_index(bad.argmax(), bad.shape))
            index = (start + first, *rest)
            raise DataError(f"{source}: x[{', '.join(map(str, index))}] = {x[index]}; expected {expected}")


def check_labels(y: Array, count: int, source: str) -> NDArray[np.int64]:
    """The labels as int64 [N].

    Raises:
        DataError: not one integer for each datum.
    """
    if y.shape != (count,) or y.dtype.kind not in "biu":
        given = f"labels y have shape {list(y.shape)} and dtype {y.dtype}"
        raise DataError(f"{source}: {given}; expected {count} integers, one for each x")
    return y.astype(np.int64)


def _chunks(x: Array) -> Iterator[tuple[int, Array]]:
    """Consecutive parts of an array that may be larger than memory, each with the index of its first row."""
    rows = max(1, _CHUNK_BYTES // max(1, x.itemsize * int(np.prod(x.shape[1:]))))
    for start in range(0, len(x), rows):
        yield start, x[start : start + rows]


def _single(x: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported as such
        return x.astype(np.float32)
