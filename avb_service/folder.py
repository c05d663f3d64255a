"""The model folder: what is published of a model, as files that are checksummed and free of pickle.

Floor 4. A folder as storage.py writes it: whole or absent. Only weights need torch, which takes a second to import: who
looks into the registry does not wait for it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service.checkpoint import packed, unpacked
from avb_service.errors import DataError
from avb_service.manifest import read_folder, read_format
from avb_service.storage import MANIFEST, write_folder
from avb_service.trees import Tree, parse_yaml, read_yaml, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FILES = ("weights.safetensors", "config.yaml", "card.md")
MLMODEL = "MLmodel"
LOADER = "avb_service.tracking.pyfunc"  # what MLflow calls with a model folder


def _with_round(tree: Tree) -> Tree:
    """Of format 0, the first folders did not say of which round their weights are."""
    return {"round": None, **tree}


MIGRATIONS: tuple[Callable[[Tree], Tree], ...] = (_with_round,)  # of the configuration, from each format to the next


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
        contents = (packed(self.weights), to_yaml(self.config).encode(), self.card.encode())
        files = {**self.more, **dict(zip(MODEL_FILES, contents, strict=True))}
        return write_folder(folder, files, replace=replace)

    @classmethod
    def read(cls, folder: Path) -> "ModelFolder":
        """Read a model folder and verify it.

        Raises:
            DataError: see `read_model_files`.
        """
        folder = model_folder(folder)
        files = read_model_files(folder)
        weights, config, card = (files.pop(name) for name in MODEL_FILES)
        tree = parse_yaml(config.decode(), str(folder / "config.yaml"))
        for migrate in MIGRATIONS[read_format(folder) :]:
            tree = migrate(tree)
        return cls(unpacked(weights), tree, card.decode(), files)


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
