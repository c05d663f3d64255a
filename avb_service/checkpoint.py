"""Checkpoints, from which training resumes, and model folders, which are published: checksummed, and free of pickle.

Floor 4. Both are folders as storage.py writes them: whole or absent. Only what holds tensors needs torch, which takes a
second to import: who looks into the registry does not wait for it.
"""

import dataclasses
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from avb_service.errors import DataError, UserError
from avb_service.storage import MANIFEST, parse_json, put_back, read_file, read_folder, write_folder
from avb_service.trees import Tree, parse_yaml, read_yaml, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, Any]  # nested; the leaves are tensors, JSON scalars or lists

STATE_FILES = ("tensors.safetensors", "state.json", "config.yaml", "metrics.json")
MODEL_FILES = ("weights.safetensors", "config.yaml", "card.md")
MLMODEL = "MLmodel"
LOADER = "avb_service.tracking.pyfunc"  # what MLflow calls with a model folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """What a published model consists of.

    Attributes:
        weights: tensors by name, as `state_dict()` has them.
        config: the resolved configuration.
        card: what a reader should know of the model, Markdown.
        more: further files by name, that go with it.
    """

    weights: "dict[str, Tensor]"
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
            DataError: see `read_model_files`.
        """
        files = read_model_files(folder)
        weights, config, card = (files.pop(name) for name in MODEL_FILES)
        tree = parse_yaml(config.decode(), str(folder / "config.yaml"))
        return cls(_loaded(weights), tree, card.decode(), files)


def model_folder(folder: Path, name: str | None = None) -> Path:
    """The model folder itself, where it is given as MLflow stores and downloads it: inside of a folder with an MLmodel.

    Args:
        folder: it, or that around it.
        name: what to call it in an error.

    Raises:
        DataError: that is the model of another program, or points outside of itself.
    """
    if not (folder / MLMODEL).is_file():
        return folder
    flavors = read_yaml(folder / MLMODEL).get("flavors")
    flavor = flavors.get("python_function") if isinstance(flavors, dict) else None
    loader, data = (flavor.get(key) if isinstance(flavor, dict) else None for key in ("loader_module", "data"))
    if loader != LOADER:
        raise DataError(f"{name or folder} was not registered by this service: its loader is {loader}")
    inside = (folder / str(data)).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise DataError(f"{name or folder} points to {data!r}, outside of itself; it is not read")
    return inside


def read_model_files(folder: Path) -> dict[str, bytes]:
    """The files of a model folder, verified.

    Args:
        folder: it, or one of MLflow's around it.

    Raises:
        DataError: it is no model folder; or see `read_folder`.
    """
    folder = model_folder(folder)
    if not (folder / MANIFEST).exists():
        raise DataError(f"{folder} has no {MANIFEST}: expected a model folder, such as `avb pull` makes")
    return read_folder(folder, MODEL_FILES)


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
            UserError: it cannot be written; says which one training can go on from.
            TypeError: the state holds something that is neither tensor, JSON scalar nor list; names its path.
        """
        tensors: dict[str, Tensor] = {}
        skeleton = _split(state, "", tensors)
        contents = (_tensors(tensors), _to_json(skeleton), _yaml(config), _to_json(dict(metrics)))
        self._sweep()
        files = dict(zip(STATE_FILES, contents, strict=True))
        try:
            path = write_folder(self.folder / f"round-{round:08d}", files, replace=True)
        except UserError as error:
            before = self.latest()
            left = "there is none before it" if before is None else f"the one before it, {before.path.name}, is whole"
            raise UserError(f"{error}. Of the checkpoints in that folder, {left}") from error
        self._prune(round)
        return path

    @property
    def newest(self) -> Path | None:
        """The folder of the newest checkpoint, whole or not; None where there is none."""
        return next(reversed(self._paths()), None)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is none at all.

        Raises:
            UserError: there are checkpoints and all of them are damaged; says what is wrong with each.
        """
        for old in self.folder.glob(".round-*.old.part"):
            put_back(old)
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

    def last_report(self) -> tuple[int, dict[str, float]]:
        """The newest round that was reported, and its figures, without reading tensors; round 0 where there is none."""
        for path in reversed(self._paths()):
            try:
                metrics = parse_json(path / "metrics.json", read_file(path / "metrics.json"))
            except DataError:  # reading it as a checkpoint says what is wrong
                continue
            if metrics:  # else it was made between two reports
                return _round(path), metrics
        return 0, {}

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
        return parse_json(path / "metrics.json", read_file(path / "metrics.json")).get(name, math.nan)
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
        merged = _merge(parse_json(path / "state.json", state), _loaded(tensors))
    except SafetensorError as error:
        raise DataError(f"{path / 'tensors.safetensors'} is not in the safetensors format: {error}") from error
    tree = parse_yaml(config.decode(), str(path / "config.yaml"))
    return Checkpoint(_round(path), merged, parse_json(path / "metrics.json", metrics), tree, path)


def _split(node: Any, pointer: str, tensors: "dict[str, Tensor]") -> Any:  # noqa: ANN401
    """The JSON part of a state; its tensors go to a dictionary by JSON pointer (RFC 6901) and leave a null behind."""
    from torch import Tensor

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


def _merge(node: Any, tensors: "Mapping[str, Tensor]", pointer: str = "") -> Any:  # noqa: ANN401
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


def _tensors(tensors: "Mapping[str, Tensor]") -> bytes:
    from safetensors.torch import save

    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def _loaded(tensors: bytes) -> "dict[str, Tensor]":
    from safetensors.torch import load

    return load(tensors)


def _yaml(tree: Tree) -> bytes:
    return to_yaml(tree).encode()


def _to_json(tree: Tree) -> bytes:
    return json.dumps(tree).encode()  # repr of a float, which reads back bit-equal; NaN and Infinity included
