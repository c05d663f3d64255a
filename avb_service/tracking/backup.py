"""Backup and restore of a tracking file and the artifacts beside it, also while a server writes to both.

Floor 7. A backup is a folder: the databases, the artifacts, and a manifest with the SHA-256 of every file. Databases
come first, each as it was at one moment (SQLite's online backup); so what they refer to is among the artifacts, which
are copied after them. Restored elsewhere, the runs are told where their artifacts are now.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from avb_service.errors import DataError, UserError
from avb_service.tracking import login
from avb_service.tracking.server import SQLITE, artifact_root, database_path, tracking_uri

MANIFEST, RUNS, ARTIFACTS = "manifest.json", "mlflow.db", "artifacts"
CHUNK = 1 << 20  # bytes read at a time
TRIES = 3  # at a file that somebody is writing to


@dataclass(frozen=True)
class Copied:
    """What was backed up or restored.

    Attributes:
        place: of the backup, or of the tracking file.
        files: how many.
        bytes: their size.
    """

    place: str
    files: int
    bytes: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.files} files ({self.bytes / 1e6:.1f} MB)"


def backup(folder: Path, uri: str | None = None) -> Copied:
    """Copy a tracking file, its users and its artifacts into a folder, all or nothing.

    Args:
        folder: absent or empty.
        uri: the tracking file, as `tracking_uri` reads it.

    Raises:
        UserError: there is nothing to back up, the folder holds something, or cannot be written.
    """
    runs, artifacts = _store(uri)
    if not runs.is_file():
        raise UserError(f"there is no tracking file {runs} to back up: name it with MLFLOW_TRACKING_URI={SQLITE}FILE")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already: choose a folder that is absent or empty")
    with _beside(folder) as part:
        sums = {}
        for source, name in ((runs, RUNS), (runs.with_name(login.DATABASE), login.DATABASE)):
            if source.is_file():
                sums[name] = _copy_database(source, part / name)
        for source in sorted(path for path in artifacts.rglob("*") if path.is_file()):
            name = f"{ARTIFACTS}/{source.relative_to(artifacts).as_posix()}"
            try:
                sums[name] = _copy(source, part / name)
            except FileNotFoundError:  # deleted by the server since it was listed
                continue
        manifest = {"artifacts": artifacts.as_uri(), "sha256": sums}
        _private(part / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        copied = _count(part, sums, folder)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    return copied


def restore(folder: Path, uri: str | None = None, *, replace: bool = False) -> Copied:
    """Bring a backup back; every file is verified before anything is touched.

    Args:
        folder: a backup.
        uri: the tracking file that it becomes, as `tracking_uri` reads it.
        replace: put aside what is there, into a folder beside it.

    Raises:
        DataError: the backup is damaged or incomplete; names the files.
        UserError: something is there already, or cannot be written.
    """
    runs, artifacts = _store(uri)
    was, sums = _read_manifest(folder)
    users = runs.with_name(login.DATABASE)
    there = [path for path in (runs, users, artifacts) if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if there and not replace:
        names = ", ".join(str(path) for path in there)
        raise UserError(f"{names} would be overwritten: restore elsewhere, or put it aside with --replace")
    with _beside(runs) as part:
        (part / ARTIFACTS).mkdir(mode=0o700)
        damaged = [name for name, checksum in sums.items() if _copied(folder / name, part / name) != checksum]
        if damaged:
            raise DataError(
                f"{folder} is damaged, nothing was restored. Missing, or not as it was backed up:\n"
                + "\n".join(f"  {name}" for name in damaged)
            )
        _relocate(part / RUNS, was, artifacts.as_uri())
        copied = _count(part, sums, runs)
        if there:
            _put_aside(there, runs.with_name(f"before-restore-{datetime.now():%Y%m%d-%H%M%S}"))
        for name, place in ((ARTIFACTS, artifacts), (login.DATABASE, users), (RUNS, runs)):  # a store has its runs last
            if (part / name).exists():
                (part / name).rename(place)
    return copied


def _store(uri: str | None) -> tuple[Path, Path]:
    """The tracking file and the folder of artifacts."""
    uri = tracking_uri(uri)
    artifacts = artifact_root(uri)
    if artifacts is None:
        raise UserError(
            f"given {uri}, expected a file: on the host of its server, set MLFLOW_TRACKING_URI={SQLITE}/FOLDER/{RUNS}. "
            "How a PostgreSQL store is backed up is in docs/operations.md"
        )
    return database_path(uri), artifacts


def _read_manifest(folder: Path) -> tuple[str, dict[str, str]]:
    """Where the artifacts were, and the checksum of each file."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        was, sums = str(manifest["artifacts"]), dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no whole backup: cannot read {path} ({error})") from error
    known = (RUNS, login.DATABASE, ARTIFACTS)
    for name in sums:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] not in known:
            raise DataError(f"{path} names {name!r}, expected files below {', '.join(known)}")
    if RUNS not in sums:
        raise DataError(f"{path} does not list {RUNS}")
    return was, sums


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A folder on the same disk that only we can read; what is left of it goes when the block ends."""
    try:
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.absolute().parent))
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"cannot write {place}: {error}; make room, or choose another place") from error


def _private(path: Path) -> Path:
    """An empty file for us alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    return path


def _copy_database(source: Path, target: Path) -> str:
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(_private(target))) as copy:
        live.backup(copy)
    return _sha256(target)


def _copy(source: Path, target: Path) -> str:
    """Copy a file, again if it changed meanwhile; gives its SHA-256."""
    for _ in range(TRIES):
        before = source.stat()
        with source.open("rb") as reading, _private(target).open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            writing.flush()
            os.fsync(writing.fileno())
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            break
    return _sha256(target)


def _copied(source: Path, target: Path) -> str | None:
    """Copy a file of a backup; None where it cannot be read."""
    try:
        return _copy(source, target)
    except FileNotFoundError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count(part: Path, sums: dict[str, str], place: Path) -> Copied:
    return Copied(str(place), len(sums), sum((part / name).stat().st_size for name in sums))


def _relocate(database: Path, was: str, now: str) -> None:
    """Tell the runs where their artifacts are; those that a server hands out have no place of their own."""
    old, new = f"{was}/", f"{now}/"
    with closing(sqlite3.connect(database)) as runs, runs:
        tables = [name for (name,) in runs.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(table, row[1]) for table in tables for row in runs.execute(f'PRAGMA table_info("{table}")')]
        for table, column in columns:
            runs.execute(
                f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?',
                (new, len(old) + 1, len(old), old),
            )


def _put_aside(there: list[Path], folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for path in there:
        for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            if each.exists():
                each.rename(folder / each.name)
