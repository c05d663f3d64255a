"""Images as a viewer shows them, decoded once into one array.

Floor 4. Upright, in sRGB, on white where they are transparent. What holds no picture, or more than one, or more than 8
bits a channel, is refused by name.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageMode, ImageOps, UnidentifiedImageError
from PIL import __version__ as pillow
from rich.console import Console
from rich.progress import track

from avb_service.errors import DataError, listed

Pixels = NDArray[np.uint8]

_IMAGES_AT_ONCE = 512
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_GREY = frozenset({"1", "L", "LA", "La"})
_LAST = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}  # what a whole file has near its end
_NEAR = 2**16  # bytes: some programs write something of their own behind it
_ON_THE_SIDE = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height

_SEVERAL = "more than one picture in a file (frames or pages); save the one that counts, or each as a file of its own"
_DEEP = "{} bits a channel; convert them to 8, or save their numbers as an array with numpy.save"
_UNKNOWN = "no image of a kind that is read here, whatever the name says; convert or remove it"
_HUGE = "more pixels than Pillow decodes; make it smaller"
_CLOSED = "cannot be opened ({}); make it readable, or remove it"
_BROKEN = "cut off or damaged ({}); replace or remove it"


class Decoded(NamedTuple):
    """All images as one array, and what was done to some.

    Attributes:
        pixels: uint8 [N, H, W] or [N, H, W, 3], memory-mapped.
        grey: how many are grey, of those that became an array in colour.
        transparent: how many were laid on white.
    """

    pixels: Pixels
    grey: int
    transparent: int


class _Header(NamedTuple):
    size: tuple[int, int]
    grey: bool


def decode_images(folder: Path, names: Sequence[Path], crop: int | None = None, size: int | None = None) -> Decoded:
    """All images as one array, from a cache that is written once.

    The cache lies in $XDG_CACHE_HOME/avb-service (~/.cache by default) and is keyed on the names, sizes and times
    of the files, on the crop and the size, and on this code.

    Args:
        folder: where they are.
        names: the images, relative to it, all of one size unless `size` is given.
        crop: side of the centred square to cut out; the largest one where only `size` is given.
        size: side to which the square is resized.

    Raises:
        DataError: images that cannot be used or differ in size, or a cache that cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avb-service"
    cached = cache / f"{_fingerprint(folder, names, crop, size)}.npy"
    facts = cached.with_suffix(".json")
    try:
        if not (cached.exists() and facts.exists()):
            cache.mkdir(parents=True, exist_ok=True)
            # Of the workers on one host, one decodes while the others wait for it.
            with FileLock(cached.with_suffix(".lock")), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a viewer passes over, such as damaged EXIF data
                if not (cached.exists() and facts.exists()):
                    _decode_into(cached, facts, folder, names, crop, size)
        return Decoded(np.load(cached, mmap_mode="r", allow_pickle=False), **json.loads(facts.read_text()))
    except OSError as error:
        raise DataError(f"cannot cache images in {cache}: {error}; set XDG_CACHE_HOME to another disk") from error


def _decode_into(
    cached: Path, facts: Path, folder: Path, names: Sequence[Path], crop: int | None, size: int | None
) -> None:
    """Write the pixels and what was done to them.

    Raises:
        DataError: images that cannot be used or differ in size.
        OSError: they cannot be written.
    """
    (width, height), grey = _survey(folder, names, size)
    mode = "L" if grey == len(names) else "RGB"
    shape = (len(names), height, width) if mode == "L" else (len(names), height, width, 3)
    partial, starts = cached.with_suffix(".partial"), range(0, len(names), _IMAGES_AT_ONCE)
    broken: list[str | None] = []
    transparent = 0
    try:
        # Written front to back, not through a map: a full disk is then an error and not a bus error.
        with partial.open("wb") as out, ThreadPoolExecutor() as pool:
            np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
            console, title = Console(stderr=True), f"Decoding {len(names)} images"
            for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
                some = names[start : start + _IMAGES_AT_ONCE]
                for found in pool.map(lambda name: _decode(folder / name, mode, (width, height), crop, size), some):
                    broken.append(found if isinstance(found, str) else None)
                    if not isinstance(found, str):
                        out.write(found[0].tobytes())
                        transparent += found[1]
        _refuse(folder, names, broken)
        facts.write_text(json.dumps({"grey": 0 if mode == "L" else grey, "transparent": transparent}))
        os.replace(partial, cached)
    finally:
        partial.unlink(missing_ok=True)


def _survey(folder: Path, names: Sequence[Path], size: int | None) -> tuple[tuple[int, int], int]:
    """Width and height that all images have, and how many are grey, from what stands before their pixels.

    Raises:
        DataError: images that cannot be used, or of several sizes.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: _header(folder / name, size), names))
    _refuse(folder, names, [each if isinstance(each, str) else None for each in found])
    headers = [each for each in found if isinstance(each, _Header)]
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for name, header in zip(names, headers, strict=True):
        sizes[header.size].append(name)
    if len(sizes) > 1:
        commonest = sorted(sizes.items(), key=lambda item: -len(item[1]))[:5]
        told = [f"{len(some)} of {width}x{height} ({listed(some, 1)})" for (width, height), some in commonest]
        more = [f"{len(sizes) - 5} more sizes"] if len(sizes) > 5 else []
        raise DataError(
            f"{folder} holds images of {len(sizes)} sizes (width x height): {'; '.join([*told, *more])}; expected one: "
            "--set data.image_size=64 crops each to a centred square and resizes it"
        )
    return next(iter(sizes)), sum(header.grey for header in headers)


def _refuse(folder: Path, names: Sequence[Path], complaints: Sequence[str | None]) -> None:
    """Name all images that something is said against.

    Raises:
        DataError: there are some.
    """
    said: dict[str, list[Path]] = defaultdict(list)
    for name, complaint in zip(names, complaints, strict=True):
        if complaint is not None:
            said[complaint].append(name)
    if said:
        lines = [f"{listed(some)}: {complaint}" for complaint, some in said.items()]
        more = [f"and {len(lines) - 10} more reasons"] if len(lines) > 10 else []
        count = sum(map(len, said.values()))
        are = "1 image cannot" if count == 1 else f"{count} images cannot"
        raise DataError("\n  ".join([f"{folder}: {are} be used:", *lines[:10], *more]))


def _header(file: Path, size: int | None) -> _Header | str:
    """What is known of an image before it is decoded, or what is wrong with it; the size is the one that all get."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # Telephones keep depth and brightness in an MPO beside the picture, which alone is shown.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                return _SEVERAL
            if (bits := _bits(image)) > 8:
                return _DEEP.format(bits)
            if not _has_its_end(file, image.format):
                image.copy()  # says what is missing, before all others are decoded
            return _Header((size, size) if size else _shown_size(image), _is_grey(image))
    except Exception as error:  # a damaged file fails in as many ways as its parser has lines
        return _complaint(error)


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits a channel, as they are stored: of 16 in colour, Pillow would drop the lower half without a word."""
    kind = ImageMode.getmode(image.mode).typestr
    if kind not in ("|u1", "|b1"):
        return 8 * int(kind[-1])
    deep = any(isinstance(args, tuple) and args[1] > 255 for codec, _, _, args in image.tile if codec[:3] == "ppm")
    return 16 if deep or re.search(";16[BLN]", str(image.tile)) else 8


def _has_its_end(file: Path, kind: str | None) -> bool:
    """Whether a file ends as its kind does, so far as that can be seen without decoding it."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _NEAR))
        return kind not in _LAST or _LAST[kind] in stream.read()


def _complaint(error: Exception) -> str:
    """What is wrong with a file; the same for all files with one fault."""
    if isinstance(error, UnidentifiedImageError):
        return _UNKNOWN
    if isinstance(error, Image.DecompressionBombError):
        return _HUGE
    if isinstance(error, OSError) and error.strerror:
        return _CLOSED.format(error.strerror)
    reason = re.sub(r" \(\d+ bytes not processed\)", "", " ".join(str(error).split()))
    return _BROKEN.format(reason or type(error).__name__)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) in _ON_THE_SIDE  # Pillow turns TIFFs by itself
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers show images whose EXIF data are damaged, as they are
        return 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = image.getpalette() or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode in _GREY


def _decode(
    file: Path, mode: str, expected: tuple[int, int], crop: int | None, size: int | None
) -> tuple[Pixels, bool] | str:
    """The pixels and whether some were transparent, or what is wrong with them."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            shown, transparent = _shown(image)
            pixels = shown.convert(mode)
            if size is not None:
                side = crop or min(pixels.size)
                left, top = ((length - side) // 2 for length in pixels.size)
                box = (left, top, left + side, top + side)
                pixels = pixels.resize((size, size), Image.Resampling.LANCZOS, box=box)
            if pixels.size != expected:
                return f"{pixels.width}x{pixels.height} once decoded, and not as it says itself; replace or remove it"
            return np.asarray(pixels), transparent
    except Exception as error:  # as above
        return _complaint(error)


def _shown(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as a viewer shows it, and whether parts of it are transparent."""
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    image = _in_srgb(image)
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    transparent = bool((np.asarray(image.getchannel("A")) < 255).any())
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), transparent


def _in_srgb(image: Image.Image) -> Image.Image:
    """The colours that the image's own profile means; as they are where it has none that can be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(given).startswith("sRGB"):
            return image
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError):
        return image


@cache
def _code() -> bytes:
    return pillow.encode() + Path(__file__).read_bytes()


def _fingerprint(folder: Path, names: Sequence[Path], crop: int | None, size: int | None) -> str:
    digest = hashlib.sha256(_code() + f"{crop} {size}".encode() + os.fsencode(folder.absolute()))
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error}") from error
        digest.update(b"\n" + os.fsencode(name) + f"\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
