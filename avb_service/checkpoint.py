"""State on disk that is whole or absent: atomic, checksummed, and free of pickle.

Floor 4. A folder is written beside its place, synced, and renamed into it, so a reader sees all of it or none. Its
`manifest.json` holds the SHA-256 of every file; what does not match is refused by name. Two kinds of folder are made
here: checkpoints, from which training resumes, and model folders, which are published.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from avb_service.config import Tree, parse_yaml
from avb_service.errors import DataError, UserError

State = dict[str, Any]  # nested; the leaves are tensors, JSON scalars or lists

MANIFEST = "manifest.json"
STATE_FILES = ("tensors.safetensors", "state.json", "config.yaml", "metrics.json")
MODEL_FILES = ("weights.safetensors", "config.yaml", "card.md")

_log = logging.getLogger(__name__)


def write_folder(folder: Path, files: Mapping[str, bytes], *, replace: bool = False) -> Path:
    """Write a folder of files with its manifest, all or nothing.

    Args:
        folder: its place.
        files: contents by plain file name.
        replace: whether a folder that is already there gives way once the new one is complete.

    Returns:
        The folder.

    Raises:
        UserError: the disk is full, the place cannot be written, or something is there already.
    """
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    contents = {**files, MANIFEST: json.dumps({"sha256": checksums}, indent=2).encode()}
    temporary, old = (folder.with_name(f".{folder.name}.{kind}.part") for kind in ("new", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            with (temporary / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(temporary)
        if replace and folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; what was there before is untouched. "
            "Make room, or choose a place that is empty and can be written"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


def read_folder(folder: Path, required: Iterable[str] = ()) -> dict[str, bytes]:
    """Read a folder that `write_folder` wrote, and verify it.

    Args:
        folder: where it is.
        required: names that have to be among its files.

    Returns:
        Contents by file name: the very bytes that were verified.

    Raises:
        DataError: naming the file that is missing, damaged or was tampered with.
    """
    files = {}
    for name, checksum in read_manifest(folder).items():
        content = _read(folder / name)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise DataError(f"{folder / name} does not match its checksum: it was damaged or changed after writing")
        files[name] = content
    if missing := sorted(set(required) - files.keys()):
        raise DataError(f"{folder / MANIFEST} does not list {', '.join(missing)}, expected {', '.join(required)}")
    return files


def read_manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, which makes two folders comparable.

    Raises:
        DataError: there is no manifest, or it is not one of ours, or it names something outside the folder.
    """
    path = folder / MANIFEST
    checksums = _json(path, _read(path)).get("sha256")
    if not isinstance(checksums, dict) or not checksums:
        raise DataError(f"{path} holds no checksums")
    if outside := [name for name in checksums if Path(name).name != name or name in ("", "..", MANIFEST)]:
        raise DataError(f"{path} names {outside[0]!r}, expected plain names of files in {folder}")
    return checksums


def fingerprint(folder: Path) -> str:
    """One SHA-256 for all files of a folder.

    Raises:
        DataError: as `read_manifest`.
    """
    return hashlib.sha256(json.dumps(read_manifest(folder), sort_keys=True).encode()).hexdigest()


def write_json(path: Path, tree: Tree) -> None:
    """Write a file that others read meanwhile: they see the whole of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(tree, indent=2), encoding="utf-8")
    part.replace(path)


@dataclass(frozen=True)
class ModelFolder:
    """What a published model consists of.

    Attributes:
        weights: tensors by name, as `state_dict()` has them.
        config: the resolved configuration.
        card: what a reader should know of the model, Markdown.
        more: further files by name, that go with it.
    """

    weights: dict[str, Tensor]
    config: Tree
    card: str
    more: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path, *, replace: bool = False) -> Path:
        """Write the model folder.

        Args:
            folder: its place.
            replace: whether one that is already there gives way.

        Raises:
            UserError: see `write_folder`.
        """
        contents = (_tensors(self.weights), _yaml(self.config), self.card.encode())
        files = {**self.more, **dict(zip(MODEL_FILES, contents, strict=True))}
        return write_folder(folder, files, replace=replace)

    @classmethod
    def read(cls, folder: Path) -> "ModelFolder":
        """Read a model folder and verify it.

        Raises:
            DataError: see `read_folder`.
        """
        files = read_folder(folder, MODEL_FILES)
        weights, config, card = (files.pop(name) for name in MODEL_FILES)
        tree = parse_yaml(config.decode(), str(folder / "config.yaml"))
        return cls(safetensors.torch.load(weights), tree, card.decode(), files)


@dataclass(frozen=True)
class Checkpoint:
    """A state that training can resume from.

    Attributes:
        round: rounds played.
        state: nested; the leaves are tensors on the CPU, JSON scalars or lists.
        metrics: what was reported in that round.
        config: the resolved configuration that it was trained with.
        path: its folder.
        skipped: what is wrong with each checkpoint that should have come before this one.
    """

    round: int
    state: State
    metrics: dict[str, float]
    config: Tree
    path: Path
    skipped: tuple[str, ...] = ()


class CheckpointStore:
    """The checkpoints of one run, with one writer.

    Args:
        folder: where they are kept; made on the first save.
        keep: how many of the newest to keep.
        best_by: the metric by which the best one is kept as well; higher is better.
    """

    def __init__(self, folder: Path, keep: int = 2, best_by: str | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep: given {keep}, expected 1 or more")
        self.folder, self.keep, self.best_by = Path(folder), keep, best_by

    def save(self, round: int, state: State, metrics: Mapping[str, float], config: Tree) -> Path:
        """Write a checkpoint, then delete those that need not be kept.

        A checkpoint of the same round is replaced. Those of later rounds are dropped unless one is the best: training
        went back behind them.

        Raises:
            UserError: it cannot be written; the checkpoints that exist are whole.
            TypeError: the state holds something that is neither tensor, JSON scalar nor list; names its path.
        """
        tensors: dict[str, Tensor] = {}
        skeleton = _split(state, "", tensors)
        contents = (_tensors(tensors), _to_json(skeleton), _yaml(config), _to_json(dict(metrics)))
        self._sweep()
        files = dict(zip(STATE_FILES, contents, strict=True))
        path = write_folder(self.folder / f"round-{round:08d}", files, replace=True)
        self._prune(round)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is none at all.

        Raises:
            UserError: there are checkpoints and all of them are damaged; says what is wrong with each.
        """
        return _first_whole(list(reversed(self._paths())))

    def best(self) -> Checkpoint | None:
        """The best whole checkpoint by the store's metric, None where none has it.

        Raises:
            UserError: see `latest`.
        """
        return _first_whole(self._ranked())

    def best_metric(self) -> float | None:
        """The best checkpoint's metric, without reading its tensors; None where none has it."""
        ranked = self._ranked()
        return _metric(ranked[0], self.best_by) if ranked and self.best_by else None

    def _paths(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("round-*") if re.fullmatch(r"round-\d{8,}", p.name)), key=_round)

    def _ranked(self) -> list[Path]:
        """Those that have the metric, best first; of equals the earlier."""
        if self.best_by is None:
            return []
        scores = {path: _metric(path, self.best_by) for path in self._paths()}
        return sorted((path for path in scores if not math.isnan(scores[path])), key=lambda path: -scores[path])

    def _prune(self, round_: int) -> None:
        kept = {*[path for path in self._paths() if _round(path) <= round_][-self.keep :], *self._ranked()[:1]}
        for path in set(self._paths()) - kept:
            shutil.rmtree(path, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what interrupted writes left."""
        for leftover in self.folder.glob(".round-*.part"):
            shutil.rmtree(leftover, ignore_errors=True)


def _round(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


def _metric(path: Path, name: str) -> float:
    try:
        return _json(path / "metrics.json", _read(path / "metrics.json")).get(name, math.nan)
    except DataError:  # reading it as a checkpoint says what is wrong
        return math.nan


def _first_whole(paths: list[Path]) -> Checkpoint | None:
    skipped: list[str] = []
    for path in paths:
        try:
            checkpoint = _read_checkpoint(path)
        except UserError as error:
            _log.warning("checkpoint skipped: %s", error)
            skipped.append(str(error))
        else:
            return dataclasses.replace(checkpoint, skipped=tuple(skipped))
    if skipped:
        raise UserError("\n  ".join(["all checkpoints are damaged; restore one of them or start a new run:", *skipped]))
    return None


def _read_checkpoint(path: Path) -> Checkpoint:
    files = read_folder(path, STATE_FILES)
    tensors, state, config, metrics = (files[name] for name in STATE_FILES)
    try:
        merged = _merge(_json(path / "state.json", state), safetensors.torch.load(tensors))
    except SafetensorError as error:
        raise DataError(f"{path / 'tensors.safetensors'} is not in the safetensors format: {error}") from error
    tree = parse_yaml(config.decode(), str(path / "config.yaml"))
    return Checkpoint(_round(path), merged, _json(path / "metrics.json", metrics), tree, path)


def _split(node: Any, pointer: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """The JSON part of a state; its tensors go to a dictionary by JSON pointer (RFC 6901) and leave a null behind."""
    if isinstance(node, Tensor):
        tensors[pointer] = node
        return None
    if isinstance(node, list):
        return [_split(item, f"{pointer}/{index}", tensors) for index, item in enumerate(node)]
    if isinstance(node, dict) and all(isinstance(key, str) for key in node):
        return {key: _split(value, _below(pointer, key), tensors) for key, value in node.items()}
    if type(node) not in (str, int, float, bool, type(None)):
        given = "a dictionary whose keys are not all strings" if isinstance(node, dict) else type(node).__name__
        raise TypeError(f"state {pointer or '/'}: {given}; expected dictionaries, lists, tensors and JSON scalars")
    return node


def _merge(node: Any, tensors: Mapping[str, Tensor], pointer: str = "") -> Any:  # noqa: ANN401
    """The inverse of `_split`."""
    if pointer in tensors:
        return tensors[pointer]
    if isinstance(node, list):
        return [_merge(item, tensors, f"{pointer}/{index}") for index, item in enumerate(node)]
    if isinstance(node, dict):
        return {key: _merge(value, tensors, _below(pointer, key)) for key, value in node.items()}
    return node


def _below(pointer: str, key: str) -> str:
    return f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"


def _tensors(tensors: Mapping[str, Tensor]) -> bytes:
    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    return safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def _yaml(tree: Tree) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False).encode()


def _to_json(tree: Tree) -> bytes:
    return json.dumps(tree).encode()  # repr of a float, which reads back bit-equal; NaN and Infinity included


def _json(path: Path, content: bytes) -> Tree:
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds {type(tree).__name__}, expected an object")
    return tree


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Make renames and new entries in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
