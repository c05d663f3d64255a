"""Likelihoods of models that were not made here: a run keeps each, and nothing is registered, so none becomes champion.

Floor 7.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from avb_service.errors import DataError
from avb_service.records import LIKELIHOOD, LikelihoodRecord
from avb_service.tracking.card import labels, likelihoods, log_columns, numbers
from avb_service.tracking.registry import CONTENT, bound
from avb_service.tracking.runs import NOTE, Run
from avb_service.tracking.server import connect, every, refusals, tracking_uri

EXTERNAL = "external"  # in the place of a method
KIND = "avb.kind"  # tag of a run: what it keeps


@dataclass(frozen=True)
class External:
    """A row of the leaderboard that is no registered model.

    Attributes:
        name: as its owner calls it.
        run_id: the run that keeps its likelihoods.
        tags: what it was scored on, and what came of it.
        metrics: its numbers, nats per datum unless the name says otherwise.
    """

    name: str
    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]
    version: ClassVar[None] = None
    aliases: ClassVar[tuple[str, ...]] = ()

    @property
    def uri(self) -> str:
        """What `compare` takes."""
        return f"runs:/{self.run_id}"

    def bound(self, estimator: str) -> float | None:
        """As of a registered version."""
        return bound(self.tags, self.metrics, estimator)


def keep(
    name: str,
    data: str,
    record: LikelihoodRecord,
    experiment: str,
    picture: bytes | None = None,
    uri: str | None = None,
) -> str:
    """Keep a record in a run of its own, with a card, every datum's numbers and a plot; once, also when called again.

    Args:
        name: of the model.
        data: what they are called.
        record: with its basis.
        experiment: MLflow's; made if it does not exist.
        picture: the estimates on one axis, PNG.
        uri: where, as `tracking_uri` reads it.

    Returns:
        runs:/ID, which `compare` takes.

    Raises:
        UserError: the experiment was deleted, or MLflow refuses.
    """
    content = record.to_json()
    key = hashlib.sha256(b"\0".join([name.encode(), data.encode(), content])).hexdigest()
    run = Run.start(experiment, name, {"name": name, "data": data, **record.basis}, resume_key=key, uri=uri)
    card = f"# {name}\n\nNot made here: scored as it was given, on {data}.\n\n{likelihoods(record)}\n"
    for file, text in ((LIKELIHOOD, content.decode()), ("card.md", card)):
        connect(run.tracking_uri).log_text(run.run_id, text, file)
    log_columns(record, run)
    if picture is not None:
        run.log_figure("bounds", picture)
    checksum = hashlib.sha256(content).hexdigest()
    tags = {NOTE: card, KIND: EXTERNAL, "method": EXTERNAL, "data": data, CONTENT: checksum, **labels(record)}
    run.log_metrics(numbers(record), 0, tags)  # by this it is on the leaderboard, so it is last
    run.finish()
    return f"runs:/{run.run_id}"


def externals(uri: str | None = None) -> list[External]:
    """All that are kept, the newest first."""
    where = tracking_uri(uri)
    client = connect(where)
    with refusals(f"cannot list the runs at {where}"):
        experiments = [each.experiment_id for each in every(client.search_experiments)]
        runs = every(client.search_runs, experiments, f"tags.`{KIND}` = '{EXTERNAL}'") if experiments else ()
        return [External(run.info.run_name, run.info.run_id, run.data.tags, run.data.metrics) for run in runs]


def kept(run: str, uri: str | None = None) -> LikelihoodRecord | None:
    """The record that a run keeps; None where it is a run of another kind.

    Args:
        run: runs:/ID, also with the name of a model behind it.
        uri: where, as `tracking_uri` reads it.

    Raises:
        UserError: there is no such run.
        DataError: the record is damaged.
    """
    where, run_id = tracking_uri(uri), run.removeprefix("runs:/").partition("/")[0]
    client = connect(where)
    with refusals(f"cannot look up {run}"), tempfile.TemporaryDirectory() as folder:
        tags = client.get_run(run_id).data.tags
        if tags.get(KIND) != EXTERNAL:
            return None
        content = Path(client.download_artifacts(run_id, LIKELIHOOD, folder)).read_bytes()
    if hashlib.sha256(content).hexdigest() != tags.get(CONTENT):
        raise DataError(f"{LIKELIHOOD} of {run} is damaged: it does not match its checksum. Score the model again")
    return LikelihoodRecord.from_json(content)
