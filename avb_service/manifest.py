"""Reading folders that `storage.write_folder` wrote: a manifest holds the SHA-256 of each file.

Floor 4.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from avb_service.errors import DataError
from avb_service.formats import known_format
from avb_service.storage import MANIFEST, parse_json, read_file
from avb_service.trees import Tree


def read_folder(folder: Path, required: Iterable[str] = ()) -> dict[str, bytes]:
    """Read a folder that `write_folder` wrote, and verify it.

    Args:
        folder: where it is.
        required: names that have to be among its files.

    Returns:
        Contents by file name: the very bytes that were verified.

    Raises:
        DataError: naming the file that is missing, damaged or was tampered with; or a later release wrote the folder.
    """
    manifest = _manifest(folder)
    known_format(manifest, folder / MANIFEST)
    files = {name: _verified(folder / name, checksum) for name, checksum in _checksums(manifest, folder).items()}
    if missing := sorted(set(required) - files.keys()):
        raise DataError(f"{folder / MANIFEST} does not list {', '.join(missing)}, expected {', '.join(required)}")
    return files


def read_listed(folder: Path, name: str) -> bytes:
    """One file of such a folder, verified; the others need not be there.

    Args:
        folder: where it is.
        name: of a file that its manifest lists.

    Raises:
        DataError: it is missing, damaged or was tampered with.
    """
    return _verified(folder / name, read_manifest(folder)[name])


def read_manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, which makes two folders comparable.

    Raises:
        DataError: there is no manifest, or it is not one of ours, or it names something outside the folder.
    """
    return _checksums(_manifest(folder), folder)


def _manifest(folder: Path) -> Tree:
    path = folder / MANIFEST
    return parse_json(path, read_file(path))


def _checksums(manifest: Tree, folder: Path) -> dict[str, str]:
    path, checksums = folder / MANIFEST, manifest.get("sha256")
    if not isinstance(checksums, dict) or not checksums:
        raise DataError(f"{path} holds no checksums")
    if outside := [name for name in checksums if Path(name).name != name or name in ("", "..", MANIFEST)]:
        raise DataError(f"{path} names {outside[0]!r}, expected plain names of files in {folder}")
    return checksums


def read_format(folder: Path) -> int:
    """The format that a folder was written in; 0 is from before formats were counted.

    Raises:
        DataError: a later release wrote it; or see `read_manifest`.
    """
    return known_format(_manifest(folder), folder / MANIFEST)


def fingerprint(folder: Path) -> str:
    """One SHA-256 for all files of a folder.

    Raises:
        DataError: see `read_manifest`.
    """
    return hashlib.sha256(json.dumps(read_manifest(folder), sort_keys=True).encode()).hexdigest()


def _verified(path: Path, checksum: str) -> bytes:
    """The bytes of a file, which have that SHA-256."""
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != checksum:
        raise DataError(f"{path} does not match its checksum: it was damaged or changed after writing")
    return content
