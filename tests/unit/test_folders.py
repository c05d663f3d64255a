"""Which files of a folder are data, of which class and split; and that nothing is left out in silence."""

import os
import shutil
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.errors import DataError
from tests.pictures import write_images

CLASSES = [f"{kind}/{i}.png" for kind in ("cat", "ant") for i in range(6)]
FLAT = [f"{i}.png" for i in range(8)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "images"


def read(path, **options) -> Dataset:
    return load(DataConfig(name="file", path=str(path), **options))


def splits(data):
    return data.train, data.validation, data.test


def count(data):
    return sum(map(len, splits(data)))


def of_class(data):
    """The label of each image, by its pixels."""
    return {
        image.numpy().tobytes(): label
        for split in splits(data)
        for image, label in zip(split.pixels, split.labels.tolist(), strict=True)
    }


def pixels(path):
    return np.asarray(Image.open(path)).tobytes()


# What is hidden


def test_folder_of_images_with_classes(folder):
    write_images(folder, CLASSES)
    data = read(folder, validation=2, test=2)
    assert data.spec.shape == (1, 4, 5) and data.spec.values == "levels"
    assert of_class(data) == {pixels(folder / name): int(name.startswith("cat")) for name in CLASSES}
    assert "12 grey images of 5x4 (width x height), 256 levels, 2 classes (ant 6, cat 6)" in data.description
    assert "left out" not in data.description


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/.0.png", ".git/a/b.png",
        "cat/._0.png", "__MACOSX/cat/0.png", "__MACOSX/0.png", "@eaDir/0.png/SYNOPHOTO_THUMB_S.jpg", "#recycle/0.png",
        "$RECYCLE.BIN/0.png", "lost+found/0.png", "System Volume Information/0.png", "cat/__pycache__/0.png",
        ".Trash-1000/files/0.png", "cat/.thumbnails/deep/0.png", "cat/~$0.png",
    ],
)  # fmt: skip
def test_what_is_hidden_is_no_data_wherever_it_lies(folder, hidden):
    write_images(folder, CLASSES)
    clean = read(folder)
    write_images(folder, [hidden], seed=1)
    data = read(folder)
    assert data.sha256 == clean.sha256 and of_class(data) == of_class(clean)
    first = next(part for part in hidden.split("/") if part not in ("cat",))
    shown = hidden[: hidden.index(first) + len(first)]
    assert f"left out: 1 hidden or left by a system ({shown})" in data.description


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "cat/Thumbs.db", "cat/.DS_Store", ".directory", "Icon\r"])
def test_files_of_the_system_are_called_so(folder, name):
    write_images(folder, CLASSES)
    (folder / name).write_bytes(b"system")
    assert "left out: 1 hidden or left by a system (" in read(folder).description
    assert "\r" not in read(folder).description


@pytest.mark.parametrize("name", [".hidden/__MACOSX/mine", "link"])
def test_the_root_may_be_hidden_or_a_link(folder, tmp_path, name):
    write_images(folder, CLASSES)
    root = tmp_path / name
    if name == "link":
        root.symlink_to(folder)
    else:
        shutil.copytree(folder, root)
    assert read(root).sha256 == read(folder).sha256
    assert "left out" not in read(root).description


# Other files


def test_what_is_not_read_is_named_by_kind(folder):
    write_images(folder, CLASSES)
    for name in ("README", "cat/labels.csv", "a.zip", *(f"ant/{i}.heic" for i in range(4)), "cat/drawing.SVG", "x.pdf"):
        (folder / name).write_bytes(b"of another kind")
    description = read(folder).description
    assert "left out: 9 of other kinds (ant/0.heic and 3 more; " in description
    for name in ("README", "cat/labels.csv", "a.zip", "cat/drawing.SVG", "x.pdf"):
        assert name in description


def test_a_folder_without_images_says_what_it_holds(folder):
    folder.mkdir()
    with pytest.raises(DataError, match=r"images holds no images; expected files ending in .*\.webp$"):
        read(folder)
    for i in range(3):
        (folder / f"{i}.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no images; .*; left out: 3 of other kinds \(0.heic and 2 more\)"):
        read(folder)


@pytest.mark.parametrize("name", ["a.PNG", "b.Jpg", "c.JPEG", "d.TIF", "e.jfif", "f.WebP", "g.BMP", "h.pgm"])
def test_endings_are_read_in_any_case(folder, name):
    write_images(folder, FLAT)
    write_images(folder, [name.lower()], seed=1)
    (folder / name.lower()).rename(folder / name)
    assert count(read(folder)) == 9


def test_the_ending_is_not_believed(folder):
    """Viewers go by what a file holds."""
    write_images(folder, FLAT)
    (folder / "0.png").rename(folder / "0.jpg")
    assert count(read(folder)) == 8


def test_folders_and_pipes_that_are_called_like_images_are_none(folder):
    write_images(folder, [f"{name}/{i}.jpg" for name in ("cat.png", "ant.png") for i in range(4)])
    os.mkfifo(folder / "cat.png" / "pipe.png")
    description = read(folder).description
    assert "2 classes (ant.png 4, cat.png 4)" in description and "1 of other kinds (cat.png/pipe.png)" in description


def test_folders_without_images_are_named(folder):
    write_images(folder, CLASSES)
    (folder / "bird" / "deep").mkdir(parents=True)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "all.json").write_text("{}")
    description = read(folder).description
    assert "2 without images (annotations, bird); 1 of other kinds (annotations/all.json)" in description


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"new\nline.png", "\N{HIRAGANA LETTER A} \N{SNOWMAN}.png".encode()])
def test_any_name_can_be_read_and_told(folder, name):
    write_images(folder, FLAT)
    os.rename(folder / "0.png", os.path.join(os.fsencode(folder), name))
    (folder / "left.txt").write_text("")
    os.rename(folder / "left.txt", os.path.join(os.fsencode(folder), name.replace(b"png", b"txt")))
    data = read(folder)
    assert count(data) == 8
    data.description.encode()  # in UTF-8, which has no place for broken names
    assert len(data.description.splitlines()) == 3


# Order


class Backwards:
    """A directory that is listed from the end."""

    def __init__(self, path):
        with SCANDIR(path) as entries:
            self.entries = sorted(entries, key=lambda entry: entry.name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def __iter__(self):
        return self

    def __next__(self):
        if not self.entries:
            raise StopIteration
        return self.entries.pop()


SCANDIR = os.scandir


def test_the_order_is_that_of_names_on_any_file_system(folder, tmp_path, monkeypatch):
    names = [*CLASSES, "\N{LATIN SMALL LETTER E WITH ACUTE}/1.png", "ez/1.png", "f/1.png"]
    write_images(folder, names)
    composed = read(folder)
    apart = tmp_path / "apart"
    for name in names:
        decomposed = apart / unicodedata.normalize("NFD", name)
        decomposed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, decomposed)
    assert read(apart).sha256 == composed.sha256 and of_class(read(apart)) == of_class(composed)
    assert read(apart).reading.classes == composed.reading.classes
    monkeypatch.setattr(os, "scandir", Backwards)
    assert read(folder).sha256 == composed.sha256


# Links


def test_links_lead_to_files_and_folders_elsewhere(folder, tmp_path):
    write_images(tmp_path / "store", CLASSES)
    (folder / "cat").mkdir(parents=True)
    for i in range(6):
        (folder / "cat" / f"{i}.png").symlink_to(tmp_path / "store" / "cat" / f"{i}.png")
    (folder / "ant").symlink_to(tmp_path / "store" / "ant")
    assert of_class(read(folder)) == of_class(read(tmp_path / "store"))
    assert "left out" not in read(folder).description


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/loop", "."), ("loop", "."), ("cat/up", ".."), ("cat/up", "../.."), ("cat/self", "../cat"),
        ("acat", "cat"), ("zcat", "cat"), ("cat/ants", "../ant"), ("a.png", "cat/0.png"), ("z.png", "cat/0.png"),
        ("cat/zero.png", "0.png"),
    ],
)  # fmt: skip
def test_what_is_reached_twice_is_data_once_by_its_plain_path(folder, link, target):
    write_images(folder, CLASSES)
    plain = read(folder)
    (folder / link).symlink_to(target)
    data = read(folder)
    assert data.sha256 == plain.sha256 and of_class(data) == of_class(plain)
    assert f"left out: 1 there already by another path ({link})" in data.description


def test_two_links_to_one_file_are_one_datum(folder, tmp_path):
    write_images(tmp_path, ["one.png"], seed=1)
    write_images(folder, FLAT)
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to(tmp_path / "one.png")
    assert count(read(folder)) == 9 and "1 there already by another path (b.png)" in read(folder).description


def test_links_to_nothing_are_refused_by_name(folder):
    write_images(folder, FLAT)
    (folder / "notes").symlink_to("nowhere.txt")
    assert "1 of other kinds (notes)" in read(folder).description
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "round.png").symlink_to("round.png")
    with pytest.raises(DataError, match=r"gone.png, round.png: links to files that are not there; fetch these, or"):
        read(folder)


# Classes


def test_images_beside_the_folders_take_the_classes_away_and_are_named(folder):
    write_images(folder, [*CLASSES, "stray.png", "other.png"])
    data = read(folder)
    assert count(data) == 14 and data.train.labels is None
    assert "no classes, since some images lie beside the folders: other.png, stray.png" in data.description


@pytest.mark.parametrize("wrapper", ["archive", "archive/data/images"])
def test_folders_that_all_images_share_are_no_classes(folder, wrapper):
    write_images(folder, CLASSES)
    write_images(folder.parent / "wrapped", [f"{wrapper}/{name}" for name in CLASSES])
    assert of_class(read(folder.parent / "wrapped")) == of_class(read(folder))
    write_images(folder.parent / "flat", [f"{wrapper}/{name}" for name in FLAT])
    assert read(folder.parent / "flat").train.labels is None


def test_the_first_folder_is_the_class_however_deep_the_image(folder):
    write_images(folder, ["plants/trees/oak/1.png", "plants/2.png", "animals/cats/3.png", "animals/dogs/4.png"])
    assert "2 classes (animals 2, plants 2)" in read(folder).description


# Splits


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"), ("Train", "Valid", "Test"), ("TRAINING", "VALIDATION", "TESTING"),
        ("train2017", "val2017", "test2017"), ("train_images", "dev-images", "test images"),
        ("train", "eval", "test"), ("train", "Evaluation", "test"),
        ("data/train", "data/val", "data/test"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "ant/", "images/"])
def test_folders_that_are_called_splits_are_the_splits(folder, train, validation, test, below):
    sizes = {train: 5, validation: 3, test: 4}
    names = {each: [f"{each}/{below}{i}.png" for i in range(n)] for each, n in sizes.items()}
    if below == "ant/":
        names = {each: [*some, f"{each}/cat/x.png"] for each, some in names.items()}
    write_images(folder, [name for some in names.values() for name in some])
    for seed in (0, 1):
        data = read(folder, seed=seed)
        for split, each in zip(splits(data), sizes, strict=True):
            found = sorted(image.numpy().tobytes() for image in split.pixels)
            assert found == sorted(pixels(folder / name) for name in names[each])
        assert (data.train.labels is not None) == (below == "ant/")
        assert f"split by its folders {', '.join(sorted(name.split('/')[-1] for name in sizes))}" in data.description
    if below == "ant/":
        assert set(data.test.labels.tolist()) == {0, 1} and "2 classes (ant 12, cat 3)" in data.description


@pytest.mark.parametrize(("given", "sizes"), [("val", (16, 3, 4)), ("test", (16, 4, 3))])
def test_a_split_without_a_folder_is_taken_from_training(folder, given, sizes):
    write_images(folder, [f"train/{i}.png" for i in range(20)] + [f"{given}/{i}.png" for i in range(3)])
    data = read(folder, validation=4, test=4)
    assert tuple(map(len, splits(data))) == sizes
    other = "testing" if given == "val" else "validation"
    assert f"data for {other} are taken from those for training" in data.description


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "test/2.png", "extra/3.png"], ["train/1.png", "test/2.png", "stray.png"],
        ["test/1.png", "val/2.png"], ["cats/1.png", "dogs/2.png", "test/3.png"],
        ["trainA/1.png", "trainB/2.png", "testA/3.png", "testB/4.png"],
        ["train/1.png", "val/2.png", "validation/3.png"],
    ],
)  # fmt: skip
def test_splits_beside_other_folders_are_refused_with_what_to_do(folder, names):
    write_images(folder, names)
    message = r"folders named .* mean splits and no classes.*; expected one to train on.* data\.path"
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize("top", ["", "set/", "train/"])
def test_splits_below_classes_are_refused_with_what_to_do(folder, top):
    names = [f"{top}{kind}/{split}/{i}.png" for kind in ("cat", "dog") for split in ("train", "test") for i in range(3)]
    write_images(folder, names + ([f"test/cat/{i}.png" for i in range(3)] if top == "train/" else []))
    message = r"cat/test, cat/train mean splits, below what would be classes; expected .* train/cat"
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "names", [("bus", "car", "train"), ("training shoe", "boot", "sandal"), ("testament", "valley", "trains")]
)
def test_classes_that_only_begin_like_splits_or_are_trains_are_classes(folder, names):
    write_images(folder, [f"{name}/{i}.png" for name in names for i in range(4)])
    assert "3 classes (" in read(folder).description


def test_a_single_folder_of_a_split_is_split_by_seed(folder):
    write_images(folder, [f"train/{name}" for name in CLASSES])
    (folder / "test").mkdir()
    data = read(folder, validation=2, test=2)
    assert tuple(map(len, splits(data))) == (8, 2, 2) and "1 without images (test)" in data.description


# Paths that are no folders


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read(tmp_path / "x.npy")


def test_names_as_long_as_can_be_are_told_shortened(folder):
    write_images(folder, FLAT)
    (folder / ("a" * 250 + ".txt")).write_text("")
    assert f"({'a' * 90}...{'a' * 86}.txt)" in read(folder).description


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "png", "csv"])
def test_archives_and_single_images_are_refused_with_what_to_do(folder, tmp_path, kind):
    write_images(folder, FLAT)
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in FLAT:
                archive.write(folder / name, name)
    elif kind.startswith("tar"):
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            archive.add(folder, "images")
    else:
        shutil.copy(folder / "0.png", path)
    with pytest.raises(DataError, match=r"images\.\w+.*; expected .*(has to be unpacked|folder of images)") as caught:
        read(path)
    assert len(str(caught.value)) < 500
