"""The registry: model folders published under a name, with their numbers and aliases.

Floor 7. A registered model is an MLflow pyfunc whose data is a model folder and whose loader is our module, so it is
loaded without pickle. Its numbers are metrics of the logged model and tags of the version.
"""

import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service.errors import UserError
from avb_service.folder import LOADER, ModelFolder
from avb_service.manifest import fingerprint
from avb_service.records.key import from_json, metric, read_older_metrics
from avb_service.tracking.runs import parameters
from avb_service.tracking.server import connect, every, existing_is_fine, refusals, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

METRIC_TAG = "metric."
SCORED_ON = "scored_on"  # a tag of a version
CONTENT = "sha256"  # another, and of its logged model
HELD_OUT = "test/log_likelihood"  # the model's estimate, exact or a lower bound
SHORTFALL = "test/log_likelihood.shortfall"  # by how much another bound shows it to be too low
ESTIMATES = "estimates"  # a tag: what its estimates are known by
ESTIMATOR, HIGHER = "log_likelihood_by", "shortfall_by"  # tags: whose estimate that is, and whose bound the other
PARAMETERS: Mapping[str, str | int] = {"task": "reconstruct", "n": 16, "seed": 0, "dtype": ""}  # of a served model
DESCRIPTION = 5000  # characters that MLflow's tables hold
REQUIREMENTS = ("avb-service", "mlflow", "numpy", "safetensors", "torch")


@dataclass(frozen=True)
class RegisteredVersion:
    """One row of the leaderboard.

    Attributes:
        name: of the registered model.
        version: its number.
        aliases: such as champion.
        run_id: the run that it came from.
        created: when, seconds since the epoch.
        tags: method, latent size, training time: whatever it was registered with.
        metrics: its numbers, nats per datum unless the name says otherwise.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    created: float
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def uri(self) -> str:
        """What `pull` takes."""
        return f"models:/{self.name}/{self.version}"

    def bound(self, estimator: str) -> float | None:
        """The lower bound on log p(x) that an estimator has found, nats per datum; None where there is none."""
        return bound(self.tags, self.metrics, estimator)


def bound(tags: Mapping[str, str], metrics: Mapping[str, float], estimator: str) -> float | None:
    """As `RegisteredVersion.bound`, of what has such tags and metrics."""
    try:
        keys = from_json(tags[ESTIMATES])
    except (KeyError, ValueError):  # registered before there was that tag, or by somebody else
        keys = read_older_metrics(metrics)
    names = (metric("test", key, "lower_bound") for key in keys if key.estimator == estimator)
    return next((metrics[name] for name in names if name in metrics), None)


def register(
    name: str,
    folder: Path,
    run_id: str,
    *,
    step: int = 0,
    aliases: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    version: int | None = None,
    uri: str | None = None,
) -> int:
    """Publish a model folder as the next version of a registered model; go on where a call was cut off.

    Args:
        name: of the registered model; made if it does not exist.
        folder: a model folder; it is verified before anything is published.
        run_id: the run that it came from.
        step: the round that its weights are of.
        aliases: to give to the version.
        metrics: its numbers, shown on the page of the model and of the version.
        tags: what else a table of models should show.
        version: one that such a call has made.
        uri: where, as `tracking_uri` reads it.

    Returns:
        The version's number.

    Raises:
        UserError: the folder is damaged, or MLflow refuses.
    """
    model, where = ModelFolder.read(folder), tracking_uri(uri)
    client = connect(where)
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    numbers = {key: float(value) for key, value in (metrics or {}).items()}
    with refusals(f"cannot register {folder} as {name!r} at {where}"):
        logged = _log_model(client, name, folder, model, run_id, step, version)
        with existing_is_fine():
            client.create_registered_model(name)
        described = {**(tags or {}), **{METRIC_TAG + key: repr(value) for key, value in numbers.items()}}
        if version is None:
            published = _new_version(client, name, logged, run_id, described, model.card)
        else:
            published = client.get_model_version(name, str(version))
            for key, value in described.items() - published.tags.items():
                client.set_model_version_tag(name, str(version), key, value)
        link = json.dumps([{"name": name, "version": int(published.version)}])
        client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: link})
        for alias in aliases:
            client.set_registered_model_alias(name, alias, published.version)
        _log_metrics(client, logged, run_id, numbers, step, published.creation_timestamp)
    return int(published.version)


def _new_version(
    client: "MlflowClient", name: str, logged: "LoggedModel", run_id: str, tags: dict[str, str], card: str
) -> "ModelVersion":
    # The location and not models:/ID, which MLflow would look up at its global tracking URI.
    return client.create_model_version(
        name,
        logged.artifact_location,
        run_id,
        tags,
        description=card[:DESCRIPTION],
        await_creation_for=0,
        model_id=logged.model_id,
    )


def set_alias(
    name: str,
    alias: str,
    version: int,
    uri: str | None = None,
    tags: Mapping[str, str] | None = None,
    instead_of: str | None = None,
) -> None:
    """Point an alias at a version, and note why.

    Args:
        name: of the registered model.
        alias: to give.
        version: its number.
        uri: where, as `tracking_uri` reads it.
        tags: of the version, such as the reason.
        instead_of: an alias that the version loses, if it has it.

    Raises:
        UserError: no such model or version, or a name that MLflow reserves.
    """
    client = connect(tracking_uri(uri))
    row = registered(client, f"models:/{name}/{version}")
    with refusals(f"cannot make models:/{name}/{version} its {alias!r}"):
        for key, value in (tags or {}).items():
            client.set_model_version_tag(name, str(version), key, value)
        client.set_registered_model_alias(name, alias, str(version))
        if instead_of in row.aliases:
            client.delete_registered_model_alias(name, instead_of)


def leaderboard(uri: str | None = None) -> list[RegisteredVersion]:
    """All versions of all registered models, by name, the newest first."""
    where = tracking_uri(uri)
    with refusals(f"cannot list the models at {where}"):
        return sorted(_versions(connect(where)), key=lambda row: (row.name, -row.version))


def _begun(client: "MlflowClient", name: str, run: "Run", content: str, version: int | None) -> "LoggedModel | None":
    """The model of a version, or without one what a call that was cut off has logged; None where there is none."""
    versions = every(client.search_model_versions, f"run_id = '{run.info.run_id}'")
    sources = {entry.source: int(entry.version) for entry in versions if entry.name == name}
    same = f"name = '{name}' AND source_run_id = '{run.info.run_id}' AND tags.{CONTENT} = '{content}'"
    logged = every(client.search_logged_models, [run.info.experiment_id], same)
    return next((each for each in logged if sources.get(each.artifact_location) == version), None)


def _log_model(
    client: "MlflowClient", name: str, folder: Path, model: ModelFolder, run_id: str, step: int, version: int | None
) -> "LoggedModel":
    """Upload the folder as a model of the run, unless a call that was cut off has done so."""
    from mlflow.entities import LoggedModelOutput

    run, content = client.get_run(run_id), fingerprint(folder)
    logged = _begun(client, name, run, content, version)
    if logged is None:
        experiment_id, params = run.info.experiment_id, parameters(model.config)
        logged = client.create_logged_model(experiment_id, name, run_id, {CONTENT: content}, params)
    elif logged.status == "READY":
        return logged
    try:
        if logged.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model"
            _save_pyfunc(path, folder, logged, run_id)
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return client.finalize_logged_model(logged.model_id, "READY")


def _save_pyfunc(path: Path, folder: Path, logged: "LoggedModel", run_id: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*inferred as AnyType", UserWarning)  # MLflow's, about its own types
        import mlflow.pyfunc
    from mlflow.models import Model

    # Left to itself, MLflow would load the model in another process to find out what it requires.
    requirements = [_requirement(package) for package in REQUIREMENTS]
    meta = Model(
        logged.artifact_location, run_id, signature=_signature(), model_uuid=logged.model_id, model_id=logged.model_id
    )
    mlflow.pyfunc.save_model(path, LOADER, str(folder), mlflow_model=meta, pip_requirements=requirements)


def _requirement(package: str) -> str:
    """The package as installed here; +cpu and the like belong to another index than PyPI."""
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:  # this service, run from a source tree
        return package


def _signature() -> "ModelSignature":
    """Of the parameters alone: a schema of the data would have MLflow refuse what the model itself takes or names."""
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    types = {str: DataType.string, int: DataType.long}
    return ModelSignature(params=ParamSchema([ParamSpec(key, types[type(v)], v) for key, v in PARAMETERS.items()]))


def _log_metrics(
    client: "MlflowClient", logged: "LoggedModel", run_id: str, metrics: Mapping[str, float], step: int, when: int
) -> None:
    """Written twice at the same time they are there once."""
    from mlflow.entities import Metric

    points = [Metric(key, value, when, step, model_id=logged.model_id) for key, value in metrics.items()]
    client.log_batch(run_id, metrics=points, synchronous=True)


def _versions(client: "MlflowClient") -> Iterator[RegisteredVersion]:
    aliases = {model.name: model.aliases for model in every(client.search_registered_models)}
    for entry in every(client.search_model_versions):
        yield _row(entry, tuple(sorted(a for a, number in aliases[entry.name].items() if number == entry.version)))


def _row(entry: "ModelVersion", aliases: tuple[str, ...]) -> RegisteredVersion:
    numbers = {key: value for key, value in entry.tags.items() if key.startswith(METRIC_TAG)}
    return RegisteredVersion(
        name=entry.name,
        version=int(entry.version),
        aliases=aliases,
        run_id=entry.run_id,
        created=entry.creation_timestamp / 1000,
        tags={key: value for key, value in entry.tags.items() if key not in numbers},
        metrics={key.removeprefix(METRIC_TAG): float(value) for key, value in numbers.items()},
    )


def registered(client: "MlflowClient", model: str) -> RegisteredVersion:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION means."""
    parts = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/]+)|/(?P<version>\d+|latest))", model)
    with refusals(f"cannot look up {model}"):
        rows = sorted(_versions(client), key=lambda row: (row.name, row.version))
    for row in reversed(rows):
        if parts and row.name == parts["name"]:
            if parts["alias"] in row.aliases or parts["version"] in ("latest", str(row.version)):
                return row
    known = ["  " + " ".join([row.uri, *("@" + alias for alias in row.aliases)]) for row in rows]
    raise UserError(
        f"there is no model {model}; expected models:/NAME@ALIAS or models:/NAME/VERSION. Registered are:\n"
        + "\n".join(known or ["  none"])
    )
