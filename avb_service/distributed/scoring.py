"""Scoring a data set on all workers of a cluster.

Floor 8.
"""

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from avb_service.distributed.capacity import WORKER_SHARE, Capacity
from avb_service.errors import UserError
from avb_service.likelihood import Columns, Runner, Task


def on_cluster(capacity: Capacity, workers: int | None = None) -> Runner:
    """Score blocks on so many GPUs of the cluster, or cores where it has none; on all of them by default.

    Blocks come back in the order in which they are done. A block whose worker is lost is scored again, by Ray.

    Raises:
        UserError: there are fewer.
    """
    most = int(capacity.gpus or capacity.cpus)
    workers = workers or most
    if workers > most:
        raise UserError(f"--workers: given {workers}, expected at most {most}; the cluster has {capacity}")
    needs: dict[str, Any] = {"num_cpus": WORKER_SHARE, "num_gpus": 1 if capacity.gpus else 0}

    def run(task: Task, blocks: Sequence[range]) -> Iterator[tuple[range, Columns]]:
        import ray

        shared = ray.put(dataclasses.replace(task, model=copy.deepcopy(task.model).cpu(), x=task.x.cpu()))
        score = ray.remote(max_retries=-1, **needs)(score_block)
        waiting = deque(blocks)
        running: dict[Any, range] = {}
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # one each in hand, one each in the queue
                block = waiting.popleft()
                running[score.remote(shared, block)] = block
            (done,), _ = ray.wait(list(running))
            try:
                yield running.pop(done), ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # what went wrong with a datum, as it would have been raised here

    return run


def score_block(task: Task, block: range) -> Columns:
    """What a worker does: one core, or one GPU."""
    import torch

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = dataclasses.replace(task, model=task.model.to(device), x=task.x.to(device))
    return here.score(here.make(here.model), block)
