"""Gradients averaged through memory that workers on one host share.

Floor 8. On CPUs torch has gloo, which sends gradients through sockets even to the process next door: a fifth of a round
of a small network (`python -m benchmarks.ray_train`). Here each worker writes its own to memory that all of them map,
and reads those of all. What is waited for goes through gloo still, and with it time limits and the death of a worker.
"""

import os
import tempfile
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

MEMORY = Path("/dev/shm")  # noqa: S108  a folder that lies in memory, on Linux
ALIGNED = 64  # bytes


class Neighbours:
    """All workers, two at least, of a group that lies on one host.

    Args:
        memory: [2, workers, bytes], the same for all. It is used half by half, so that one barrier is enough: whoever
            writes to a half again has passed the barrier after the one that ended its last use, which nobody passes
            who still reads it.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory, self._half, self._rank = memory, 0, dist.get_rank()
        self._nothing = torch.zeros(1)

    @classmethod
    def meet(cls, largest: int) -> Self | None:
        """Find out whether all workers are on one host; all of them call it.

        Args:
            largest: bytes of the largest tensor to be averaged.

        Returns:
            None where they are on several, or where the host has no such memory, or not enough; and for one alone.
        """
        workers, width = dist.get_world_size(), -(-largest // ALIGNED) * ALIGNED
        if workers < 2:
            return None
        path = _allocate(2 * workers * width) if dist.get_rank() == 0 else None
        named: list[str | None] = [None if path is None else str(path)]
        dist.broadcast_object_list(named)
        here = torch.tensor(named[0] is not None and os.path.exists(named[0]))
        dist.all_reduce(here, dist.ReduceOp.MIN)
        memory = None
        if here:
            memory = torch.from_file(str(named[0]), shared=True, size=2 * workers * width, dtype=torch.uint8)
            dist.barrier()
        if path is not None:
            path.unlink()  # the memory goes with the last process that maps it
        return None if memory is None else cls(memory.view(2, workers, width))

    def mean(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """The mean of a bucket of gradients over the workers, summed by rank: the same bits for all.

        A communication hook of DistributedDataParallel.
        """
        gradients = bucket.buffer()
        everybody = self._memory[self._half, :, : gradients.nbytes].view(gradients.dtype)
        self._half = 1 - self._half
        everybody[self._rank].copy_(gradients)
        dist.all_reduce(self._nothing)  # a barrier, and faster than gloo's
        torch.add(everybody[0], everybody[1], out=gradients)  # torch.mean over the first axis takes twice as long
        for other in everybody[2:]:
            gradients.add_(other)
        gradients.div_(len(everybody))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done


def _allocate(size: int) -> Path | None:
    """A new file in memory that has its bytes, so that no write to it can fail."""
    try:
        handle, name = tempfile.mkstemp(prefix="avb-", dir=MEMORY)
    except OSError:
        return None
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        os.unlink(name)
        return None
    finally:
        os.close(handle)
    return Path(name)
