"""One model, trained by Ray Train workers.

Floor 8.
"""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from avb_service.checkpoint import CheckpointStore
from avb_service.distributed.averaging import averaging
from avb_service.distributed.cluster import ROOM, worker_cpus
from avb_service.distributed.interrupts import interruptible
from avb_service.errors import DivergenceError, UserError
from avb_service.experiment import Experiment
from avb_service.records import LikelihoodRecord
from avb_service.settings import ExperimentConfig
from avb_service.storage import write_json
from avb_service.tracking import Outbox, Run, Status, deliver
from avb_service.tracking.publish import Published, publish
from avb_service.trees import Tree, must_match

JOB, OUTCOME, OUTBOX = "job.json", "outcome.json", "outbox"
HOSTS = "avb.hosts"  # tag of a run: where its workers are, or were when it was last started
PATIENCE = 30  # seconds that a worker which is done waits for MLflow; it holds cores, and what is left stays on disk
LAST = 600  # seconds that the command waits at its end


@dataclass(frozen=True)
class Job:
    """What a group of workers has to train, and under which name.

    Attributes:
        config: the resolved configuration.
        folder: of this model alone, on a disk that all hosts share.
        name: of the run.
        key: stays the same when the job is started again, so that its run is found again.
        parent: run that this one is shown below.
        tracking_uri: where the run is recorded; absolute.
        tags: more about the run.
    """

    config: Tree
    folder: str
    name: str
    key: str
    parent: str | None
    tracking_uri: str
    tags: Mapping[str, str]

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return Path(self.folder) / "checkpoints"

    @property
    def settings(self) -> ExperimentConfig:
        """The configuration, parsed."""
        return ExperimentConfig.parse(self.config, self.name)

    def run(self, begun: int | None = None, reopen: bool = False) -> Run:
        """Its MLflow run: a new one, or the one that was started before.

        Args:
            begun: when a new one has, milliseconds since the epoch; now by default.
            reopen: whether it is running again, where it had ended.
        """
        return Run.start(
            self.settings.tracking.experiment,
            self.name,
            self.config,
            parent=self.parent,
            tags=self.tags,
            resume_key=self.key,
            reopen=reopen,
            begun=begun,
            uri=self.tracking_uri,
        )

    def outbox(self, reopen: bool = False) -> Outbox:
        """A recorder for its run, that keeps what MLflow cannot take just now."""
        return Outbox(Path(self.folder) / OUTBOX, partial(self.run, reopen=reopen), self.tracking_uri)

    def close(self, status: Status, reason: str) -> None:
        """Close its run in the place of workers that did not; that waits where MLflow does not answer."""
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
        deliver(Path(self.folder) / OUTBOX, self.run, self.tracking_uri, LAST, on_wait)

    def trained(self) -> Experiment:
        """The best model that it has trained, to be scored and drawn."""
        experiment = Experiment(self.settings, self.checkpoints)
        experiment.load_best()
        return experiment

    def assess(self, **scoring: Any) -> LikelihoodRecord:  # noqa: ANN401
        """The likelihoods of that model on held-out data; what is scored is kept.

        Args:
            scoring: who scores the data, and who is told; options of `likelihood.Evaluator`.
        """
        return self.trained().assess(store=Path(self.folder) / "scores", **scoring)

    def publish(self, record: LikelihoodRecord, candidate: bool = True) -> Published:
        """Register that model with what `assess` gave; a candidate may become champion."""
        return publish(self.trained(), record, self.run(), Path(self.folder) / "model", candidate)

    def check(self) -> None:
        """Make sure that it may be begun in its folder.

        Raises:
            UserError: another was begun there; names the differing lines.
        """
        path = Path(self.folder) / JOB
        if path.exists():
            must_match(
                Job.read(path.parent).settings.identity(),
                self.settings.identity(),
                f"{self.name} was begun with another configuration",
                "Give the same configuration, or another --name",
            )

    def begin(self) -> None:
        """Write the job to its folder.

        Raises:
            UserError: another job was begun there, or the folder cannot be written.
        """
        self.check()
        path = Path(self.folder) / JOB
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(self))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --storage") from error

    @classmethod
    def alone(cls, config: ExperimentConfig, name: str, folder: Path, uri: str) -> "Job":
        """A model that belongs to no search; nothing is written before it is trained, so that it may be refused.

        Args:
            config: with absolute paths.
            name: of the run.
            folder: of this model alone, on a disk that all hosts share.
            uri: of MLflow; absolute.

        Raises:
            UserError: another job was begun there, or its checkpoints are damaged.
        """
        job = cls(config.tree(), str(folder), name, name, None, uri, {"avb.kind": "single"})
        job.check()
        CheckpointStore(job.checkpoints).latest()  # what is damaged is named here; workers speak to Ray's logs
        return job

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job that was begun in a folder."""
        return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))


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
    def read(cls, folder: Path) -> "Outcome | None":
        """How the job in a folder ended; None where it has not."""
        path = folder / OUTCOME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def train(job: Job, callbacks: list[Any] | None = None) -> Outcome:
    """Train on Ray: from the newest checkpoint if there is one, and not at all if the job has ended before.

    Args:
        job: what to train.
        callbacks: of Ray Train, such as Tune's.

    Returns:
        How it ended: finished, or diverged.

    Raises:
        UserError: the workers refused the data or did not start, or the folder holds another job.
        KeyboardInterrupt: somebody stopped it.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from avb_service.distributed.notice import HeedingTorchConfig
    from avb_service.distributed.startup import LeanTrainer, StartsInTime

    job.begin()
    folder, scaling = Path(job.folder), job.settings.scaling
    if (ended := Outcome.read(folder)) is not None:
        if ended.status in ("finished", "diverged"):
            return ended
        (folder / OUTCOME).unlink()
    watching: list[Any] = [*(callbacks or []), StartsInTime(ROOM + scaling.collective_timeout_s)]
    resources = {"CPU": worker_cpus(scaling)}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    trainer = LeanTrainer(
        cast(Callable[[dict[Any, Any]], None], work),  # its annotation has not caught up with return_value
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(
            num_workers=cast(int, (scaling.min_workers, scaling.workers) if scaling.min_workers else scaling.workers),
            use_gpu=bool(scaling.gpus_per_worker),
            resources_per_worker=resources,
            placement_strategy="PACK",  # on as few hosts as can be
        ),
        torch_config=HeedingTorchConfig(
            backend="nccl" if scaling.gpus_per_worker else "gloo", timeout_s=scaling.collective_timeout_s
        ),
        run_config=RunConfig(
            name="train",
            storage_path=job.folder,
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=watching,
        ),
    )
    with interruptible(), _named(job):
        result = trainer.fit()
    outcome = Outcome(**getattr(result, "return_value"))  # noqa: B009  missing from the annotated class
    if outcome.status == "refused":
        raise UserError(outcome.reason)
    outcome.write(folder)
    return outcome


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Say whose workers it was, where what starts them has ended.

    Raises:
        UserError: it has.
    """
    import ray
    from ray.exceptions import RayActorError

    try:
        yield
    except RayActorError as error:
        raise UserError(
            f"what starts the workers of {job.name} has ended, or gave them up since they did not start in time; its "
            f"log says why ({ray.get_runtime_context().get_temp_dir()}/session_latest/logs/train). The same command "
            "goes on from the last checkpoint"
        ) from error


def train_alone(job: Job, callbacks: list[Any]) -> None:
    """Train one model that belongs to no search, from `Job.alone`.

    Raises:
        UserError: it was refused, diverged, or its workers failed too often.
        KeyboardInterrupt: somebody stopped it.
    """
    from ray.train import TrainingFailedError

    try:
        outcome = train(job, callbacks)
    except KeyboardInterrupt:
        job.close("KILLED", "interrupted; the same command continues it")
        raise
    except UserError as error:
        _close(job, str(error))
        raise
    except TrainingFailedError as error:
        last, most = str(error).strip().splitlines()[-1].strip().partition(". ")[0], job.settings.scaling.max_failures
        reason = (
            f"the workers of {job.name} failed more often than scaling.max_failures allows, which is {most}: {last}. "
            f"The same command with --name {job.name} goes on from the last checkpoint"
        )
        _close(job, reason)
        raise UserError(reason) from error
    if outcome.status == "diverged":
        raise DivergenceError(f"{job.name} diverged: {outcome.reason}")


def _close(job: Job, reason: str) -> None:
    with suppress(UserError):  # it may be MLflow that refuses, and there is another reason to tell
        job.close("FAILED", reason)


def work(loop_config: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs: the same experiment, a share of every batch.

    A `UserError` is an answer and not a crash: it is returned, since Ray Train would start the workers again.
    """
    import ray.train
    import torch
    from ray.train.torch import get_device

    from avb_service.distributed.notice import Notice

    job = Job(**loop_config)
    config = job.settings
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    hosts: list[str] = [""] * workers
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    box = job.outbox(reopen=True) if rank == 0 else None
    if box is not None:
        box.set_tags({HOSTS: ", ".join(sorted(set(hosts)))})
    try:
        experiment = Experiment(
            config,
            job.checkpoints,
            recorder=box,
            rank=rank,
            workers=workers,
            device=get_device(),
            averaging=partial(averaging, timeout_s=config.scaling.collective_timeout_s) if workers > 1 else None,
        )
        experiment.fit(lambda round_, metrics: ray.train.report({"round": round_, **metrics}), Notice(get_device()))
        if box is not None:
            box.set_tags(experiment.tags())
            box.finish()
            box.close(PATIENCE)
    except UserError as error:
        if box is not None:
            with suppress(UserError):  # it may be MLflow that refuses
                box.finish("FAILED", str(error))
                box.close(PATIENCE)
        return asdict(Outcome("diverged" if isinstance(error, DivergenceError) else "refused", str(error)))
    return asdict(Outcome("finished"))
