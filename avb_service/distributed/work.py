"""What a process does with a job: alone, or as one of several workers.

Floor 8. How the process was started is its caller's business: by Ray Train, or by Ray Tune for trial after trial.
"""

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from avb_service.errors import DivergenceError, TakenOverError, UserError
from avb_service.fitting import Fit, Heed, OnReport
from avb_service.report import tags
from avb_service.runs import OUTCOME, PATIENCE, Job, Outcome
from avb_service.tracking import Outbox
from avb_service.training.turn import Average

HOSTS = "avb.hosts"  # tag of a run: where its workers are, or were when it was last started


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a model.

    Attributes:
        device: that it computes on.
        rank: which of them it is.
        workers: how many there are.
        hosts: where they are.
        averaging: makes the mean over them; none in one process.
    """

    device: torch.device
    rank: int = 0
    workers: int = 1
    hosts: tuple[str, ...] = (socket.gethostname(),)
    averaging: Callable[[Tensor], Average] | None = None


def begun(job: Job) -> Outcome | None:
    """Begin a job in its folder.

    Returns:
        How it has ended, where there is nothing left to train.

    Raises:
        UserError: the folder holds another job.
    """
    job.begin()
    ended = Outcome.read(job.folder)
    if ended is not None and ended.status not in ("finished", "diverged"):
        (job.folder / OUTCOME).unlink()
        return None
    return ended


def ended_with(job: Job, outcome: Outcome) -> Outcome:
    """Keep how a job has ended.

    Raises:
        UserError: the worker refused it; it can go on when that is put right.
    """
    if outcome.status == "refused":
        job.check_owned()  # says the same as a worker that has found out, and that it is no fault of the model
        raise UserError(outcome.reason)
    job.end(outcome)
    return outcome


def train_here(job: Job, worker: Worker, on_report: Callable[[Mapping[str, float]], None], heed: Heed) -> Outcome:
    """Train in this process, from the newest checkpoint if there is one, and not at all if the job has ended before.

    Raises:
        UserError: it was refused, or the folder holds another job.
    """
    return begun(job) or ended_with(job, work(job, worker, on_report, heed))


def work(job: Job, worker: Worker, on_report: Callable[[Mapping[str, float]], None], heed: Heed) -> Outcome:
    """Train a worker's share of every batch; the first worker saves and records.

    Args:
        job: that has begun.
        worker: this one.
        on_report: called by every worker with the round and its numbers.
        heed: called by every worker every few rounds, with a function that saves the state.

    Returns:
        How it ended. A `UserError` is an answer and no crash, after which the workers would be started again.
    """
    torch.set_num_threads(max(1, int(job.config.scaling.cpus_per_worker)))
    box = job.outbox(reopen=True) if worker.rank == 0 else None
    try:
        _train(job, worker, box, lambda round_, metrics: on_report({"round": round_, **metrics}), heed)
    except TakenOverError as error:  # the run is another's now, and not ours to close
        return Outcome("refused", str(error))
    except UserError as error:
        if box is not None:
            with suppress(UserError):  # it may be MLflow that refuses
                box.finish("FAILED", str(error))
                box.close(PATIENCE)
        return Outcome("diverged" if isinstance(error, DivergenceError) else "refused", str(error))
    finally:
        if box is not None:
            with suppress(UserError):
                box.close(0)  # whoever stopped it closes the run, and the process goes on with another job
    return Outcome("finished")


def _train(job: Job, worker: Worker, box: Outbox | None, on_report: OnReport, heed: Heed) -> None:
    if box is not None:
        box.set_tags({HOSTS: ", ".join(sorted(set(worker.hosts)))})
    fit = Fit(
        job.config,
        job.checkpoints,
        recorder=box,
        rank=worker.rank,
        workers=worker.workers,
        device=worker.device,
        averaging=worker.averaging,
        check=job.check_owned,
    )
    fit.run(on_report, heed)
    if box is not None:
        job.check_owned()
        box.set_tags(tags(fit.model))
        box.finish()
        box.close(PATIENCE)
