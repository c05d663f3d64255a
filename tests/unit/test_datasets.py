import socket

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from avb_service.data.datasets import DataConfig, load
from avb_service.data.mixtures import MIXTURES, POINTS
from avb_service.data.sources import SOURCES
from avb_service.data.splits import Mapped, binarise, thresholds
from avb_service.data.stream import fixed
from avb_service.errors import ConfigError, DataError
from avb_service.seeding import generator
from tests.mnist import write_mnist
from tests.pictures import write_images


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AVB_DATA_ROOT", raising=False)


@pytest.fixture
def unreachable(monkeypatch):
    """No host has an address, as without a network; the names asked for are recorded."""
    asked = []

    def refuse(host, *rest, **options):
        asked.append((host, socket.getdefaulttimeout()))
        raise socket.gaierror("no address")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def file(path, **options):
    return DataConfig(name="file", path=str(path), **options)


def rows(split):
    return {bytes(row.numpy()) for row in torch.cat(list(split.parts())).flatten(1)}


def test_synthetic_sets_are_whole_in_every_split():
    four, bits = load(DataConfig(name="onehot-4")), load(DataConfig(name="binary-8"))
    assert torch.equal(four.train.pixels.flatten(1), torch.eye(4, dtype=torch.uint8))
    assert four.spec.shape == (1, 1, 4) and four.spec.values == "binary" and four.spec.levels == 1
    assert torch.equal(four.spec.mean, torch.full((1, 1, 4), 0.25))
    assert len(rows(bits.test)) == 256
    assert torch.equal(bits.validation.labels, bits.validation.pixels.flatten(1).sum(1))


@pytest.mark.parametrize("name", MIXTURES)
def test_points_are_draws_from_their_mixture(name):
    data, mixture = load(DataConfig(name=name, validation=500, test=500)), MIXTURES[name]
    x, modes = data.train.pixels.double().flatten(1), data.train.labels
    dimension = len(mixture.means[0])
    assert data.spec.shape == (1, 1, dimension) and data.spec.values == "real" and len(x) == POINTS - 1000
    assert torch.equal(data.train.pixels, load(DataConfig(name=name, validation=500, test=500)).train.pixels)
    other = load(DataConfig(name=name, validation=500, test=500, seed=1))
    assert not torch.equal(data.train.pixels, other.train.pixels)
    weights = torch.tensor(mixture.weights or [1 / len(mixture.means)] * len(mixture.means))
    shares = modes.bincount(minlength=len(weights)) / len(x)
    assert ((shares - weights).abs() < 4 * (weights / len(x)).sqrt()).all()
    scaled = (x - torch.tensor(mixture.means, dtype=torch.float64)[modes]) / mixture.scale
    assert scaled.mean().abs() < 4 / scaled.numel() ** 0.5 and (scaled.var() - 1).abs() < 6 / scaled.numel() ** 0.5


def test_points_cannot_be_binarised():
    with pytest.raises(ConfigError, match="binarisation: dynamic needs pixels, and gaussians8 has real values"):
        DataConfig.parse({"name": "gaussians8", "binarisation": "dynamic"})


def test_densities_of_mixtures_integrate_to_one_and_have_their_mean():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = MIXTURES["mixture1d"].density(x[:, None])
    assert torch.trapezoid(p, x).item() == pytest.approx(1, abs=1e-9)
    assert torch.trapezoid(p * x, x).item() == pytest.approx(0.45, abs=1e-9)


def test_a_mode_is_found_by_a_tenth_of_its_fair_share_of_good_draws():
    """Of 1000 draws 350 and 650 are due to the two modes, so 35 and 65 good ones are asked for."""
    mixture = MIXTURES["mixture1d"]
    for near, far, found in ((35, 65, 2), (34, 66, 1), (36, 64, 1), (0, 1000, 1), (1, 1, 0)):
        draws = torch.full((1000, 1), 100.0)  # no good draws of either
        draws[:near], draws[near : near + far] = -1.5, 1.5
        assert mixture.coverage(draws).modes == found


def test_coverage_counts_modes_that_have_good_draws_and_the_good_among_all():
    mixture = MIXTURES["gaussians8"]
    x, modes = mixture.draw(4000, 0)
    found = mixture.coverage(x[:, None, None].float())
    assert (found.modes, found.of) == (8, 8)
    assert found.good == pytest.approx(1 - np.exp(-4.5), abs=0.008)  # 3 standard deviations on a plane; 4 s.e.
    two = x[modes < 2]
    far = torch.zeros(len(two), 2)
    assert mixture.coverage(torch.cat([two, far])).modes == 2
    assert mixture.coverage(torch.cat([two, far])).good == pytest.approx(mixture.coverage(two).good / 2)
    assert mixture.coverage(far) == (0, 8, 0.0)


def test_digits_are_split_without_overlap_and_keep_their_labels():
    from sklearn.datasets import load_digits

    data = load(DataConfig(name="digits", validation=200, test=0.1, seed=3))
    assert (len(data.train), len(data.validation), len(data.test)) == (1797 - 200 - 180, 200, 180)
    assert data.spec.shape == (1, 8, 8) and data.spec.levels == 16 and data.spec.values == "levels"
    x, y = load_digits(return_X_y=True)
    everything = sorted((tuple(map(int, image)), int(label)) for image, label in zip(x, y, strict=True))
    splits = (data.train, data.validation, data.test)
    ours = [pair for s in splits for pair in zip(s.pixels.flatten(1).tolist(), s.labels.tolist(), strict=True)]
    assert sorted((tuple(image), label) for image, label in ours) == everything
    assert torch.allclose(data.spec.mean, data.train.pixels.float().mean(0) / 16)


def test_splits_depend_on_the_seed_and_on_nothing_else():
    first, again, other = (load(DataConfig(name="digits", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.train.pixels, again.train.pixels) and first.sha256 == again.sha256
    assert not torch.equal(first.test.pixels, other.test.pixels) and first.sha256 != other.sha256


def test_hash_is_the_same_on_every_machine():
    assert load(DataConfig(name="onehot-4")).sha256.startswith("3f63b61399308aa4d2f2488e")
    assert load(DataConfig(name="digits", binarisation="static")).sha256.startswith("c1a382d71a2a3e8537647978")


def test_limit_takes_the_first_training_data_only():
    whole, few = load(DataConfig(name="digits")), load(DataConfig(name="digits", limit=10))
    assert torch.equal(few.train.pixels, whole.train.pixels[:10])
    assert torch.equal(few.train.labels, whole.train.labels[:10])
    assert torch.equal(few.test.pixels, whole.test.pixels)


def test_static_binarisation_follows_the_pixels_and_the_seed():
    grey = load(DataConfig(name="digits"))
    data, again = (load(DataConfig(name="digits", binarisation="static")) for _ in range(2))
    assert data.spec.values == "binary" and data.spec.levels == 1
    assert torch.equal(data.train.pixels, again.train.pixels)
    assert set(data.train.pixels.unique().tolist()) == {0, 1}
    assert not data.train.pixels[grey.train.pixels == 0].any() and data.train.pixels[grey.train.pixels == 16].all()
    half = data.train.pixels[grey.train.pixels == 8].double()
    assert abs(half.mean() - 0.5) < 5 * 0.5 / len(half) ** 0.5


def test_dynamic_binarisation_leaves_the_grid_to_the_stream():
    data = load(DataConfig(name="digits", binarisation="dynamic"))
    assert data.spec.values == "binary" and data.spec.levels == 16 and data.train.pixels.max() == 16


@pytest.mark.parametrize("levels", [255, 16, 0])
def test_binarised_pixels_have_the_right_mean(levels):
    grid = torch.arange(levels + 1, dtype=torch.uint8) if levels else torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0])
    p = grid.double() / max(levels, 1)
    draws = 20_000
    below = thresholds(grid, levels).expand(draws, -1)
    mean = binarise(below, generator("cpu", 0)).double().mean(0)
    error = (p * (1 - p) / draws).sqrt()
    assert mean[0] == 0 and mean[-1] == 1
    assert (abs(mean - p)[1:-1] < 5 * error[1:-1] + 1e-4).all()


def test_binarised_pixels_are_independent():
    draws = binarise(thresholds(torch.full((50_000, 8), 127, dtype=torch.uint8), 255), generator("cpu", 1)).double()
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 50_000**0.5


def test_streamed_pixels_equal_resident_ones():
    resident, mapped = (load(DataConfig(name="digits", resident_gib=gib)) for gib in (2.0, 0.0))
    assert isinstance(mapped.train.pixels, Mapped) and mapped.train.pixels.shape == resident.train.pixels.shape
    assert torch.equal(torch.cat(list(mapped.train.parts())), resident.train.pixels)
    assert mapped.sha256 == resident.sha256 and torch.equal(mapped.spec.mean, resident.spec.mean)


def test_static_binarisation_of_data_beyond_memory_is_refused():
    with pytest.raises(DataError, match="resident_gib.*dynamic"):
        load(DataConfig(name="digits", resident_gib=0.0, binarisation="static"))


# The configuration


def test_config_reports_every_problem_at_once():
    tree = {"name": "mnits", "validation": 0, "binarisation": "maybe", "limit": 0}
    with pytest.raises(ConfigError) as caught:
        DataConfig.parse(tree)
    text = str(caught.value)
    assert "one of onehot-4" in text and "a count such as 5000, or a fraction such as 0.1" in text
    assert {line.split(":")[0] for line in caught.value.problems} == {"name", "validation", "binarisation", "limit"}


@pytest.mark.parametrize("size", [True, 1.0, 1.5, -3, "5"])
def test_sizes_are_counts_or_fractions(size):
    with pytest.raises(ConfigError, match=r"test: given .*, expected a count"):
        DataConfig.parse({"name": "digits", "test": size})


def test_path_belongs_to_the_source_that_reads_it():
    with pytest.raises(ConfigError, match="path: required by name file"):
        DataConfig.parse({"name": "file"})
    with pytest.raises(ConfigError, match="mnist does not read it"):
        DataConfig.parse({"name": "mnist", "path": "x.npy"})


def test_config_round_trips_and_takes_overrides():
    assignments = ["path=a.npz", "validation=20", "root=/data", "binarisation=dynamic"]
    tree, _ = DataConfig.assigned({"name": "file"}, assignments)
    config = DataConfig.parse(tree)
    assert config.validation == 20 and DataConfig.parse(config.tree()) == config


def test_values_are_known_before_loading_where_they_can_be(tmp_path):
    assert DataConfig(name="onehot-8").values == "binary" and DataConfig(name="cifar10").values == "levels"
    assert DataConfig(name="mnist", binarisation="dynamic").values == "binary"
    assert file(tmp_path).values is None and file(tmp_path / "x.npy").values is None, "they may be masks"
    assert file(tmp_path, levels=255).values == "levels"


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith(("onehot", "binary", "digits"))])
@pytest.mark.parametrize("binarisation", ["none", "static", "dynamic"])
def test_declared_values_are_the_loaded_ones(name, binarisation):
    config = DataConfig(name=name, binarisation=binarisation)
    assert load(config).spec.values == config.values


# Named sources on disk


def test_official_test_split_is_kept_and_read_from_the_environment(tmp_path, monkeypatch, unreachable):
    folder = write_mnist(tmp_path)
    monkeypatch.setenv("AVB_DATA_ROOT", str(tmp_path))
    data = load(DataConfig(name="mnist", validation=5, test=3))
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 7)
    assert data.spec.shape == (1, 28, 28) and data.spec.levels == 255 and not unreachable
    official = (folder / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert data.test.pixels.numpy().tobytes() == official


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "celeba"])
def test_missing_files_are_named_with_their_folder(name, tmp_path, unreachable):
    with pytest.raises(DataError) as caught:
        load(DataConfig(name=name, root=str(tmp_path)))
    text = str(caught.value)
    assert f"{tmp_path}/" in text and "--set data.root=" in text and "AVB_DATA_ROOT" in text
    assert {"cifar10": "test_batch", "celeba": "img_align_celeba"}.get(name, "t10k-labels-idx1-ubyte") in text
    assert bool(unreachable) == (name != "celeba")
    assert not list(tmp_path.iterdir()), "neither a lock nor folders for what did not come"
    assert all(timeout is not None for _, timeout in unreachable) and socket.getdefaulttimeout() is None


def test_files_of_the_table_are_those_that_torchvision_reads():
    def names(source):
        return set(SOURCES[source].load.args[2])

    for source in ("mnist", "fashion_mnist", "kmnist"):
        declared = getattr(torchvision_datasets, SOURCES[source].load.args[0])
        assert names(source) == {resource[0].split("/")[-1].removesuffix(".gz") for resource in declared.resources}
    cifar = torchvision_datasets.CIFAR10
    needed = {name for name, _ in cifar.train_list + cifar.test_list} | {cifar.meta["filename"]}
    assert names("cifar10") == needed and SOURCES["cifar10"].load.args[1] == cifar.base_folder


def test_only_absent_files_are_named_and_nothing_is_fetched_unasked(tmp_path, unreachable):
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"^mnist: t10k-labels-idx1-ubyte not found.*download is false"):
        load(DataConfig(name="mnist", root=str(tmp_path), download=False))
    assert not unreachable


def test_damaged_named_files_are_an_error_of_the_data(tmp_path):
    folder = write_mnist(tmp_path)
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError, match="mnist: cannot read the files in .*MNIST/raw"):
        load(DataConfig(name="mnist", root=str(tmp_path)))


def test_celeba_is_read_by_its_official_partition(tmp_path):
    names = [f"{i:06d}.jpg" for i in range(1, 13)]
    write_images(tmp_path / "celeba" / "img_align_celeba", names, size=(178, 218), mode="RGB")
    partition = "".join(f"{name} {min(i // 4, 2)}\n" for i, name in enumerate(names))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(partition)
    data = load(DataConfig(name="celeba", root=str(tmp_path), validation=2))
    assert data.spec.shape == (3, 64, 64) and (len(data.train), len(data.validation), len(data.test)) == (6, 2, 4)
    mapped = load(DataConfig(name="celeba", root=str(tmp_path), validation=2, resident_gib=0.0))
    assert mapped.sha256 == data.sha256


# The user's own arrays


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((12, 6), (1, 1, 6)),
        ((12, 28, 20), (1, 28, 20)),
        ((12, 28, 20, 1), (1, 28, 20)),
        ((12, 7, 6, 3), (3, 7, 6)),
        ((12, 3, 7, 6), (3, 7, 6)),
        ((12, 8, 8, 5), (5, 8, 8)), ((12, 5, 8, 8), (5, 8, 8)), ((12, 16, 4, 4), (16, 4, 4)),
        ((12, 5, 5, 5), (5, 5, 5)), ((12, 7, 6, 2), (2, 7, 6)), ((12, 2, 7, 6), (2, 7, 6)), ((12, 4, 7, 4), (4, 7, 4)),
    ],
)  # fmt: skip
def test_arrays_become_channels_first(tmp_path, given, shape):
    x = np.random.default_rng(0).integers(0, 256, given, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(12))
    data = load(file(tmp_path / "x.npz", validation=2, test=2))
    assert data.spec.shape == shape and data.spec.levels == 255 and data.spec.values == "levels"
    original = torch.from_numpy(x)[data.train.labels]
    expected = original.movedim(3, 1) if len(given) == 4 and given[1:] != shape else original
    assert torch.equal(data.train.pixels, expected.reshape(8, *shape))


@pytest.mark.parametrize(
    ("x", "values", "levels", "dtype"),
    [
        (np.array([[0.0, 1.0]] * 9), "binary", 1, torch.uint8),
        (np.array([[False, True]] * 9), "binary", 1, torch.uint8),
        (np.array([[0, 1]] * 9, dtype=np.uint8), "binary", 1, torch.uint8),
        (np.array([[0, 1]] * 9, dtype=np.int64), "binary", 1, torch.uint8),
        (np.array([[0, 200]] * 9, dtype=np.uint8), "levels", 255, torch.uint8),
        (np.array([[0.5, 3.0]] * 9, dtype=np.float16), "real", 0, torch.float32),
        (np.array([[0.5, -3.0]] * 9, dtype=">f8"), "real", 0, torch.float32),
    ],
)
@pytest.mark.parametrize("gib", [2.0, 0.0])
def test_numbers_decide_what_the_values_are(tmp_path, x, values, levels, dtype, gib):
    np.save(tmp_path / "x.npy", x)
    data = load(file(tmp_path / "x.npy", resident_gib=gib))
    assert (data.spec.values, data.spec.levels) == (values, levels)
    part = next(data.train.parts())
    assert part.dtype == dtype and torch.equal(part[0].flatten().double(), torch.from_numpy(x[0].astype(float)))
    assert torch.allclose(data.spec.mean.flatten(), part[0].flatten().float() / max(levels, 1))


WHOLE = [np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64, ">i4", "<f8"]


def whole(dtype, highest):
    return np.array([[0, 1, highest]] * 9).astype(dtype)


@pytest.mark.parametrize("highest", [2, 100, 255, 256, 2000])
@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_that_are_not_bytes_are_asked_about_however_large(tmp_path, dtype, highest):
    x = whole(dtype, highest if dtype != np.int8 else min(highest, 127))
    np.save(tmp_path / "x.npy", x)
    choices = r"whole numbers of dtype .* --set data.levels=255 for .* --set data.levels=real for"
    with pytest.raises(DataError, match=choices) as caught:
        load(file(tmp_path / "x.npy"))
    assert f"{tmp_path / 'x.npy'}" in str(caught.value) and f"from 0 to {x.max():.0f}," in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_too_large_for_fractions_are_measurements(tmp_path, dtype):
    least = 1 / np.finfo(dtype).eps
    np.save(tmp_path / "x.npy", (least * np.random.default_rng(0).uniform(1, 9, (9, 3))).astype(dtype))
    assert load(file(tmp_path / "x.npy")).spec.values == "real"


@pytest.mark.parametrize("gib", [2.0, 0.0])
@pytest.mark.parametrize("dtype", [np.uint8, *WHOLE[1:]])
def test_what_whole_numbers_are_is_what_the_user_says(tmp_path, dtype, gib):
    x = whole(dtype, 200)
    np.save(tmp_path / "x.npy", x)
    for levels, values in ((255, "levels"), (200, "levels"), ("real", "real")):
        config = file(tmp_path / "x.npy", levels=levels, resident_gib=gib)
        data = load(config)
        assert data.spec.values == values == config.values and data.spec.levels == (0 if levels == "real" else levels)
        part = next(data.train.parts())
        assert part.dtype == (torch.float32 if levels == "real" else torch.uint8)
        assert part[0].flatten().tolist() == [0, 1, 200]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_zeros_and_ones_are_binary_however_they_are_stored(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.array([[0, 1, 1]] * 9, dtype=dtype))
    assert load(file(tmp_path / "x.npy")).spec.values == "binary"
    assert load(file(tmp_path / "x.npy", levels="real")).spec.values == "real"


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        (np.array([[0, 3], [0, 16]], dtype=np.uint8), 15, r"x\[1, 1\] = 16; expected whole numbers from 0 to 15, as"),
        (np.array([[0, -3]]), 255, r"x\[0, 1\] = -3; expected whole numbers from 0 to 255"),
        (np.array([[0, 0.5]]), 255, r"x\[0, 1\] = 0.5; expected whole numbers from 0 to 255"),
    ],
)
def test_numbers_that_are_not_as_declared_are_refused(tmp_path, x, levels, message):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=message):
        load(file(tmp_path / "x.npy", levels=levels))


@pytest.mark.parametrize("levels", [0, 256, -1, 2.5, True, "reel", [255]])
def test_levels_that_cannot_be_are_refused_with_what_can(tmp_path, levels):
    with pytest.raises(ConfigError, match=r"levels: given .*, expected what white is, such as 255.* or real"):
        DataConfig.parse({"name": "file", "path": str(tmp_path / "x.npy"), "levels": levels})


MASKS = (np.random.default_rng(0).random((20, 1, 4, 5)) < 0.5).astype(np.uint8)


@pytest.mark.parametrize("gib", [2.0, 0.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32])
def test_black_and_white_are_binary_however_they_are_stored(tmp_path, dtype, gib):
    np.save(tmp_path / "x.npy", 255 * MASKS.astype(dtype))
    data = load(file(tmp_path / "x.npy", resident_gib=gib))
    assert (data.spec.values, data.spec.levels) == ("binary", 255)
    x, _ = fixed(data.train, data.spec, "none", 0)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert load(file(tmp_path / "x.npy", levels=255, resident_gib=gib)).spec.values == "levels", "as somebody says"


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_one_grey_pixel_anywhere_is_enough_for_levels(tmp_path, part):
    x, y = 255 * MASKS, np.arange(20)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    x[getattr(load(file(tmp_path / "x.npz")), part).labels[-1], 0, 2, 3] = 128
    np.savez(tmp_path / "x.npz", x=x, y=y)
    assert load(file(tmp_path / "x.npz", limit=3)).spec.values == "levels"


def test_a_folder_of_masks_is_binary_until_they_are_resized(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "masks").mkdir()
    for i, mask in enumerate(np.kron(MASKS[:, 0, :, :4], np.ones((3, 3), np.uint8))):
        Image.fromarray(255 * mask).save(tmp_path / "masks" / f"{i}.png")
    assert load(file(tmp_path / "masks")).spec[1:3] == ("binary", 255)
    assert load(file(tmp_path / "masks", image_size=5)).spec[1:3] == ("levels", 255)
    assert load(file(tmp_path / "masks", levels=255)).spec[1:3] == ("levels", 255)


def test_masks_and_photographs_go_together_as_two_sources(tmp_path):
    np.save(tmp_path / "masks.npy", 255 * MASKS)
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (20, 1, 4, 5), dtype=np.uint8))
    np.save(tmp_path / "real.npy", np.random.default_rng(0).normal(size=(20, 1, 4, 5)))
    both = load(file(tmp_path / "masks.npy", other=file(tmp_path / "grey.npy")))
    assert both.other is not None and (both.spec.values, both.other.spec.values) == ("binary", "levels")
    with pytest.raises(DataError, match="both pixels or both real: data is file .* binary, data.other file .* real"):
        load(file(tmp_path / "masks.npy", other=file(tmp_path / "real.npy")))


def test_levels_of_what_is_known_to_be_pixels_are_refused(tmp_path):
    for tree in ({"name": "digits"}, {"name": "file", "path": str(tmp_path)}):
        with pytest.raises(ConfigError, match="levels: given 16, but it is known what .* holds"):
            DataConfig.parse({**tree, "levels": 16})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((9, 2))}, "holds images; expected an array 'x'"),
        ({f"x{i}": np.zeros((9, 2)) for i in range(9)}, "holds x0, x1, x2 and 6 more; expected an array 'x'"),
        ({"x": np.array(3.0)}, r"shape \[\] and dtype float64; expected \[N, D\]"),
        ({"x": np.zeros(9)}, r"shape \[9\] and dtype float64; expected \[N, D\]"),
        ({"x": np.zeros(9, dtype=[("a", "f4"), ("b", "i4")])}, r"shape \[9\] and dtype \[\('a', '<f4'\)"),
        ({"x": np.zeros((9, 2), dtype=[("a", "f4"), ("b", "i4")])}, r"x has dtype \[\('a', '<f4'\)"),
        ({"x": np.zeros((9, 2), dtype=np.complex64)}, "x has dtype complex64; expected bool, integers or floats"),
        ({"x": np.zeros((9, 2), dtype="M8[s]")}, r"x has dtype datetime64\[s\]"),
        ({"x": np.zeros((9, 8, 8, 5, 2))}, r"shape \[9, 8, 8, 5, 2\] and dtype float64; expected"),
        ({"x": np.zeros((0, 28, 28))}, "holds no data"),
        ({"x": np.array([[0, 1], [2, np.nan]])}, r"x\[1, 1\] = nan; expected finite"),
        ({"x": np.array([[0, 1], [-np.inf, 3]])}, r"x\[1, 0\] = -inf; expected finite"),
        ({"x": np.array([[0, 1e300]])}, r"x\[0, 1\] = 1e\+300; expected finite"),
        ({"x": np.array([["a", "b"]])}, "dtype <U1"),
        ({"x": np.array([[{}, 1]], dtype=object)}, "cannot read .*allow_pickle"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(8, dtype=int)}, r"shape \[8\].*expected 9 integers"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(9)}, "dtype float64; expected 9 integers"),
    ],
)
def test_unusable_arrays_are_refused_with_the_reason(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(file(tmp_path / "x.npz"))
    assert str(tmp_path / "x.npz") in str(caught.value)


def test_an_archive_that_is_not_to_be_kept_in_memory_is_refused(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 64, 64), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"x\.npz holds .* GiB in x, more than data.resident_gib 0.0001.*numpy\.save"):
        load(file(tmp_path / "x.npz", resident_gib=1e-4))
    assert isinstance(load(file(tmp_path / "x.npy", resident_gib=1e-4)).train.pixels, Mapped)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"hello" * 99])
def test_damaged_arrays_are_refused(tmp_path, name, damage):
    path = tmp_path / name
    (np.save if name.endswith("npy") else np.savez_compressed)(path, np.arange(999.0).reshape(9, 111))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cannot read"):
        load(file(path))


def test_flipped_bytes_in_an_archive_are_noticed(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((50, 50)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot read"):
        load(file(path))


def test_absent_path_is_an_error_of_the_data(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz does not exist; expected"):
        load(file(tmp_path / "nowhere.npz"))


@pytest.mark.parametrize("binarisation", ["static", "dynamic"])
def test_only_probabilities_can_be_binarised(tmp_path, binarisation):
    np.save(tmp_path / "x.npy", np.array([[0.2, 0.4], [0.1, 1.5]]))
    with pytest.raises(DataError, match=r"x\[1, 1\] = 1.5; expected probabilities"):
        load(file(tmp_path / "x.npy", binarisation=binarisation))


@pytest.mark.parametrize(("count", "given"), [(1, "1 datum"), (2, "2 data")])
def test_so_few_data_that_no_setting_can_split_them_are_said_to_be_too_few(tmp_path, count, given):
    np.save(tmp_path / "x.npy", np.full((count, 3), 0.5))
    write_images(tmp_path / "images", [f"{i}.png" for i in range(count)])
    message = f"holds {given} to split, too few to train on: training, validation, testing need .*; add data"
    for path in (tmp_path / "x.npy", tmp_path / "images"):
        with pytest.raises(DataError, match=message) as caught:
            load(file(path))
        assert "lower" not in str(caught.value)
    np.save(tmp_path / "x.npy", np.full((3, 3), 0.5))
    data = load(file(tmp_path / "x.npy"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1, 1, 1]


def test_too_few_data_to_split_is_an_error(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 2)))
    with pytest.raises(DataError, match=r"10 data to split: data.validation 9 and data.test 0.1 leave none"):
        load(file(tmp_path / "x.npy", validation=9))


# Sizes, and two sources.


def test_images_of_any_source_are_resized_to_bytes(tmp_path):
    small, given = load(DataConfig(name="digits", image_size=16)), load(DataConfig(name="digits"))
    assert small.spec[:3] == ((1, 16, 16), "levels", 255)
    assert small.train.pixels.dtype == torch.uint8
    assert torch.equal(small.train.labels, given.train.labels)
    means = small.train.pixels.double().mean((1, 2, 3)) / 255, given.train.pixels.double().mean((1, 2, 3)) / 16
    assert (means[0] - means[1]).abs().max() < 0.02  # bilinear weights add up to one but for the edges
    assert load(DataConfig(name="digits", image_size=8)).spec.levels == 16, "what has the size is left as it is"


def test_resizing_takes_the_centred_square_without_aliases(tmp_path):
    """Stripes finer than the new pixels become their mean, and what is beside the square is cut away."""
    x = np.zeros((20, 8, 12), np.float32)
    x[:, :, 2:10:2] = 1.0
    x[:, :, :2] = x[:, :, 10:] = 100.0
    np.save(tmp_path / "x.npy", x)
    data = load(DataConfig(name="file", path=str(tmp_path / "x.npy"), levels="real", image_size=2))
    assert data.spec[:3] == ((1, 2, 2), "real", 0)
    assert (data.train.pixels - 0.5).abs().max() < 0.1


def test_vectors_and_what_is_not_in_memory_are_not_resized():
    with pytest.raises(DataError, match=r"image_size 8 resizes images, and onehot-4 holds vectors of 4"):
        load(DataConfig(name="onehot-4", image_size=8))
    with pytest.raises(DataError, match="larger than data.resident_gib"):
        load(DataConfig(name="digits", image_size=16, resident_gib=0.0))


def test_two_sources_of_one_shape_go_together_and_others_are_refused():
    both = load(DataConfig(name="digits", image_size=16, other=DataConfig(name="digits", image_size=16, seed=1)))
    assert both.other is not None and both.other.spec.shape == both.spec.shape
    with pytest.raises(DataError, match=r"digits \[1, 8, 8\] levels, data.other digits \[1, 16, 16\] levels; set"):
        load(DataConfig(name="digits", other=DataConfig(name="digits", image_size=16)))
