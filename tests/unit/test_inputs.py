"""Data as people hold them: the same data in every shape and type are the same to a model, and the rest is named."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from avb_service.data.inputs import seen
from avb_service.distributions import DataSpec
from avb_service.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 6), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
FLOATS = [np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"]
LIKE = torch.zeros(1)


def spec(values: str, levels: int, shape: tuple[int, int, int] = (1, 4, 6)) -> DataSpec:
    return DataSpec(shape, values, levels, torch.zeros(shape))


GREY, BINARY, MASKS, REAL = spec("levels", 255), spec("binary", 1), spec("binary", 255), spec("real", 0)


def as_given(x: np.ndarray) -> dict[str, object]:
    """One array as people might have it."""
    return {
        "array": x,
        "tensor": torch.from_numpy(x),
        "list": x.tolist() if x.dtype.kind == "f" else list(x),
        "list of tensors": list(torch.from_numpy(x)),
        "read-only": np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        "every other": np.repeat(x, 2, 0)[::2],
        "Fortran's order": np.asfortranarray(x),
        "channels last": x.transpose(0, 2, 3, 1),
        "images": x[:, 0],
        "rows": x.reshape(len(x), -1),
        "data frame": pd.DataFrame(x.reshape(len(x), -1)),
        "data frame of lists": pd.DataFrame({"image": x.reshape(len(x), -1).tolist()})["image"]
        if x.dtype.kind == "f" else x,
        "pictures": [Image.fromarray(each[0]) for each in x] if x.dtype == np.uint8 else x,
    }  # fmt: skip


@pytest.mark.parametrize("form", as_given(PIXELS))
def test_every_form_of_the_same_data_is_the_same(form):
    expected = torch.from_numpy(PIXELS).float() / 255
    assert torch.equal(seen(as_given(PIXELS)[form], GREY, LIKE), expected)
    floats = (PIXELS / 255).astype(np.float32)
    torch.testing.assert_close(seen(as_given(floats)[form], GREY, LIKE), expected)


def test_colour_may_be_first_or_last():
    of = spec("levels", 255, COLOUR.shape[1:])
    expected = torch.from_numpy(COLOUR).float() / 255
    assert torch.equal(seen(COLOUR, of, LIKE), expected)
    assert torch.equal(seen(COLOUR.transpose(0, 2, 3, 1), of, LIKE), expected)
    same = spec("levels", 255, (4, 4, 4))
    cube = np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4)
    assert torch.equal(seen(cube, same, LIKE)[0, 0, 0], torch.arange(4) / 255), "as the first, where both would do"


def test_vectors_are_rows():
    x = np.random.default_rng(0).normal(size=(5, 7))
    assert torch.equal(seen(x, spec("real", 0, (1, 1, 7)), LIKE), torch.from_numpy(x).float()[:, None, None])


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_taken_as_they_are(dtype):
    x = np.linspace(0, 1, 24).reshape(1, 1, 4, 6).astype(dtype)
    assert torch.equal(seen(x, GREY, LIKE), torch.from_numpy(x.astype(np.float64)).float())
    assert seen(x, GREY, LIKE.double()).dtype == torch.float64


@pytest.mark.parametrize("levels", [16, 100, 255])
def test_bytes_are_divided_by_the_levels_as_in_training(levels):
    x = np.arange(levels + 1, dtype=np.uint8).repeat(24).reshape(-1, 1, 4, 6)
    expected = torch.from_numpy(x).float().div_(levels)
    for given in (x, torch.from_numpy(x)):
        assert torch.equal(seen(given, spec("levels", levels), LIKE), expected)
    x[3, 0, 1, 2] = min(levels + 1, 255)
    if levels < 255:
        with pytest.raises(DataError, match=rf"datum 3 holds {levels + 1} at \[0, 1, 2\], expected pixels from 0 to"):
            seen(x, spec("levels", levels), LIKE)


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64, ">i4"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_other_integers_may_be_two_things_to_a_model_of_levels_whatever_they_happen_to_be(dtype):
    for x in (np.zeros((2, 1, 4, 6)), np.ones((2, 1, 4, 6)), np.full((2, 1, 4, 6), 100)):
        for given in (x.astype(dtype), torch.from_numpy(x.astype(np.dtype(dtype).newbyteorder("=")))):
            with pytest.raises(DataError, match=f"data as {np.dtype(dtype).name}, which may be pixels from 0 to"):
                seen(given, GREY, LIKE)
        assert torch.equal(seen(x.astype(dtype), REAL, LIKE), torch.from_numpy(x).float())


@pytest.mark.parametrize("dtype", [bool, np.uint8, *INTEGERS, *FLOATS])
def test_zeros_and_ones_are_binary_however_they_are_held(dtype):
    x = (PIXELS > 127).astype(dtype)
    for of in (BINARY, MASKS):
        assert torch.equal(seen(x, of, LIKE), torch.from_numpy(PIXELS > 127).float())
        assert seen(np.zeros((2, 1, 4, 6), dtype), of, LIKE).abs().max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, *FLOATS])
def test_masks_are_what_they_were_in_training(dtype):
    x = 255 * (PIXELS > 127).astype(dtype)
    assert torch.equal(seen(x, MASKS, LIKE), torch.from_numpy(PIXELS > 127).float())
    x[1, 0, 2, 3] = 127
    with pytest.raises(DataError, match=r"datum 1 holds 127 at \[0, 2, 3\], expected 0 or 255, or 0 or 1 \(the"):
        seen(x, MASKS, LIKE)


@pytest.mark.parametrize("dtype", [np.uint8, *INTEGERS[1:]])
def test_white_is_one_where_it_was_in_training(dtype):
    with pytest.raises(DataError, match=r"holds 255 at .*, expected 0 or 1 \(the model was trained on binary data"):
        seen(np.full((2, 1, 4, 6), 255, dtype), BINARY, LIKE)


def test_bools_are_black_and_white():
    assert torch.equal(seen(PIXELS > 127, GREY, LIKE), torch.from_numpy(PIXELS > 127).float())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("a word", "data as str of <U6, expected numbers"),
        ({"x": PIXELS}, "data as dict of object, expected numbers"),
        (None, "data as NoneType of object, expected numbers"),
        ([[[1.0, 2.0]], [[1.0]]], "data as list, of which NumPy makes no array"),
        (pd.DataFrame({"a": [1.0], "b": ["two"]}), "data as DataFrame of <U.*, expected numbers"),
        (np.array(["2026-11-29"], "datetime64[D]"), r"data as ndarray of datetime64\[D\], expected numbers"),
        (np.zeros((2, 1, 4, 6), complex), "data as complex128, expected real numbers"),
        (torch.zeros(2, 1, 4, 6, dtype=torch.complex64), "data as complex64, expected real numbers"),
        (np.zeros((2, 23)), r"data of shape \[2, 23\], expected \[B, 1, 4, 6\] or \[B, 4, 6\] or \[B, 24\]"),
        (np.zeros((4, 6)), r"data of shape \[4, 6\], expected"),
        (np.ma.masked_less(PIXELS, 9), r"a part is masked.*fill it, x\.filled"),
        (3.0, r"data of shape \[\], expected"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_data_is_named(x, message):
    with pytest.raises(DataError, match=message):
        seen(x, GREY, LIKE)


def test_no_number_stays_none():
    x: Tensor = seen([[math.nan] * 24], REAL, LIKE)
    assert x.isnan().all(), "whether it may be is asked by who knows the model"
