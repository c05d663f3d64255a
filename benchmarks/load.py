"""The model that the benchmarks train, and how its round loop is timed."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from avb_service.algorithm import DataSpec
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.engine import Engine, Report, TrainingConfig
from avb_service.networks.trunks import MLPConfig

SHAPE = (1, 28, 28)


def seconds_a_round(
    batch_size: int,
    rounds: int,
    *,
    report: Callable[[Report], None] = lambda report: None,
    report_every: int = 100,
    rank: int = 0,
    workers: int = 1,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> float:
    """Median seconds a round between reports, of a VAE 784-512-8-512-784 on one thread for each worker.

    Args:
        batch_size: global.
        rounds: how many, after as many as lie between two reports to warm up.
        report: what is done at each report.
        report_every: rounds between two.
        rank: this worker.
        workers: how many.
        wrap: makes a turn data-parallel.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.rand(4096, *SHAPE).round()
    trunk = MLPConfig(hidden=(512,))
    config = VAEConfig(latent_dim=8, encoder=trunk, decoder=trunk)
    model = VAE(config, DataSpec(SHAPE, "binary", 1, data.mean(0)))
    share = batch_size // workers

    def source(index: int, worker: int) -> tuple[Tensor, None]:
        start = (index * batch_size + worker * share) % (len(data) - share)
        return data[start : start + share], None

    training = TrainingConfig(
        rounds=rounds + report_every, batch_size=batch_size, logical_workers=workers, report_every=report_every
    )
    marks = [time.perf_counter()]

    def mark(progress: Report) -> None:
        report(progress)
        marks.append(time.perf_counter())

    Engine(model, source, training, wrap=wrap, rank=rank, workers=workers).run(mark)
    laps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return median(laps[1:]) / report_every
