"""What Ray Train costs, and what a second worker gains: `python -m benchmarks.ray_train`.

The round loop of the same engine runs in a process of its own, in one worker of Ray Train while the other waits, in one
with all of Ray held to its core, and in both; they report every 100 rounds as real training does. One core a worker.
The four take turns of seconds, so that a machine that is slow for a while is slow for all of them. Five minutes on two
cores.

Ray's own processes take a seventh of a core. One worker alone leaves them another core, two workers do not: so both of
the numbers for one are given.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from avb_service.algorithm import DataSpec
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.distributed.averaging import averaging
from avb_service.distributed.cluster import cluster
from avb_service.networks.trunks import MLPConfig
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine, Report
from avb_service.training.turn import Average

LAPS, ROUNDS, BATCH, SHAPE = 16, 100, 256, (1, 28, 28)
PLAYERS = 4
ALONE, ONE, HELD, TWO = range(PLAYERS)  # who plays in a lap, one after another


def images_a_second(
    report: Callable[[dict[str, float]], None] = lambda terms: None,
    rank: int = 0,
    workers: int = 1,
    mean: Callable[[Tensor], Average] | None = None,
) -> float:
    """Speed of a VAE 784-512-8-512-784, after as many rounds to warm up; on one thread for each worker.

    Args:
        report: what is done after these rounds.
        rank: this worker.
        workers: how many.
        mean: makes the mean over workers.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.rand(4096, *SHAPE).round()
    trunk = MLPConfig(hidden=(512,))
    model = VAE(VAEConfig(latent_dim=8, encoder=trunk, decoder=trunk), DataSpec(SHAPE, "binary", 1, data.mean(0)))
    images, marks = workers * BATCH, [0.0]

    def source(index: int, worker: int) -> tuple[Tensor, None]:
        start = (index * images + worker * BATCH) % (len(data) - BATCH)
        return data[start : start + BATCH], None

    def mark(progress: Report) -> None:
        report(dict(progress.terms))
        marks.append(time.perf_counter())

    training = TrainingConfig(rounds=2 * ROUNDS, batch_size=images, logical_workers=workers, report_every=ROUNDS)
    Engine(model, source, training, averaging=mean, rank=rank, workers=workers).run(mark)
    return images * ROUNDS / (marks[-1] - marks[-2])


class Turns:
    """Who plays: a file that grows by a byte when a turn ends; those who wait for theirs sleep."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def wait(self, lap: int, player: int) -> None:
        """Until it is a player's turn."""
        while self._path.stat().st_size < PLAYERS * lap + player:
            time.sleep(0.02)

    def end(self) -> None:
        """Let the next one play."""
        with open(self._path, "ab") as file:
            file.write(b".")


def without_ray(path: str, lap: int) -> float:
    """One turn of the process that has nothing to do with Ray."""
    turns = Turns(path)
    turns.wait(lap, ALONE)
    speed = images_a_second()
    turns.end()
    return speed


def hold(process: int, cores: set[int]) -> None:
    """Let a process and all that it has started run on these cores only. Linux."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
            for child in (thread / "children").read_text().split():
                hold(int(child), cores)


def with_ray(config: dict[str, Any]) -> list[tuple[float, float, float]]:
    """What a worker of Ray Train does: speeds of the first alone, the same held to a core, and both, for each lap."""
    import ray.train

    rank, turns, speeds = ray.train.get_context().get_world_rank(), Turns(config["path"]), []
    cores = os.sched_getaffinity(0)
    dist.destroy_process_group()
    for lap in range(LAPS):
        alone = {}
        for player, on in ((ONE, cores), (HELD, {min(cores)})):
            turns.wait(lap, player)
            if rank == 0:
                hold(config["driver"], on)
                alone[player] = images_a_second(ray.train.report)
                hold(config["driver"], cores)
                turns.end()
            else:  # reports wait for all workers
                ray.train.report({})
                ray.train.report({})
        turns.wait(lap, TWO)
        dist.init_process_group("gloo", f"file://{config['path']}-{lap}", rank=rank, world_size=2)
        two = images_a_second(ray.train.report, rank, 2, averaging)
        dist.destroy_process_group()
        if rank == 0:
            speeds.append((alone[ONE], alone[HELD], two))
            turns.end()
    return speeds


def main() -> None:
    """Let all play, and print medians and ratios."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as storage, cluster(), ProcessPoolExecutor(1, mp_context=spawn) as process:
        path = os.path.join(storage, "turns")
        Path(path).touch()
        alone = process.map(without_ray, [path] * LAPS, range(LAPS))
        trainer: Any = TorchTrainer(
            with_ray,
            train_loop_config={"path": path, "driver": os.getpid()},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.98}),
            run_config=RunConfig(storage_path=storage),
        )
        speeds = [(there, *here) for there, here in zip(alone, trainer.fit().return_value, strict=True)]
    title = f"VAE 784-512-8, {BATCH} images a worker, one core each of {os.cpu_count()}; {LAPS} laps of {ROUNDS} rounds"
    table = Table("", "images/s", "ratio of a lap", title=title, caption="median (quartiles)")
    table.add_row("no Ray", _spread([lap[ALONE] for lap in speeds], 0))
    table.add_row(
        "1 worker",
        _spread([lap[ONE] for lap in speeds], 0),
        f"{_spread([lap[ALONE] / lap[ONE] for lap in speeds], 2)} x the time without Ray",
    )
    table.add_row("1 worker, all of Ray on its core", _spread([lap[HELD] for lap in speeds], 0))
    table.add_row(
        "2 workers",
        _spread([lap[TWO] for lap in speeds], 0),
        f"{_spread([lap[TWO] / lap[ONE] for lap in speeds], 2)} x the speed of one,\n"
        f"{_spread([lap[TWO] / lap[HELD] for lap in speeds], 2)} x the speed of one with Ray on its core",
    )
    Console(width=120).print(table)


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"


if __name__ == "__main__":
    main()
