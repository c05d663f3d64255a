"""What is registered, brought here: a whole model folder, or one file of it.

Floor 7. Both are verified by the checksums of the folder's manifest.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service.errors import DataError, UserError
from avb_service.folder import MLMODEL, model_folder, read_model_files
from avb_service.manifest import read_folder, read_listed, read_manifest
from avb_service.storage import MANIFEST, write_folder
from avb_service.tracking.registry import registered
from avb_service.tracking.server import check_server, connect, refusals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


def pull(model: str, directory: Path, uri: str | None = None) -> Path:
    """Fetch a model folder and verify it.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME/latest, runs:/ID, or a local model folder, also as
            MLflow downloads it.
        directory: where to put it; absent or empty, or holding that very model.
        uri: where the registry is, as `tracking_uri` reads it.

    Returns:
        The directory.

    Raises:
        UserError: there is no such model (the message lists what there is), it is damaged, the directory holds
            something else, or the registry does not answer or refuses us.
    """
    with tempfile.TemporaryDirectory() as temporary:
        source = _download(model, Path(temporary), check_server(uri)) if _is_remote(model) else Path(model)
        files = read_model_files(source)
    if directory.is_dir() and any(directory.iterdir()):
        if _holds(directory, files):
            return directory
        raise UserError(f"{directory} holds something other than {model}: choose an empty directory or remove it")
    return write_folder(directory, files)


def read_file(model: str, name: str, uri: str | None = None) -> bytes | None:
    """One file of a model folder, verified; of a registered model nothing is downloaded but it and what leads to it.

    Args:
        model: as `pull` takes it.
        name: of the file.
        uri: where the registry is, as `tracking_uri` reads it.

    Returns:
        What it holds; None where the model has no such file.

    Raises:
        UserError: as for `pull`, of that file alone.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if not _is_remote(model):
            folder = model_folder(Path(model))
            return read_listed(folder, name) if name in read_manifest(folder) else None
        root = Path(temporary).resolve()
        get = _downloads(model, root, check_server(uri))
        get(MLMODEL)
        folder = model_folder(root, model)
        inside = folder.relative_to(root)
        get(str(inside / MANIFEST))
        if name not in read_manifest(folder):
            return None
        get(str(inside / name))
        return read_listed(folder, name)


def _of_run(client: "MlflowClient", model: str) -> "LoggedModel":
    """The newest model that the run of runs:/ID or runs:/ID/NAME has logged."""
    run_id, _, name = model.removeprefix("runs:/").partition("/")
    with refusals(f"cannot look up {model}"):
        outputs = client.get_run(run_id).outputs
        logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
    ready = [entry for entry in logged if entry.status == "READY" and name in ("", entry.name)]
    if not ready:
        known = ", ".join(f"runs:/{run_id}/{entry.name}" for entry in logged)
        raise UserError(f"the run has no model {model}; it has {known or 'none at all'}")
    return max(ready, key=lambda entry: entry.creation_timestamp)


def _is_remote(model: str) -> bool:
    """Whether a model is in the registry, and not in a folder here.

    Raises:
        UserError: it is no name of either.
    """
    remote = model.startswith(("models:", "runs:"))
    if not remote and not Path(model).is_dir():
        raise UserError(f"{model} is neither models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID nor a folder")
    return remote


def _download(model: str, directory: Path, uri: str) -> Path:
    """Fetch an MLflow model and return the model folder inside it."""
    return model_folder(_downloads(model, directory, uri)(""), model)


def _downloads(model: str, directory: Path, uri: str) -> Callable[[str], Path]:
    """A function that fetches a part of an MLflow model to a directory, given its path, which is the same in both."""
    client = connect(uri)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if model.startswith("runs:/"):
        location = _of_run(client, model).artifact_location
    else:
        row = registered(client, model)
        location = client.get_model_version_download_uri(row.name, str(row.version))
    repository = get_artifact_repository(location, tracking_uri=uri)

    def download(part: str) -> Path:
        with refusals(f"cannot download {model} from {uri}"):
            return Path(repository.download_artifacts(part, dst_path=str(directory)))

    return download


def _holds(directory: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return read_folder(directory) == files
    except DataError:
        return False
