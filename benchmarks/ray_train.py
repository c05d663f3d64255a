"""What Ray Train costs, and what a second worker gains: `python -m benchmarks.ray_train`.

The round loop of the same engine runs in this process and in Ray Train workers, in turn; workers report every 100
rounds as real training does. One core a worker. Four minutes on two cores.
"""

import os
import tempfile
from statistics import median
from typing import Any

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from rich.table import Table

from avb_service.distributed.cluster import cluster
from avb_service.distributed.train import data_parallel
from benchmarks.load import seconds_a_round

REPEATS, ROUNDS, BATCH = 5, 300, 256


def work(config: dict[str, int]) -> float:
    """What a worker does."""
    import ray.train

    context = ray.train.get_context()
    workers = context.get_world_size()
    return seconds_a_round(
        config["batch_size"], ROUNDS, rank=context.get_world_rank(), workers=workers,
        report=lambda progress: ray.train.report(dict(progress.terms)),
        wrap=data_parallel if workers > 1 else None,
    )  # fmt: skip


def on_ray(workers: int, batch_size: int, storage: str) -> float:
    """Seconds a round on Ray Train."""
    trainer: Any = TorchTrainer(
        work,
        train_loop_config={"batch_size": batch_size},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.98}),
        run_config=RunConfig(storage_path=storage),
    )
    return trainer.fit().return_value


def main() -> None:
    """Measure in turn, and print medians and ratios."""
    alone, one, two, two_wide = [], [], [], []
    with tempfile.TemporaryDirectory() as storage, cluster():
        for _ in range(REPEATS):
            alone.append(seconds_a_round(BATCH, ROUNDS))
            one.append(on_ray(1, BATCH, storage))
            two.append(on_ray(2, BATCH, storage))
            two_wide.append(on_ray(2, 2 * BATCH, storage))
    title = f"VAE 784-512-8, one core a worker, {os.cpu_count()} cores"
    table = Table("", "images a round", "images/s", "ratio, run by run: median (least, most)", title=title)
    table.add_row("no Ray", str(BATCH), f"{BATCH / median(alone):.0f}", "")
    longer = _spread([there / here for here, there in zip(alone, one, strict=True)])
    table.add_row("1 worker", str(BATCH), f"{BATCH / median(one):.0f}", f"{longer} x the time without Ray")
    for images, seconds in ((BATCH, two), (2 * BATCH, two_wide)):
        gain = _spread([images / both / (BATCH / single) for single, both in zip(one, seconds, strict=True)])
        table.add_row("2 workers", str(images), f"{images / median(seconds):.0f}", f"{gain} x one worker")
    Console(width=110).print(table)


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


if __name__ == "__main__":
    main()
