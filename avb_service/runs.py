"""A run: what is to be trained, what lies in its folder, and how it ended. Knows nothing of Ray.

Floor 7.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from avb_service.checkpoint import CheckpointStore
from avb_service.data.datasets import Dataset
from avb_service.errors import UserError
from avb_service.fitting import best_model
from avb_service.formats import FORMAT, KEY, known_format
from avb_service.lock import OneOwner, Owned
from avb_service.model import Model
from avb_service.report import assess
from avb_service.settings import ExperimentConfig, check_continues
from avb_service.storage import write_json
from avb_service.tracking import Outbox, Run, Status, deliver
from avb_service.tracking.publish import Published, publish
from avb_service.trees import Tree

JOB, OUTCOME, OUTBOX = "job.json", "outcome.json", "outbox"
PATIENCE = 30  # seconds that a worker which is done waits for MLflow; it holds cores, and what is left stays on disk
LAST = 600  # seconds that the command waits at its end


@dataclass(frozen=True)
class Job(OneOwner):
    """What a group of workers has to train, and under which name.

    Attributes:
        config: the resolved configuration.
        folder: of this model alone, on a disk that all hosts share.
        name: of the run.
        key: stays the same when the job is started again, so that its run is found again.
        parent: run that this one is shown below.
        tracking_uri: where the run is recorded; absolute.
        tags: more about the run.
        owned: what says that nobody else is at work on it; None where nobody else can be, as in one process.
    """

    config: ExperimentConfig
    folder: Path
    name: str
    key: str
    parent: str | None
    tracking_uri: str
    tags: Mapping[str, str]
    owned: Owned | None = None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"

    def run(self, begun: int | None = None, reopen: bool = False) -> Run:
        """Its MLflow run: a new one, or the one that was started before.

        Args:
            begun: when a new one has, milliseconds since the epoch; now by default.
            reopen: whether it is running again, where it had ended.
        """
        return Run.start(
            self.config.tracking.experiment,
            self.name,
            self.config.tree(),
            parent=self.parent,
            tags=self.tags,
            resume_key=self.key,
            reopen=reopen,
            begun=begun,
            uri=self.tracking_uri,
        )

    def outbox(self, reopen: bool = False) -> Outbox:
        """A recorder for its run, that keeps what MLflow cannot take just now.

        Args:
            reopen: whether the run goes on, where it had ended; not if the job ends before MLflow is reached.
        """

        def opened(begun: int | None) -> Run:
            return self.run(begun, reopen and Outcome.read(self.folder) is None)

        return Outbox(self.folder / OUTBOX, opened, self.tracking_uri)

    def close(self, status: Status, reason: str) -> None:
        """Close its run in the place of workers that did not; that waits where MLflow does not answer.

        Raises:
            TakenOverError: it is another's now.
        """
        self.check_owned()
        box = self.outbox()
        box.finish(status, reason)
        box.close(PATIENCE)

    def deliver(self, on_wait: Callable[[str], None]) -> None:
        """Hand MLflow what the workers could not.

        Args:
            on_wait: told what is waited for.

        Raises:
            UserError: MLflow does not answer for minutes, or refuses; what it has to get is kept.
        """
        deliver(self.folder / OUTBOX, self.run, self.tracking_uri, LAST, on_wait)

    def assess(self, dataset: Dataset | None = None, **scoring: Any) -> Model:  # noqa: ANN401
        """The best model that it has trained, with its likelihoods on held-out data; what is scored is kept.

        Args:
            dataset: its data, where they have been read.
            scoring: who scores the data, and who is told; options of `likelihood.Evaluator`.

        Raises:
            UserError: it has trained none yet, or its data are missing.
        """
        model = best_model(self.config, self.checkpoints, dataset)
        return replace(model, likelihood=assess(model, store=self.folder / "scores", **scoring))

    def publish(self, model: Model, candidate: bool = True) -> Published:
        """Register what `assess` gave; a candidate may become champion."""
        return publish(model, self.run(), self.folder / "model", candidate, self.check_owned)

    def end(self, outcome: "Outcome") -> None:
        """Keep how it ended.

        Raises:
            TakenOverError: it is another's now.
            OSError: it cannot be written.
        """
        self.check_owned()
        outcome.write(self.folder)

    def check(self) -> "Job | None":
        """Make sure that it may be begun in its folder.

        Returns:
            As it was begun there before; None where it was not.

        Raises:
            UserError: another was begun there; names the differing lines.
        """
        if not (self.folder / JOB).exists():
            return None
        before = Job.read(self.folder)
        check_continues(
            before.config,
            self.config,
            f"{self.name} was begun with another configuration",
            "Give the same configuration, or another --name",
        )
        return before

    def begin(self) -> None:
        """Write the job to its folder. One that has ended, and is given more rounds, has not ended.

        Raises:
            UserError: another job was begun there, or the folder cannot be written.
            TakenOverError: it is another's now.
        """
        self.check_owned()
        before, path = self.check(), self.folder / JOB
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if before is not None and before.config.training.rounds < self.config.training.rounds:
                if Outcome.read(self.folder) == Outcome("finished"):
                    (self.folder / OUTCOME).unlink()
            write_json(path, replace(self, owned=None).tree())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --storage") from error

    def tree(self) -> Tree:
        """As JSON has it."""
        owned = {} if self.owned is None else {"owned": asdict(self.owned)}
        own = {"config": self.config.tree(), "folder": str(self.folder), "tags": dict(self.tags)}
        return {KEY: FORMAT, **{key: value for key, value in vars(self).items() if key != "owned"}, **own, **owned}

    @classmethod
    def of_tree(cls, tree: Tree) -> Self:
        """The inverse of `tree`; format 0 is as format 1, without its number.

        Raises:
            UserError: a later release wrote it.
        """
        known_format(tree, Path(tree["folder"]) / JOB)
        fields = {name: value for name, value in tree.items() if name != KEY}
        config, folder = ExperimentConfig.parse(tree["config"], tree["name"]), Path(tree["folder"])
        owned = Owned(**tree["owned"]) if "owned" in tree else None
        return cls(**{**fields, "config": config, "folder": folder, "owned": owned})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The job that was begun in a folder, where that is now."""
        job = cls.of_tree(json.loads((folder / JOB).read_text(encoding="utf-8")))
        return replace(job, folder=folder)

    @classmethod
    def alone(cls, config: ExperimentConfig, name: str, folder: Path, uri: str) -> Self:
        """A model that belongs to no search; nothing is written before it is trained, so that it may be refused.

        Args:
            config: with absolute paths.
            name: of the run.
            folder: of this model alone, on a disk that all hosts share.
            uri: of MLflow; absolute.

        Raises:
            UserError: another job was begun there, or its checkpoints are damaged.
        """
        job = cls(config, folder, name, name, None, uri, {"avb.kind": "single"})
        job.check()
        CheckpointStore(job.checkpoints).latest()  # what is damaged is named here; workers speak to Ray's logs
        return job


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: refused, where something is to be put right before it can go on; stopped by a scheduler, or failed by
            the death of its processes, where it goes on if it is begun again.
        reason: why it did not finish.
    """

    status: Literal["finished", "diverged", "refused", "stopped", "failed"]
    reason: str = ""

    def __str__(self) -> str:
        """For people."""
        return f"{self.status} {self.reason}".strip()

    def write(self, folder: Path) -> None:
        """Keep it in the folder of its job."""
        write_json(folder / OUTCOME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """How the job in a folder ended; None where it has not."""
        path = folder / OUTCOME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
