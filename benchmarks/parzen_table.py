"""Parzen windows on draws of an f-GAN under each divergence, in the layout of table 4 of Nowozin et al. 2016.

    python -m benchmarks.parzen_table --rounds 1500

The number depends on the number of draws, the bandwidth and the scale of the pixels, and is no likelihood of a model:
read each beside the training set's own, made by the same rule. A Gaussian VAE on the same grey digits is below.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from avb_service.divergences import DIVERGENCES
from avb_service.errors import DivergenceError
from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator
from avb_service.records import Estimate
from avb_service.settings import read_config

# All alike have a critic whose slope is kept small (R1): a generator's gradient grows as e^-V under reverse KL,
# Neyman, Hellinger and Jeffrey, and of a critic that nothing holds V reached -47 on draws.
R1 = "algorithm.penalty=1.0"
VAE = ("data.binarisation=none", "algorithm.observation={name: gaussian, noise: learned}")


def experiments(names: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What a row is called, its preset, and what is set on top."""
    for name in names:
        yield f"f-GAN, {name.replace('_', ' ')}", "f_gan_digits", (f"algorithm.divergence={name}", R1)
    yield "VAE", "vae_digits", VAE


def rows(preset: str, assignments: Sequence[str], rounds: int) -> tuple[Estimate, Estimate]:
    """The Parzen number of a model trained for so many rounds, and the training set's."""
    training = (f"training.rounds={rounds}", f"training.report_every={rounds}")
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config(preset, [*assignments, *training]), Path(folder))
        experiment.run()
    train, validation, test = (experiment.model.data(split)[0] for split in ("train", "validation", "test"))
    return Evaluator(experiment.engine.model, experiment.config.likelihood).parzen(train, validation, test)


def main(names: Sequence[str], rounds: int) -> None:
    """Print the table."""
    print("| training | Parzen window, nats per datum | bandwidth |\n|---|---|---|")
    own = None
    for name, preset, assignments in experiments(names):
        try:
            model, own = rows(preset, assignments, rounds)
        except DivergenceError as error:
            print(f"| {name} | did not finish: {error} | |", flush=True)
            continue
        print(_line(name, model), flush=True)
    if own is not None:
        print(_line("training set", own))


def _line(name: str, estimate: Estimate) -> str:
    bandwidth = estimate.columns["bandwidth"][0]
    return f"| {name} | {estimate.value:.1f} ± {estimate.stderr:.1f} | {bandwidth:.3f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divergence", action="append", choices=DIVERGENCES, help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.divergence or list(DIVERGENCES), given.rounds)
