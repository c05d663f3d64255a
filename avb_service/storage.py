"""Files and folders on disk that are whole or absent, on storage that may fail for a moment.

Floor 4. A folder is written beside its place, synced, and renamed into it, so a reader sees all of it or none. Its
`manifest.json` holds the SHA-256 of every file; what does not match is refused by name.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from avb_service.errors import DataError, UserError
from avb_service.formats import FORMAT
from avb_service.trees import Tree

MANIFEST = "manifest.json"

# What storage may say for a moment: a share that is mounted anew, a server that is busy, a disk that is being cleared.
FULL = {errno.ENOSPC, errno.EDQUOT}
PASSING = FULL | {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ECONNRESET,
    errno.ENOTCONN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
WAITS = (0.1, 0.3, 1.0, 3.0, 6.0)  # seconds between attempts

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def write_folder(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    replace: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a folder of files with its manifest, all or nothing.

    Args:
        folder: its place.
        files: contents by plain file name.
        replace: whether a folder that is already there gives way once the new one is complete.
        check: called when all is written, before it takes its place; what it raises leaves everything as it was.

    Returns:
        The folder.

    Raises:
        UserError: the disk is full, the place cannot be written, or something is there already.
    """
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"format": FORMAT, "sha256": checksums}
    contents = {**files, MANIFEST: json.dumps(manifest, indent=2).encode()}
    temporary, old = (folder.with_name(f".{folder.name}.{kind}.part") for kind in ("new", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        persistently(lambda: temporary.mkdir(parents=True, exist_ok=True))
        for name, content in contents.items():
            _write(temporary / name, content)
        persistently(lambda: _sync(temporary))
        check()
        if replace and folder.exists():
            _move(folder, old)
        _move(temporary, folder)
        persistently(lambda: _sync(folder.parent))
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        put_back(old)
        raise UserError(
            f"cannot write {folder}: {_reason(error, folder, sum(map(len, contents.values())))}; what was there before "
            "is untouched. Make room, or choose a place that is empty and can be written"
        ) from error
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return folder


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or replace it, that others read meanwhile: they see the whole of it or nothing.

    Raises:
        OSError: it cannot be written, nor after some seconds.
    """
    part = path.with_name(f".{path.name}.part")
    _write(part, content)
    _move(part, path)


def write_json(path: Path, tree: Tree) -> None:
    """The same with JSON."""
    write_file(path, json.dumps(tree, indent=2).encode())


def check_place(path: Path) -> None:
    """Make sure that a file can be written, before anything is computed for it; its folder is made.

    Raises:
        UserError: it cannot; says why.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder, expected the name of a file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell the user why a file could not be written.

    Raises:
        UserError: it could not.
    """
    try:
        yield
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = f"{error.filename} is no folder" if in_the_way else error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; make room or choose another place") from error


def put_back(old: Path) -> None:
    """Restore a folder that was moved out of the way for another, which never came."""
    place = old.with_name(old.name.removeprefix(".").removesuffix(".old.part"))
    if old.exists() and not place.exists():
        with suppress(OSError):  # another process may have done it
            old.rename(place)


def read_file(path: Path) -> bytes:
    """What a file holds.

    Raises:
        DataError: it cannot be read; says why.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json(path: Path, content: bytes) -> Tree:
    """A JSON object.

    Raises:
        DataError: it is none; names the file.
    """
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds {type(tree).__name__}, expected an object")
    return tree


def persistently(act: Callable[[], Result]) -> Result:
    """Do something with storage; try again for some seconds where it fails as it may for a moment.

    Args:
        act: done as a whole again, also where it had been done and only the answer was lost.

    Raises:
        OSError: it fails for good.
    """
    for wait in WAITS:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            _log.warning("%s; trying again in %g s", error, wait)
            time.sleep(wait)
    return act()


def _write(path: Path, content: bytes) -> None:
    def write() -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    persistently(write)


def _move(source: Path, target: Path) -> None:
    """Rename; storage that loses its answer may have done it at the first attempt."""
    persistently(lambda: source.rename(target) if source.exists() else target)


def _reason(error: OSError, folder: Path, size: int) -> str:
    """What the system says; of a full disk also how full, and of how much room is needed."""
    if error.errno not in FULL:
        return error.strerror or str(error)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(place).free / 2**20, size / 2**20
    return f"{error.strerror}: {needed:.1f} MiB are needed and {free:.1f} MiB free on the disk of {place}"


def _sync(folder: Path) -> None:
    """Make renames and new entries in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
