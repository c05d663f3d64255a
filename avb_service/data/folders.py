"""A folder of images: which files are data, of which class and split, and what is left out.

Floor 4. Data are what a person sees in a file viewer: nothing hidden, each file once. What else lies there is named.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from avb_service.errors import DataError, listed

SUFFIXES = frozenset(
    {
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)

# What operating systems, network drives and tools put into folders, beside names with a dot in front.
_SYSTEM = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbs.db",
    }
)

TRAIN, VALIDATION, TEST = range(3)
_SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "evaluation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
_PURPOSES = {VALIDATION: "validation", TEST: "testing"}
_HIDDEN, _OTHERS = "hidden or left by a system", "of other kinds"
_LINKS, _EMPTY = "there already by another path", "without images"

Parts = tuple[str, ...]
LeftOut = Mapping[str, list[Path]]


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        names: of the images, relative to the folder, in order.
        classes: names of the classes; none where there are no classes.
        labels: number of each image's class.
        splits: of each image: TRAIN, VALIDATION or TEST; None where the folder has no splits of its own.
        remarks: for people: how it was read, and what was left out and why.
    """

    names: list[Path]
    classes: Parts
    labels: NDArray[np.int64] | None
    splits: NDArray[np.int64] | None
    remarks: Parts


def read_folder(root: Path) -> Folder:
    """Find the images below a folder, which may be a link or hidden itself.

    The folders that all images share say nothing. Of the next ones, `train`, `val` and `test` (`training`,
    `test_images`, `val2017` and the like) are splits; others are classes, unless images lie beside them.

    Raises:
        DataError: no images, links to images that are not there, or splits that cannot be told from classes.
    """
    names, left_out = _find(root)
    if not names:
        holds = f"; left out: {_told(left_out)}" if left_out else ""
        raise DataError(f"{root} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}{holds}")
    paths = _below_shared([_order(name) for name in names])
    remarks = []
    splits = _splits(root, paths)
    if splits is not None:
        absent = [purpose for split, purpose in _PURPOSES.items() if split not in splits]
        taken = f"; data for {' and '.join(absent)} are taken from those for training" if absent else ""
        remarks.append(f"split by its folders {listed(sorted({path[0] for path in paths}))}{taken}")
        paths = _below_shared([path[1:] for path in paths])
    _refuse_splits_below(root, paths)
    beside = [path[0] for path in paths if len(path) == 1]
    classes, labels = np.unique([path[0] for path in paths], return_inverse=True)
    if 0 < len(beside) < len(paths):
        remarks.append(f"no classes, since some images lie beside the folders: {listed(beside)}")
    if left_out:
        remarks.append(f"left out: {_told(left_out)}")
    if beside:
        return Folder(names, (), None, splits, tuple(remarks))
    return Folder(names, tuple(map(str, classes)), labels.astype(np.int64), splits, tuple(remarks))


def _find(root: Path) -> tuple[list[Path], LeftOut]:
    """The images below, in order, and what is left out and why; all relative to the root.

    Raises:
        DataError: links to images that are not there.
    """
    left_out: dict[str, list[Path]] = defaultdict(list)
    found: dict[str, Path] = {}  # by where they lie in truth
    links, places = [], []
    for place, real, files in _folders(root, left_out):
        places.append(place.relative_to(root))
        for path in (place / name for name in files):
            is_link = path.is_symlink()
            if path.suffix.lower() not in SUFFIXES or not (is_link or path.is_file()):
                left_out[_OTHERS].append(path)
            elif is_link:
                links.append(path)
            else:
                found[os.path.join(real, path.name)] = path
    if dead := [link.relative_to(root) for link in links if not link.exists()]:
        raise DataError(f"{root}: {listed(dead)}: links to files that are not there; fetch these, or remove the links")
    for link in sorted(links, key=_order):
        if found.setdefault(os.path.realpath(link), link) != link:
            left_out[_LINKS].append(link)
    names = sorted((path.relative_to(root) for path in found.values()), key=_order)
    bare = set(places) - {parent for name in names for parent in name.parents}
    left_out[_EMPTY] += [root / place for place in bare - {Path()} if place.parent not in bare]
    reasons = (_HIDDEN, _LINKS, _EMPTY, _OTHERS)
    return names, {
        why: sorted((path.relative_to(root) for path in left_out[why]), key=_order) for why in reasons if left_out[why]
    }


def _folders(root: Path, left_out: dict[str, list[Path]]) -> Iterator[tuple[Path, str, list[str]]]:
    """Every folder that is not hidden, where it lies in truth, and its files; each once, if it can be by no link."""
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        for name, folders, files in os.walk(waiting.pop(0), onerror=_refuse):
            place, real = Path(name), os.path.realpath(name)
            leads_back = place != root and _holds(real, os.path.realpath(place.parent))
            if real in seen or leads_back:
                left_out[_LINKS].append(place)
                folders.clear()
                continue
            seen.add(real)
            left_out[_HIDDEN] += [place / each for each in (*folders, *files) if _hidden(each)]
            folders[:] = sorted(each for each in folders if not _hidden(each))
            waiting += [place / each for each in folders if (place / each).is_symlink()]
            yield place, real, [each for each in files if not _hidden(each)]


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot look into {error.filename}: {error.strerror}; make it readable or move it away") from error


def _hidden(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM


def _order(path: Path) -> Parts:
    """Names as they are composed on every file system; some decompose letters with accents."""
    return tuple(normalize("NFC", part) for part in path.parts)


def _told(left_out: LeftOut) -> str:
    return "; ".join(
        f"{len(paths)} {why} ({_by_suffix(paths) if why == _OTHERS else listed(paths)})"
        for why, paths in left_out.items()
    )


def _by_suffix(paths: Sequence[Path]) -> str:
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        kinds[path.suffix.lower()].append(path)
    commonest = sorted(kinds.values(), key=len, reverse=True)
    return "; ".join([*(listed(each, 1) for each in commonest[:8]), *(["and others"] if len(commonest) > 8 else [])])


def _below_shared(paths: list[Parts]) -> list[Parts]:
    """The paths without the folders that all of them share."""
    shared = len(os.path.commonprefix([path[:-1] for path in paths]))
    return [path[shared:] for path in paths]


def _split_of(folder: str) -> int | None:
    """The split that a folder's name means: a word for one, and behind it no more letters of the same case."""
    word = re.match(r"[A-Z]?[a-z]+|[A-Z]+", folder)
    return _SPLITS.get(word[0].lower()) if word else None


def _splits(root: Path, paths: Sequence[Parts]) -> NDArray[np.int64] | None:
    """The split of each image by its first folder, where these are splits.

    Raises:
        DataError: some are and others are not, two are the same, or there is none to train on.
    """
    folders = sorted({path[0] for path in paths if len(path) > 1})
    named = {folder: split for folder in folders if (split := _split_of(folder)) is not None}
    if not set(named.values()) - {TRAIN}:  # a train alone may be what pictures show
        return None
    others = [name for name in sorted({path[0] for path in paths}) if name not in named]
    if others or TRAIN not in named.values() or len(set(named.values())) < len(named):
        beside = f"; beside them {listed(others)}" if others else ""
        raise DataError(
            f"{root}: folders named {listed(list(named))} mean splits and no classes{beside}; expected one to train "
            "on, one for validation, for testing or for each, and no images elsewhere: move or rename the others, or "
            "give a single folder as data.path, which is split by data.seed then"
        )
    return np.array([named[path[0]] for path in paths])


def _refuse_splits_below(root: Path, paths: Sequence[Parts]) -> None:
    """Make sure that no folder below the first ones holds splits.

    Raises:
        DataError: one does.
    """
    within: dict[Parts, set[str]] = defaultdict(set)
    for path in paths:
        for depth in range(1, len(path) - 1):
            within[path[:depth]].add(path[depth])
    for folder, names in sorted(within.items()):
        meaning = {name: _split_of(name) for name in sorted(names)}
        if {TRAIN} < set(meaning.values()) - {None}:
            found = ["/".join((*folder, name)) for name, split in meaning.items() if split is not None]
            raise DataError(
                f"{root}: {listed(found)} mean splits, below what would be classes; expected them above, such as "
                f"train/{folder[0]}; move them, or give one of the folders as data.path"
            )
