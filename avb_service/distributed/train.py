"""One model, trained by Ray Train workers.

Floor 8.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from avb_service.distributed.averaging import averaging
from avb_service.distributed.capacity import room
from avb_service.distributed.cluster import ROOM
from avb_service.distributed.interrupts import interruptible
from avb_service.distributed.work import Worker, begun, ended_with, work
from avb_service.errors import DivergenceError, UserError
from avb_service.runs import Job, Outcome


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

    from avb_service.distributed.preemption import HeedingTorchConfig
    from avb_service.distributed.startup import LeanTrainer, StartsInTime

    if (ended := begun(job)) is not None:
        return ended
    folder, scaling = job.folder, job.config.scaling
    watching: list[Any] = [*(callbacks or []), StartsInTime(ROOM + scaling.collective_timeout_s)]
    trainer = LeanTrainer(
        cast(Callable[[dict[Any, Any]], None], _work),  # its annotation has not caught up with return_value
        train_loop_config=job.tree(),
        scaling_config=ScalingConfig(
            num_workers=cast(int, (scaling.min_workers, scaling.workers) if scaling.min_workers else scaling.workers),
            use_gpu=bool(scaling.gpus_per_worker),
            resources_per_worker=room(scaling),
            placement_strategy="PACK",  # on as few hosts as can be
        ),
        torch_config=HeedingTorchConfig(
            backend="nccl" if scaling.gpus_per_worker else "gloo", timeout_s=scaling.collective_timeout_s
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=watching,
        ),
    )
    with interruptible(), _named(job):
        result = trainer.fit()
    return ended_with(job, Outcome(**getattr(result, "return_value")))  # noqa: B009  missing from the annotated class


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
        last, most = str(error).strip().splitlines()[-1].strip().partition(". ")[0], job.config.scaling.max_failures
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


def _work(loop_config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in each of its workers."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from avb_service.distributed.preemption import Preemption, preempted

    job, context, device = Job.of_tree(loop_config), ray.train.get_context(), get_device()
    workers, limit = context.get_world_size(), job.config.scaling.collective_timeout_s
    hosts: list[str] = [""] * workers
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    mean = partial(averaging, timeout_s=limit) if workers > 1 else None
    worker = Worker(device, context.get_world_rank(), workers, tuple(hosts), mean)
    return asdict(work(job, worker, ray.train.report, Preemption(device, preempted)))
