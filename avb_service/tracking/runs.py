"""One MLflow run: metrics, plots and tables as training goes, also through restarts.

Floor 7.
"""

import io
import json
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from avb_service.errors import UserError
from avb_service.tracking.server import artifact_root, connect, every, existing_is_fine, refusals, tracking_uri
from avb_service.trees import Tree, flatten, to_yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, RunTag
    from mlflow.entities import Run as RunEntity

Status = Literal["FINISHED", "FAILED", "KILLED"]
Picture = bytes | np.ndarray | Image.Image

PARENT = "mlflow.parentRunId"
RESUME_KEY = "avb.resume_key"
REASON = "avb.reason"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on runs, and not on traces of prompts
NOTE = "mlflow.note.content"  # tag: the description on a run's page, Markdown


class Run:
    """A run that exists, by its id; any number of threads and processes may hold it, one of which writes.

    What a resumed run repeats is written once: a metric or a plot that the run has at a step is not written again
    at that step or an earlier one. What is tried again, because nobody learned that it had arrived, is the same to the
    millisecond and to the name of its file, so it changes nothing. A process may be killed between any two writes:
    what belongs together is one of them, or begun again it is completed.

    Args:
        run_id: which.
        uri: where, as `tracking_uri` reads it.

    Raises:
        UserError: there is no such run.
    """

    def __init__(self, run_id: str, uri: str | None = None) -> None:
        self.run_id, self.tracking_uri = run_id, tracking_uri(uri)
        self._client = connect(self.tracking_uri)
        self._lock = threading.Lock()
        with refusals(f"cannot open run {run_id} at {self.tracking_uri}"):
            run = self._client.get_run(run_id)
        self._metric_steps = {
            key: max(point.step for point in self._client.get_metric_history(run_id, key)) for key in run.data.metrics
        }
        self._figure_steps = _figure_steps(self._client, run_id)

    @classmethod
    def start(
        cls,
        experiment: str,
        name: str,
        config: Tree,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resume_key: str | None = None,
        reopen: bool = True,
        begun: int | None = None,
        uri: str | None = None,
    ) -> "Run":
        """Start a run, or go on with the one that was started under the same key.

        Args:
            experiment: its name; made if it does not exist.
            name: what the run is called.
            config: the resolved configuration, logged as parameters and as config.yaml.
            parent: id of the run that this one is shown below.
            tags: more about the run.
            resume_key: what stays the same when the same work is started again, such as a trial id.
            reopen: whether a run that had ended is running again; otherwise only something is added to it.
            begun: when the work was, milliseconds since the epoch; now by default.
            uri: where, as `tracking_uri` reads it.

        Raises:
            UserError: the experiment was deleted, or MLflow refuses.
        """
        where = tracking_uri(uri)
        client = connect(where)
        with refusals(f"cannot start run {name!r} in experiment {experiment!r} at {where}"):
            experiment_id = _experiment(client, experiment, where).experiment_id
            marks = {PARENT: parent, RESUME_KEY: resume_key}
            described = {**(tags or {}), **{key: value for key, value in marks.items() if value}}
            run = _find(client, experiment_id, resume_key)
            if run is None:  # by one call, so that none is left that nobody finds again
                run = client.create_run(experiment_id, begun, described, name)
            elif reopen:
                client.update_run(run.info.run_id, status="RUNNING")
                if REASON in run.data.tags:
                    client.delete_tag(run.info.run_id, REASON)  # why it had ended
            _describe(client, run, config, described)
        return cls(run.info.run_id, where)

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None, when: int | None = None
    ) -> None:
        """Write the metrics at a step, in one request; those that the run has at this or a later step are skipped.

        Args:
            metrics: by name.
            step: the round.
            tags: what is true of the run from that step on.
            when: they were measured, milliseconds since the epoch; now by default.
        """
        from mlflow.entities import Metric

        when = _now() if when is None else when
        with self._lock:
            fresh = {key: value for key, value in metrics.items() if step > self._metric_steps.get(key, -1)}
            points = [Metric(key, float(value), when, step) for key, value in fresh.items()]
            self._client.log_batch(self.run_id, metrics=points, tags=_tags(tags or {}), synchronous=True)
            self._metric_steps |= dict.fromkeys(fresh, step)

    def log_figure(self, name: str, picture: Picture, step: int | None = None, when: int | None = None) -> None:
        """Show a picture.

        Args:
            name: letters, digits, _ - . / and spaces.
            picture: the bytes of an image file, a PIL image, or an array [H, W] or [H, W, 3] (uint8, or in [0, 1]).
            step: with it, the picture joins the grid that the UI shows step by step; without, it is the final
                one, figures/NAME.png.
            when: it was drawn, milliseconds since the epoch; now by default.
        """
        image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        if step is None:
            self._client.log_image(self.run_id, image, artifact_file=f"figures/{name}.png")
            return
        with self._lock:
            if step > self._figure_steps.get(_figure_key(name), -1):
                self._upload(name, image, step, _now() if when is None else when)
                self._figure_steps[_figure_key(name)] = step

    def _upload(self, name: str, image: "Image.Image | np.ndarray", step: int, when: int) -> None:
        """What MLflow's log_image does at a step, under a name that is the same when it is tried again."""
        from mlflow.tracking.multimedia import compress_image_size, convert_to_pil_image
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

        picture = convert_to_pil_image(image) if isinstance(image, np.ndarray) else image
        self._client.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, True)
        same = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.run_id}/{name}/{step}/{when}")
        stem = f"{_figure_key(name)}+step+{step}+timestamp+{when}+{same}"
        with tempfile.TemporaryDirectory() as folder:
            for part, ending in ((picture, ".png"), (compress_image_size(picture), "+compressed.webp")):
                path = Path(folder) / f"{stem}{ending}"
                part.save(path)
                self._client.log_artifact(self.run_id, str(path), "images")

    def log_table(self, name: str, columns: Mapping[str, Sequence[float | int | str]]) -> None:
        """Write tables/NAME.json, columns of equal length; a table of that name is replaced.

        MLflow's log_table would append to it, and would not list one that a call which was cut off has left.
        """
        import pandas
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        file = f"tables/{name}.json"
        table = pandas.DataFrame({key: list(column) for key, column in columns.items()})
        self._client.log_text(self.run_id, table.to_json(orient="split", index=False), file)
        shown = json.loads(self._client.get_run(self.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        if (entry := {"path": file, "type": "table"}) not in shown:
            self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*shown, entry]))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags, or replace them."""
        self._client.log_batch(self.run_id, tags=_tags(tags), synchronous=True)

    def finish(self, status: Status = "FINISHED", reason: str | None = None, when: int | None = None) -> None:
        """Close the run.

        Args:
            status: how it ended.
            reason: why, for a run that did not finish; kept as the tag avb.reason.
            when: it ended, milliseconds since the epoch; now by default.
        """
        if reason:
            self.set_tags({REASON: reason})
        self._client.set_terminated(self.run_id, status, when)

    def last_sign(self) -> int | None:
        """When it last recorded a number, milliseconds since the epoch; None where it never has."""
        latest = self._client.get_run(self.run_id).data.metrics
        points = (point for key in latest for point in self._client.get_metric_history(self.run_id, key))
        return max((point.timestamp for point in points), default=None)


def close_open_children(parent: str, status: Status = "KILLED", reason: str = "", uri: str | None = None) -> list[str]:
    """Close the runs below a parent that nobody will close; each ended with its last sign of life.

    Returns:
        The ids of the runs that were still open.
    """
    where = tracking_uri(uri)
    client = connect(where)
    with refusals(f"cannot close the runs below {parent} at {where}"):
        experiment_id = client.get_run(parent).info.experiment_id
        below = f"tags.`{PARENT}` = '{parent}' AND attributes.status = 'RUNNING'"
        children = [run.info.run_id for run in every(client.search_runs, [experiment_id], below)]
    for child in children:
        run = Run(child, where)
        run.finish(status, reason, run.last_sign())
    return children


def check_experiment(name: str, uri: str | None = None) -> None:
    """Make sure that runs may be recorded in an experiment, before there are any.

    Raises:
        UserError: it was deleted.
    """
    where = tracking_uri(uri)
    with refusals(f"cannot look for the experiment {name!r} at {where}"):
        _check_there(connect(where).get_experiment_by_name(name), where)


def parameters(config: Tree) -> dict[str, str]:
    """What a configuration says as MLflow's parameters, dotted path to text, no longer than MLflow takes."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH

    leaves = [(path, value) for path, value in flatten(config).items() if value is not None]
    return {path[:MAX_ENTITY_KEY_LENGTH]: str(value)[:MAX_PARAM_VAL_LENGTH] for path, value in leaves}


def _experiment(client: "MlflowClient", name: str, uri: str) -> "Experiment":
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        root = artifact_root(uri)
        with existing_is_fine():
            client.create_experiment(name, artifact_location=root.as_uri() if root else None, tags=KIND)
        return _experiment(client, name, uri)
    _check_there(experiment, uri)
    return experiment


def _check_there(experiment: "Experiment | None", uri: str) -> None:
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"the experiment {experiment.name!r} was deleted at {uri}: choose another name, or restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )


def _find(client: "MlflowClient", experiment_id: str, resume_key: str | None) -> "RunEntity | None":
    if resume_key is None:
        return None
    runs = client.search_runs([experiment_id], f"tags.`{RESUME_KEY}` = '{resume_key}'", max_results=1)
    return runs[0] if runs else None


def _describe(client: "MlflowClient", run: "RunEntity", config: Tree, tags: Mapping[str, str]) -> None:
    """Log what a run is of; parameters are immutable in MLflow, so a resumed run keeps those that it has."""
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in parameters(config).items() if key not in run.data.params]
    client.log_batch(run.info.run_id, params=params, tags=_tags(tags), synchronous=True)
    client.log_text(run.info.run_id, to_yaml(config), "config.yaml")


def _tags(tags: Mapping[str, str]) -> "list[RunTag]":
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _figure_key(name: str) -> str:
    return name.replace("/", "~")  # as MLflow writes it in the file's name


def _figure_steps(client: "MlflowClient", run_id: str) -> dict[str, int]:
    """The last step of each plot in the grid, from the names that MLflow gives the files."""
    steps: dict[str, int] = {}
    for artifact in client.list_artifacts(run_id, "images"):
        if match := re.match(r"images/(.+)\+step\+(\d+)\+.*webp$", artifact.path):  # the last of its files
            steps[match[1]] = max(int(match[2]), steps.get(match[1], -1))
    return steps
