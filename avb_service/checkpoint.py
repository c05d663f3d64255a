"""Checkpoints, from which training resumes: checksummed, and free of pickle.

Floor 4. Each is a folder as storage.py writes it: whole or absent. Only what holds tensors needs torch, which takes a
second to import: who looks at a search's trials does not wait for it.
"""

import dataclasses
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from avb_service.errors import DataError, TakenOverError, UserError
from avb_service.manifest import read_folder
from avb_service.storage import parse_json, put_back, read_file, write_folder
from avb_service.trees import Tree, parse_yaml, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, Any]  # nested; the leaves are tensors, JSON scalars or lists

STATE_FILES = ("tensors.safetensors", "state.json", "config.yaml", "metrics.json")

_log = logging.getLogger(__name__)


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
        check: raises where the folder has another writer by now; asked before anything in it is changed.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        best_by: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep: given {keep}, expected 1 or more")
        self.folder, self.keep, self.best_by, self.check = Path(folder), keep, best_by, check

    def save(self, round: int, state: State, metrics: Mapping[str, float], config: Tree) -> Path:
        """Write a checkpoint, then delete those that need not be kept.

        A checkpoint of the same round is replaced. Those of later rounds are dropped unless one is the best: training
        went back behind them.

        Raises:
            UserError: it cannot be written; says which one training can go on from.
            TakenOverError: the folder has another writer; nothing is changed.
            TypeError: the state holds something that is neither tensor, JSON scalar nor list; names its path.
        """
        tensors: dict[str, Tensor] = {}
        skeleton = _split(state, "", tensors)
        contents = (packed(tensors), _to_json(skeleton), to_yaml(config).encode(), _to_json(dict(metrics)))
        self.check()
        self._sweep()
        files = dict(zip(STATE_FILES, contents, strict=True))
        try:
            path = write_folder(self.folder / f"round-{round:08d}", files, replace=True, check=self.check)
        except TakenOverError:
            raise
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
        """The newest round that was reported, and its metrics, without reading tensors; round 0 where there is none."""
        for path in reversed(self._paths()):
            try:
                metrics = parse_json(path / "metrics.json", read_file(path / "metrics.json"))
            except DataError:  # reading it as a checkpoint says what is wrong
                continue
            if metrics:  # else it was made between two reports
                return _round(path), metrics
        return 0, {}

    def last_history(self) -> dict[str, list[list[float]]]:
        """Round and value at each report by metric, without reading tensors; empty where there is none."""
        for path in reversed(self._paths()):
            with suppress(DataError):  # reading it as a checkpoint says what is wrong
                return parse_json(path / "state.json", read_file(path / "state.json")).get("history", {})
        return {}

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
        merged = _merge(parse_json(path / "state.json", state), unpacked(tensors))
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


def packed(tensors: "Mapping[str, Tensor]") -> bytes:
    """Tensors in the safetensors format."""
    from safetensors.torch import save

    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def unpacked(tensors: bytes) -> "dict[str, Tensor]":
    """The inverse of `packed`."""
    from safetensors.torch import load

    return load(tensors)


def _to_json(tree: Tree) -> bytes:
    return json.dumps(tree).encode()  # repr of a float, which reads back bit-equal; NaN and Infinity included
