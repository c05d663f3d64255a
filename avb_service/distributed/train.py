"""One model, trained by Ray Train workers.

Floor 8.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from avb_service.config import Tree
from avb_service.distributed.cluster import worker_cpus
from avb_service.errors import UserError
from avb_service.experiment import Experiment, ExperimentConfig
from avb_service.tracking import Run

JOB, OUTCOME = "job.json", "outcome.json"


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

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job that was begun in a folder."""
        return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        run_id: of its MLflow run.
        failure: why it failed, where trying again would fail again; None where it finished.
    """

    run_id: str
    failure: str | None = None

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
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(job.folder)
    if (ended := Outcome.read(folder)) is not None:
        return ended
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB).write_text(json.dumps(asdict(job), indent=2), encoding="utf-8")
    scaling = ExperimentConfig.parse(job.config).scaling
    resources = {"CPU": worker_cpus(scaling)}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    result = TorchTrainer(
        work,
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers, use_gpu=bool(scaling.gpus_per_worker), resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if scaling.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=job.folder,
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=callbacks or [],
        ),
    ).fit()
    outcome = Outcome(**result.return_value)
    (folder / OUTCOME).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def work(loop_config: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs: the same experiment, a share of every batch.

    A `UserError` is an answer and not a crash: it is returned, since Ray Train would start the workers again.
    """
    import ray.train
    import torch
    from ray.train.torch import get_device

    job = Job(**loop_config)
    config = ExperimentConfig.parse(job.config)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    run = _run(job, config) if rank == 0 else None
    try:
        experiment = Experiment(
            config, job.checkpoints, recorder=run, rank=rank, workers=workers, device=get_device(),
            wrap=nn.parallel.DistributedDataParallel if workers > 1 else None,
        )  # fmt: skip
        experiment.fit(lambda round_, metrics: ray.train.report({"round": round_, **metrics}))
    except UserError as error:
        if run is not None:
            run.finish("FAILED", str(error))
        return asdict(Outcome(run.run_id if run else "", str(error)))
    if run is not None:
        run.set_tags(experiment.tags())
        run.finish()
    return asdict(Outcome(run.run_id if run else ""))


def _run(job: Job, config: ExperimentConfig) -> Run:
    return Run.start(
        config.tracking.experiment, job.name, job.config,
        parent=job.parent, tags=job.tags, resume_key=job.key, uri=job.tracking_uri,
    )  # fmt: skip
