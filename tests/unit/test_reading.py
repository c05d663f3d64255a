"""What is said of the data before anything is trained on them."""

import numpy as np
import pytest

from avb_service.data.datasets import DataConfig, load
from tests.pictures import write_images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(path, **options):
    return load(DataConfig(name="file", path=str(path), **options))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((20, 6), "20 vectors of 6 numbers, 256 levels"), ((20, 1), "20 vectors of 1 number, 256 levels"),
        ((20, 3, 5), "20 grey images of 5x3 (width x height), 256 levels"),
        ((20, 7, 5, 3), "20 colour images of 5x7 (width x height), 256 levels"),
        ((20, 7, 5, 2), "20 2-channel images of 5x7 (width x height), 256 levels"),
    ],
)  # fmt: skip
def test_size_and_kind_are_said(tmp_path, shape, said):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    first, counts, *more = read(tmp_path / "x.npz").description.splitlines()
    assert first == f"{tmp_path / 'x.npz'}: {said}" and counts == "  16 for training, 2 for validation, 2 for testing"


@pytest.mark.parametrize("gib", [2.0, 0.0])
@pytest.mark.parametrize(
    ("x", "options", "said"),
    [
        (np.linspace(-1.5, 2000, 60).reshape(20, 3), {}, "real numbers from -1.5 to 2000"),
        (np.arange(60).reshape(20, 3), {"levels": "real"}, "real numbers from 0 to 59"),
        (np.arange(60).reshape(20, 3), {"levels": 63}, "64 levels"),
        (np.eye(20), {}, "binary"),
        ((255 * np.eye(20)).astype(np.uint8), {}, "binary (black and white)"),
        (np.linspace(0, 1, 60).reshape(20, 3), {"binarisation": "dynamic"}, "binary (dynamic binarisation)"),
    ],
)
def test_the_values_are_said(tmp_path, x, options, said, gib):
    np.save(tmp_path / "x.npy", x)
    first = read(tmp_path / "x.npy", resident_gib=gib, **options).description.splitlines()[0]
    assert first.endswith(f"numbers, {said}")


@pytest.mark.parametrize(
    ("start", "step", "dtype", "lost"),
    [(1.7e9, 0.5, float, 1), (2_459_000, 0.25, float, 1), (10**12, 1, np.int64, 1), (1.7e9, 0.5, np.float32, 0),
     (100, 0.5, float, 0), (0.1, 1e-17, float, 0), (1e-30, 1e-31, float, 0)],
)  # fmt: skip
def test_differences_that_32_bits_would_lose_are_said(tmp_path, start, step, dtype, lost):
    x = np.stack([start + step * np.arange(20), np.arange(20)], 1).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    said = (
        f"{lost} of the 2 numbers of a datum vary so little, so far from 0, that 32-bit floats hardly tell them apart"
    )
    assert (said in read(tmp_path / "x.npy", levels="real").description) == bool(lost)


def test_classes_are_counted_and_named_where_they_have_names(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((20, 3)), y=np.arange(20) // 5 - 2)
    assert "4 classes" in read(tmp_path / "x.npz").description
    write_images(tmp_path / "many", [f"{kind:02}/{i}.png" for kind in range(30) for i in range(2)])
    assert "30 classes (00 2, 01 2, " in read(tmp_path / "many").description
    assert "09 2 and 20 more)" in read(tmp_path / "many").description


def test_arrays_that_are_left_out_are_named(tmp_path):
    x = np.random.default_rng(0).random((20, 3))
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(20), x_test=x, note="of last year")
    assert "left out: other arrays in the file (x_test, note)" in read(tmp_path / "x.npz").description


def test_a_population_is_not_said_to_be_shared(tmp_path):
    description = load(DataConfig(name="onehot-4")).description
    assert description.splitlines() == [
        "onehot-4: 4 vectors of 4 numbers, binary, 4 classes",
        "  training, validation and testing have all of them",
    ]


def shared(data):
    """By another way: how many data of the second of two splits are in the first, too."""

    def rows(split):
        return [bytes(row.numpy()) for part in split.parts() for row in part]

    names = {"training": data.train, "validation": data.validation, "testing": data.test}
    for first, second in (("training", "validation"), ("training", "testing"), ("validation", "testing")):
        known = set(rows(names[first]))
        if count := sum(row in known for row in rows(names[second])):
            yield f"  identical to data for {first}: {count} of the {len(names[second])} for {second}"


@pytest.mark.parametrize("kind", ["real.npy", "levels.npy", "binary.npz", "images", "mapped.npy"])
def test_identical_data_in_two_splits_are_counted(tmp_path, kind):
    """Twelve data, each of them there three times."""
    x = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8).repeat(3, 0)
    path = tmp_path / kind
    if kind == "images":
        write_images(path, [f"{i}.png" for i in range(12)])
        for i in range(12):
            for copy in "ab":
                (path / f"{i}{copy}.png").write_bytes((path / f"{i}.png").read_bytes())
    elif kind == "binary.npz":
        np.savez(path, x=x > 127)
    else:
        np.save(path, x / 256 + 0.001 if kind == "real.npy" else x)
    data = read(path, validation=6, test=6, resident_gib=0.0 if kind == "mapped.npy" else 2.0)
    expected = list(shared(data))
    assert expected and data.description.splitlines()[2:] == expected


def test_images_that_are_all_different_are_not_said_to_be_shared(tmp_path):
    write_images(tmp_path / "images", [f"{i}.png" for i in range(20)])
    assert "identical" not in read(tmp_path / "images").description


def test_identical_images_are_found_however_they_are_binarised(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (1, 64), dtype=np.uint8).repeat(30, 0)
    np.save(tmp_path / "x.npy", x)
    for binarisation in ("none", "static", "dynamic"):
        description = read(tmp_path / "x.npy", binarisation=binarisation).description
        assert "identical to data for training: 3 of the 3 for testing" in description


def test_the_second_source_is_described_too(tmp_path):
    data = load(DataConfig(name="digits", other=DataConfig(name="digits", seed=1)))
    assert [line for line in data.description.splitlines() if line.startswith("digits: 1797 grey images of 8x8")] * 2
    assert data.description.count("1797 grey images") == 2
