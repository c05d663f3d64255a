"""Gradients averaged through memory that workers on one host share.

Floor 8. On CPUs torch has gloo, which sends gradients through sockets even to the process next door: a fifth of a round
of a small network (`python -m benchmarks.ray_train`). Here each worker writes its own to memory that all of them map,
says so to each of the others by a byte, and reads those of all. Gloo's barriers would wake three threads for that byte.
"""

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

MEMORY = Path("/dev/shm")  # noqa: S108  a folder that lies in memory, on Linux
ALIGNED = 64  # bytes
GRADIENTS = "gradients"  # the file; beside it each rank has a socket


class Neighbours:
    """All workers, two at least, of a group that lies on one host.

    Args:
        memory: [2, workers, bytes], the same for all. It is used half by half, so that one barrier is enough: whoever
            writes to a half again has passed the barrier after the one that ended its last use, which nobody passes
            who still reads it.
        others: a connection to each of them.
    """

    def __init__(self, memory: Tensor, others: list[socket.socket]) -> None:
        self._memory, self._others, self._half, self._rank = memory, others, 0, dist.get_rank()

    @classmethod
    def meet(cls, largest: int, timeout_s: float) -> Self | None:
        """Find out whether all workers are on one host; all of them call it.

        Args:
            largest: bytes of the largest tensor to be averaged.
            timeout_s: how long each waits for another, seconds.

        Returns:
            None where they are on several, or where the host has no such memory, or not enough; and for one alone.
        """
        rank, workers, width = dist.get_rank(), dist.get_world_size(), -(-largest // ALIGNED) * ALIGNED
        if workers < 2:
            return None
        folder = _allocate(2 * workers * width) if rank == 0 else None
        named: list[str | None] = [None if folder is None else str(folder)]
        dist.broadcast_object_list(named)
        here = torch.tensor(named[0] is not None and os.path.exists(named[0]))
        dist.all_reduce(here, dist.ReduceOp.MIN)
        neighbours = None
        if here and named[0] is not None:
            file = os.path.join(named[0], GRADIENTS)
            memory = torch.from_file(file, shared=True, size=2 * workers * width, dtype=torch.uint8)
            neighbours = cls(memory.view(2, workers, width), _connect(named[0], rank, workers, timeout_s))
        if folder is not None:
            shutil.rmtree(folder)  # the memory goes with the last process that maps it
        return neighbours

    def mean(self, gradients: Tensor) -> None:
        """Replace a tensor by its mean over the workers, summed by rank: the same bits for all.

        Raises:
            RuntimeError: another worker has ended, or does not come.
        """
        everybody = self._memory[self._half, :, : gradients.nbytes].view(gradients.dtype)
        self._half = 1 - self._half
        torch.div(gradients, len(everybody), out=everybody[self._rank])
        self._wait()
        torch.add(everybody[0], everybody[1], out=gradients)  # torch.sum over the first axis takes twice as long
        for other in everybody[2:]:
            gradients.add_(other)

    def _wait(self) -> None:
        """A barrier: what any has written before it, all can read after it."""
        try:
            for other in self._others:
                other.sendall(b".")
            for other in self._others:
                if not other.recv(1):
                    raise ConnectionError("it has closed its connection")
        except OSError as error:
            raise RuntimeError(f"rank {self._rank} waited for another on its host in vain: {error}") from error


def _allocate(size: int) -> Path | None:
    """A new folder with a file in memory that has its bytes, so that no write to it can fail."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="avb-", dir=MEMORY))
    except OSError:
        return None
    try:
        with open(folder / GRADIENTS, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        shutil.rmtree(folder)
        return None
    return folder


def _connect(folder: str, rank: int, workers: int, timeout_s: float) -> list[socket.socket]:
    """A connection to each of the other workers, made through sockets in a folder that all of them see."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(os.path.join(folder, str(rank)))
        door.listen(workers)
        door.settimeout(timeout_s)
        dist.barrier()  # all doors are there
        others = []
        for other in range(rank):
            others.append(socket.socket(socket.AF_UNIX))
            others[-1].connect(os.path.join(folder, str(other)))
        others += [door.accept()[0] for _ in range(rank + 1, workers)]
        dist.barrier()  # all have come in
    for connection in others:
        connection.settimeout(timeout_s)
    return others
