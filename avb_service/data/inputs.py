"""Data as people hold them (tensors, arrays, lists, tables of numbers) as what a model sees.

Floor 4.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from avb_service.distributions import DataSpec
from avb_service.errors import DataError

Given = Tensor | ArrayLike

_NATIVE: dict[str, Any] = {"b": np.bool_, "u": np.int64, "i": np.int64, "f": np.float64, "c": np.complex128}
_KEPT = (np.uint8, np.float16, np.float32)


def seen(x: Given, spec: DataSpec, like: Tensor) -> Tensor:
    """Data [B, C, H, W] in the units that a model sees. Whether it can have produced them is another question.

    The shape may be [B, C, H, W] or [B, H, W, C]; of one channel also [B, H, W], or [B, H * W] as in a table's rows.

    Floats and bools are taken as they are, and so is whatever is given to a model of real values. Bytes are what they
    were in training: pixels from 0 to the largest, by which they are divided. Other integers could be pixels or grey
    values, so a model of grey levels does not take them. To a model of binary data zeros and ones are these, and so are
    0 and the largest pixel, of any type.

    Args:
        x: a tensor, or what NumPy makes an array of.
        spec: what a datum is.
        like: a tensor of the model's precision, where it is.

    Raises:
        DataError: they are no numbers, have another shape, or are integers that are no pixels of the model's.
    """
    tensor, dtype = (x, str(x.dtype).removeprefix("torch.")) if isinstance(x, Tensor) else from_array(as_array(x))
    if tensor.is_complex():
        raise DataError(f"data as {dtype}, expected real numbers")
    numbers = _shaped(tensor, spec.shape).to(like)
    white = spec.values == "binary" and bool((numbers == spec.levels).any())
    if tensor.is_floating_point() and not white or dtype == "bool" or spec.values == "real":
        return numbers
    if spec.values == "levels" and dtype != "uint8":
        raise DataError(
            f"data as {dtype}, which may be pixels from 0 to {spec.levels} or grey values from 0 to 1; expected uint8 "
            "for the first, floats for the second: x.astype('uint8') or x.astype('float32'), for a served model its "
            "parameter dtype"
        )
    if spec.values == "binary" and (numbers <= 1).all():
        return numbers
    _check_pixels(numbers, spec)
    return numbers / spec.levels


def _check_pixels(numbers: Tensor, spec: DataSpec) -> None:
    """In the numbers that were given: what a division makes of them is harder to find again."""
    levels, binary = spec.levels, spec.values == "binary"
    wrong = (numbers != 0) & (numbers != levels) if binary else (numbers < 0) | (numbers > levels)
    if wrong.any():
        ones = "0 or 1" if levels == 1 else f"0 or {levels}, or 0 or 1"
        expected = f"{ones} (the model was trained on binary data)" if binary else f"pixels from 0 to {levels}"
        refuse_first(numbers, wrong, expected)


def refuse_first(x: Tensor, wrong: Tensor, expected: str) -> None:
    """Name the first number that is wrong.

    Raises:
        DataError: always.
    """
    index = tuple(wrong.nonzero()[0].tolist())
    raise DataError(f"datum {index[0]} holds {x[index].item():g} at {list(index[1:])}, expected {expected}")


def as_array(x: ArrayLike) -> NDArray[Any]:
    """An array of numbers.

    Raises:
        DataError: there are none in it, or they have no shape.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError("data as an array of which a part is masked, and a model sees whole data: fill it, x.filled(0)")
    try:
        array = np.asarray(x)
        if array.dtype.kind == "O":  # a table whose columns differ in type, or whose cells hold lists
            array = np.asarray(array.tolist())
    except (ValueError, TypeError) as error:
        raise DataError(f"data as {type(x).__name__}, of which NumPy makes no array: {error}") from error
    if array.dtype.kind not in _NATIVE:
        raise DataError(f"data as {type(x).__name__} of {array.dtype}, expected numbers: a tensor, an array, a table")
    return array


def from_array(array: NDArray[Any]) -> tuple[Tensor, str]:
    """A tensor that torch can compute with, and the name of the type that was given."""
    native = array.dtype.type if array.dtype.type in _KEPT else _NATIVE[array.dtype.kind]
    return torch.from_numpy(np.array(array, dtype=native, order="C")), array.dtype.name


def _shaped(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    given = tuple(x.shape[1:])
    if given == tuple(shape):
        return x
    if channels == 1 and given in ((height * width,), (height, width), (height, width, 1)):
        return x.reshape(len(x), *shape)
    if given == (height, width, channels):
        return x.permute(0, 3, 1, 2)
    others = ([height, width], [height * width]) if channels == 1 else ([height, width, channels],)
    expected = (f"[B, {', '.join(map(str, each))}]" for each in (shape, *others))
    raise DataError(f"data of shape {list(x.shape)}, expected {' or '.join(dict.fromkeys(expected))}")
