"""Laps on a device of torch: a CPU by its own time and memory, a GPU by time on the wall and its memory."""

import time

import torch
from laps import Laps


def laps_on(device: str) -> Laps:
    """Laps there, on one thread."""
    torch.set_num_threads(1)
    if device == "cpu":
        return Laps()

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return Laps(clock, lambda: torch.cuda.max_memory_allocated() / 1024**2)
