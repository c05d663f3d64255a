"""What `avb plan` predicts beside what is measured: `python -m benchmarks.plan [PRESET]`.

A round on 1, 2 and 4 processes of this host, one thread each, with 4 slices. Where there are more processes than cores,
they share them, which a plan takes no account of: the table says so.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from avb_service.distributed.averaging import averaging
from avb_service.fitting import Fit
from avb_service.plan import measure, plan
from avb_service.settings import read_config

WORKERS, LAPS, ROUNDS = (1, 2, 4), 3, 60
SETTINGS = ["training.logical_workers=4"]


def play(rank: int, workers: int, preset: str, folder: str) -> None:
    """What a process does: rounds, and the first of them writes how long one takes."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=workers)
    mean = averaging if workers > 1 else None
    engine = Fit(read_config(preset, SETTINGS), Path(folder), averaging=mean, rank=rank, workers=workers).engine
    taken = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        engine.play_round()
        taken.append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, "seconds").write_text(str(median(taken[1:])))
    os._exit(0)  # gloo's threads may abort a process that ends in the ordinary way


def measured(workers: int, preset: str) -> float:
    """Seconds of a round on so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(play, (workers, preset, folder), nprocs=workers)
        return float(Path(folder, "seconds").read_text())


def main(preset: str = "avb_ac_digits") -> None:
    """Predict and measure in turn, and print medians."""
    config = read_config(preset, SETTINGS)
    predicted: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    found: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(LAPS):
        for each in plan(config, measure(config), max(WORKERS)):
            predicted[each.workers].append(each.round_s)
        for workers in WORKERS:
            found[workers].append(measured(workers, preset))
    cores = len(os.sched_getaffinity(0))
    table = Table("workers", "predicted, ms", "measured, ms", "measured / predicted", title=f"{preset}, {cores} cores")
    for workers in WORKERS:
        ratio = median(m / p for m, p in zip(found[workers], predicted[workers], strict=True))
        shared = f" ({workers} on {cores} cores)" if workers > cores else ""
        times = (f"{1000 * median(each[workers]):.2f}" for each in (predicted, found))
        table.add_row(f"{workers}{shared}", *times, f"{ratio:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
