"""What a viewer shows is what is trained on; what holds no picture, or more than one, is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from avb_service.data.datasets import DataConfig, Dataset, load
from avb_service.errors import DataError
from tests.pictures import write_images

EXIF_ORIENTATION = 0x0112
LOSSLESS = {"png": {}, "tiff": {}, "webp": {"lossless": True}}
OTHERS = ["a1.png", "a2.png", "a3.png"]  # of one kind, so that there is something to train on


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def read(path, **options) -> Dataset:
    return load(DataConfig(name="file", path=str(path), **options))


def images(data) -> set[bytes]:
    return {image.numpy().tobytes() for split in (data.train, data.validation, data.test) for image in split.pixels}


def planes(pixels) -> bytes:
    """As the images of a data set hold them, channels first."""
    pixels = np.asarray(pixels, dtype=np.uint8)
    return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).tobytes()


def noise(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# The cache


def test_images_are_decoded_once_until_they_change(folder, monkeypatch):
    write_images(folder, [f"{i}.png" for i in range(5)], mode="RGB")
    first = read(folder, seed=1)
    assert first.spec.shape == (3, 4, 5) and first.train.labels is None
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *args, **options: pytest.fail("decoded again"))
        again = read(folder, seed=1, resident_gib=0.0)
        assert again.sha256 == first.sha256 and again.description == first.description
    write_images(folder, ["9.png"], mode="RGB", seed=1)
    assert len(read(folder).train) == len(first.train) + 1


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_half_a_cache_is_written_again(folder, tmp_path, suffix):
    write_images(folder, OTHERS)
    whole = read(folder).sha256
    (half,) = (tmp_path / "cache").rglob(f"*{suffix}")
    half.unlink()
    assert read(folder).sha256 == whole


def test_interrupted_decoding_leaves_no_cache_behind(folder, tmp_path):
    write_images(folder, [f"{i}.png" for i in range(5)])
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"3\.png: cut off or damaged \(.*\); replace or remove it"):
        read(folder)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".npy", ".json", ".partial")]
    (folder / "3.png").write_bytes(whole)
    assert len(read(folder).train) == 3


def test_cache_that_cannot_be_written_is_an_error_of_the_data(folder, tmp_path, monkeypatch):
    write_images(folder, OTHERS)
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.raises(DataError, match="cannot cache images in .*XDG_CACHE_HOME"):
        read(folder)


# Orientation and size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSLESS)
def test_images_are_upright_whatever_way_they_are_stored(folder, kind, orientation):
    upright = noise(6, 4, 3)
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # the orientation that turns it the other way
    carried = Image.Exif()
    carried[EXIF_ORIENTATION] = undo
    turned = io.BytesIO()
    Image.fromarray(upright).save(turned, "png", exif=carried)
    stored = ImageOps.exif_transpose(Image.open(turned))
    carried[EXIF_ORIENTATION] = orientation
    stored.save(folder / f"z.{kind}", exif=carried, **LOSSLESS[kind])
    assert stored.size == ((6, 4) if orientation > 4 else (4, 6))
    write_images(folder, OTHERS, size=(4, 6), mode="RGB")
    data = read(folder)
    assert data.spec.shape == (3, 6, 4) and planes(upright) in images(data)
    assert read(folder, image_size=4).spec.shape == (3, 4, 4)


def test_photographs_are_compared_as_they_are_seen(folder):
    """Two of a telephone, of which one was held upright."""
    sideways = Image.Exif()
    sideways[EXIF_ORIENTATION] = 6
    for i in range(4):
        Image.fromarray(noise(24, 40, 3)).save(folder / f"IMG_{i}.jpg", exif=sideways)
    assert read(folder).spec.shape == (3, 40, 24)
    Image.fromarray(noise(24, 40, 3)).save(folder / "IMG_9.jpg")
    message = r"2 sizes \(width x height\): 4 of 24x40 \(IMG_0.jpg and 3 more\); 1 of 40x24 \(IMG_9.jpg\); expected one"
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"", b"Exif"])
def test_images_with_damaged_exif_data_are_shown_as_they_are(folder, exif):
    write_images(folder, OTHERS, size=(6, 4), mode="RGB")
    Image.fromarray(noise(4, 6, 3)).save(folder / "z.jpg", exif=exif)
    assert read(folder).spec.shape == (3, 4, 6)


def test_images_of_different_size_are_counted_by_size_or_resized(folder):
    write_images(folder, OTHERS)
    write_images(folder, ["d.png"], size=(9, 7), mode="RGB")
    message = r"2 sizes .*: 3 of 5x4 \(a1.png and 2 more\); 1 of 9x7 \(d.png\); expected one: --set data.image_size=64"
    with pytest.raises(DataError, match=message):
        read(folder)
    assert read(folder, image_size=6).spec.shape == (3, 6, 6)
    for i in range(8):
        write_images(folder, [f"{i}.png"], size=(10 + i, 20))
    with pytest.raises(DataError, match=r"10 sizes .*; 5 more sizes; expected one"):
        read(folder)


# Transparency, on white as in a browser


HALF = 128


def blend(pixels, alpha):
    return np.round((pixels.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_transparent_pixels_lie_on_white(folder, kind):
    colour, alpha = noise(4, 5, 3), np.full((4, 5, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, HALF
    exact = {"exact": True} if kind == "webp" else {}  # keeps colours that nobody sees
    Image.fromarray(np.concatenate([colour, alpha], 2)).save(folder / f"z.{kind}", **LOSSLESS[kind], **exact)
    data = read_three(folder)
    (image,) = images(data) - FILL
    shown = np.frombuffer(image, np.uint8).reshape(3, 4, 5).transpose(1, 2, 0)
    assert np.abs(shown - blend(colour, alpha)).max() <= 1
    assert (shown[0] == 255).all(), "what is fully transparent is white, whatever colour lies behind"
    assert "1 of them transparent in parts, laid on white" in data.description


def _grey_alpha(folder):
    image = Image.fromarray(noise(4, 5)).convert("LA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255], [255], [255]]), 5, 1)))
    image.save(folder / "z.png")


def _palette(folder):
    image = Image.fromarray(np.repeat(np.uint8([[0], [1], [2], [3]]), 5, 1), "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(folder / "z.png", transparency=0)


def _palette_gif(folder):
    image = Image.fromarray(np.repeat(np.uint8([[0], [1], [2], [3]]), 5, 1), "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(folder / "z.gif", transparency=0)


def _key_of_grey(folder):
    Image.fromarray(np.repeat(np.uint8([[7], [1], [2], [3]]), 5, 1)).save(folder / "z.png", transparency=7)


def _key_of_colour(folder):
    pixels = noise(4, 5, 3)
    pixels[0], pixels[1:] = (7, 8, 9), np.maximum(pixels[1:], 10)
    Image.fromarray(pixels).save(folder / "z.png", transparency=(7, 8, 9))


@pytest.mark.parametrize("write", [_grey_alpha, _palette, _palette_gif, _key_of_grey, _key_of_colour])
def test_every_way_of_being_transparent_is_known(folder, write):
    """The first row is transparent, and no other."""
    write(folder)
    data = read_three(folder)
    channels, height, width = data.spec.shape
    pixels = next(np.frombuffer(each, np.uint8).reshape(channels, height, width) for each in images(data) - FILL)
    assert (pixels[:, 0] == 255).all() and not (pixels[:, 1:] == 255).all(0).any()
    assert "1 of them transparent in parts, laid on white" in data.description
    assert channels == (1 if write in (_grey_alpha, _key_of_grey) else 3)


FILL = {bytes(20), bytes(60)}


def read_three(folder):
    """With two black images beside it, since a split needs one each."""
    for i in range(2):
        Image.new("L", (5, 4)).save(folder / f"a{i}.png")
    return read(folder)


def test_alpha_that_hides_nothing_changes_nothing_and_is_not_mentioned(folder):
    pixels = noise(4, 5, 3)
    opaque = Image.fromarray(pixels).convert("RGBA")
    opaque.save(folder / "z.png")
    data = read_three(folder)
    assert planes(pixels) in images(data) and "transparent" not in data.description


# Kinds of pixels


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("1", "png", 1), ("L", "png", 1), ("LA", "png", 1), ("P", "png", 3), ("P", "gif", 3), ("RGB", "bmp", 3),
     ("RGBA", "png", 3), ("CMYK", "tiff", 3), ("YCbCr", "tiff", 3), ("LAB", "tiff", 3)],
)  # fmt: skip
def test_eight_bits_of_any_kind_are_read_as_shown(folder, mode, kind, channels):
    given = Image.fromarray(noise(4, 5, 3)).convert(mode)
    given.save(folder / f"z.{kind}")
    data = read_three(folder)
    assert data.spec.shape == (channels, 4, 5)
    with Image.open(folder / f"z.{kind}") as image:
        shown = image.convert("RGB")
    assert planes(shown.convert("L") if channels == 1 else shown) in images(data)


def test_a_palette_of_greys_is_grey(folder):
    grey = noise(4, 5)
    image = Image.fromarray(grey, "P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(folder / "z.png")
    data = read_three(folder)
    assert data.spec.shape == (1, 4, 5) and planes(grey) in images(data)


@pytest.mark.parametrize(("one", "levels"), [(1, 1), (255, 255)])
def test_masks_are_binary_however_they_are_stored(folder, one, levels):
    given = noise(12, 4, 5) > 127
    for i, mask in enumerate(given):
        Image.fromarray(mask.astype(np.uint8) * np.uint8(one)).save(folder / f"{i:02}.png")
    data = read(folder)
    assert (data.spec.values, data.spec.levels) == ("binary", levels)
    found = np.concatenate([split.pixels.numpy() for split in (data.train, data.validation, data.test)])[:, 0]
    assert sorted(map(bytes, found)) == sorted(map(bytes, given.astype(np.uint8) * np.uint8(one)))
    assert read(folder, levels=255).spec.values == "levels"


def test_grey_among_colour_is_read_in_colour_and_counted(folder):
    write_images(folder, OTHERS, mode="RGB")
    grey = noise(4, 5)
    Image.fromarray(grey).save(folder / "z.png")
    data = read(folder)
    assert data.spec.shape == (3, 4, 5) and planes(np.repeat(grey[:, :, None], 3, 2)) in images(data)
    assert "1 of them grey, read in colour" in data.description


@pytest.mark.parametrize(
    ("dtype", "kind", "bits"),
    [(np.uint16, "png", 16), (np.uint16, "tiff", 16), (np.int32, "tiff", 32), (np.float32, "tiff", 32),
     (">u2", "tiff", 16)],
)  # fmt: skip
def test_deep_images_are_refused_instead_of_clipped(folder, dtype, kind, bits):
    write_images(folder, OTHERS)
    Image.fromarray(np.full((4, 5), 60_000, dtype=dtype)).save(folder / f"z.{kind}")
    with pytest.raises(DataError, match=rf"z\.{kind}: {bits} bits a channel; convert them to 8, or .* numpy.save"):
        read(folder)


def _deep_colour_png() -> bytes:
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(4 * (1 + 5 * 3 * 2)))
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    told = [
        struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held)) for name, held in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(told)


@pytest.mark.parametrize(
    ("name", "content"),
    [("z.png", _deep_colour_png()), ("z.ppm", b"P6 5 4 65535\n" + bytes(120)), ("z.ppm", b"P3 1 1 1023\n0 1 2\n")],
)
def test_deep_colours_are_refused_though_pillow_would_drop_half_of_their_bits(folder, name, content):
    write_images(folder, OTHERS, mode="RGB")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: 16 bits a channel"):
        read(folder)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (3, 5), (5, 3), (3, 3), (2, 5)])
def test_flat_images_keep_their_shape_and_their_colours(folder, height, width):
    given = [noise(height, width, 3, seed=seed) for seed in range(3)]
    for number, image in enumerate(given):
        Image.fromarray(image).save(folder / f"{number}.png")
    data = read(folder)
    assert data.spec.shape == (3, height, width) and images(data) == set(map(planes, given))


def _swapped_profile() -> bytes:
    """SRGB with red and green exchanged, under another name."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return renamed.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_colours_are_those_that_the_profile_means(folder, kind):
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[:2, :, 0], colours[2:, :, 1] = 255, 180
    Image.fromarray(colours).save(folder / f"z.{kind}", icc_profile=_swapped_profile(), **LOSSLESS[kind])
    (image,) = images(read_three(folder)) - FILL
    shown = np.frombuffer(image, np.uint8).reshape(3, 4, 5).transpose(1, 2, 0)
    assert np.abs(shown.astype(int) - colours[:, :, [1, 0, 2]]).max() <= 3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("profile", ["sRGB", "XYZ", "nonsense"])
def test_profiles_that_change_nothing_or_cannot_be_used_change_nothing(folder, mode, profile):
    given = Image.fromarray(noise(4, 5, 3)).convert(mode)
    known = profile != "nonsense"
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes() if known else b"nonsense"
    given.save(folder / "z.png", icc_profile=content)
    assert planes(given if mode == "L" else given.convert("RGB")) in images(read_three(folder))


# More than one picture, or none


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff", "avif"])
def test_several_pictures_in_a_file_are_refused_by_name_and_one_is_read(folder, kind):
    frames = [Image.fromarray(noise(4, 5, 3, seed=i)) for i in range(3)]
    frames[0].save(folder / f"one.{kind}")
    assert read_three(folder).spec.shape == (3, 4, 5)
    frames[0].save(folder / f"film.{kind}", save_all=True, append_images=frames[1:])
    message = rf"images: 1 image cannot be used:\n  film\.{kind}: more than one picture in a file"
    with pytest.raises(DataError, match=message):
        read(folder)


def test_what_a_telephone_keeps_beside_the_picture_is_not_shown(folder):
    frames = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (200, 9)]
    frames[0].save(folder / "z.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert planes(np.full((4, 5, 3), 200)) in images(read_three(folder))


def test_all_that_cannot_be_used_is_named_at_once(folder):
    write_images(folder, ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"])
    (folder / "0.png").write_bytes(b"")
    (folder / "1.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(folder / "deep.png")
    with pytest.raises(DataError) as caught:
        read(folder)
    said = str(caught.value).splitlines()
    assert said[0] == f"{folder}: 3 images cannot be used:" and len(said) == 3
    assert said[1].startswith("  0.png, 1.png: no image of a kind that is read here")
    for name in ("0.png", "1.png", "deep.png"):
        (folder / name).unlink()
    for name in ("2.png", "4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-25])
    with pytest.raises(DataError, match=r"2 images cannot be used:\n  2\.png, 4\.png: cut off or damaged \("):
        read(folder)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_files_that_are_cut_off_are_named_with_how_many_there_are_before_any_is_decoded(folder, suffix, monkeypatch):
    names = [f"{number:02}.{suffix}" for number in range(30)]
    write_images(folder, names, size=(40, 40))
    for number, name in enumerate(names[5:25]):
        (folder / name).write_bytes((folder / name).read_bytes()[: -200 - 9 * number])
    monkeypatch.setattr("avb_service.data.images._decode", lambda *given: pytest.fail("decoded"))
    with pytest.raises(DataError) as caught:
        read(folder)
    first, second = str(caught.value).splitlines()
    assert first == f"{folder}: 20 images cannot be used:"
    assert second.startswith(f"  {', '.join(names[5:8])} and 17 more: cut off or damaged (")


def test_what_a_program_writes_behind_an_image_or_leaves_out_at_its_end_is_no_damage(folder):
    write_images(folder, ["a.jpg", "b.jpg", "c.jpg"])
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes() + bytes(100_000))
    assert len(read(folder).train) == 1


def test_damage_inside_of_an_image_is_named_once_all_are_decoded(folder):
    names = [f"{number}.png" for number in range(9)]
    write_images(folder, names, size=(40, 40))
    for name in names[2:8]:
        content = bytearray((folder / name).read_bytes())
        content[200:300] = bytes(100)
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"6 images cannot be used:\n  2.png, 3.png, 4.png and 3 more: cut off or"):
        read(folder)


def test_what_cannot_be_opened_is_not_called_damaged(folder, monkeypatch):
    def refuse(path, **options):
        if path.stem == "a2":
            raise Image.DecompressionBombError
        raise PermissionError(13, "Permission denied", str(path))

    write_images(folder, OTHERS)
    monkeypatch.setattr(Image, "open", refuse)
    message = r"a1.png, a3.png: cannot be opened \(Permission denied\); .*\n  a2.png: more pixels than"
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P7\n332 9\n", b"<svg/>"])
def test_no_other_kind_is_read_under_a_known_ending(folder, content):
    """An EPS file, for one, would be run as a program."""
    write_images(folder, OTHERS)
    (folder / "z.png").write_bytes(content)
    with pytest.raises(DataError, match=r"z\.png: no image of a kind that is read here"):
        read(folder)
