"""What a prior saves by going where the codes are: `python -m benchmarks.flow_prior [--case digits]`.

The Gaussian VAE of a preset with two latents, and the same with a neural spline flow as its prior: the same networks,
data, rounds and seeds. Both ELBOs are lower bounds on log p(x); the marginal KL is what a better prior could save.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from avb_service.fitting import Fit
from avb_service.report import elbo_surgery
from avb_service.settings import read_config

PRESETS = {"digits": "vae_digits", "onehot4": "vae_onehot4"}
PRIORS = {"gaussian": "vae", "flow": "flow_vae"}


class Bound(NamedTuple):
    """The ELBO of validation data at the end of training, nats per datum.

    Attributes:
        elbo: all of it.
        marginal_kl: the part of it that is lost by the prior, KL(q(z) || p(z)).
    """

    elbo: float
    marginal_kl: float


def bound(case: str, prior: str, seed: int) -> Bound:
    """Train, and take the ELBO apart."""
    rounds = read_config(PRESETS[case]).training.rounds
    config = read_config(
        PRESETS[case],
        [
            f"algorithm.name={PRIORS[prior]}",
            "algorithm.latent_dim=2",
            f"training.seed={seed}",
            f"training.report_every={rounds}",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(config, Path(folder))
        experiment.run()
    found = elbo_surgery(experiment.model)
    elbo = found["validation/surgery.reconstruction"] - found["validation/surgery.kl"]
    return Bound(elbo, found["validation/surgery.marginal_kl"])


def gain(case: str, seeds: int) -> tuple[float, float]:
    """Mean over seeds of what the flow's ELBO is above the Gaussian's, and the standard error; prints each pair."""
    gains = []
    for seed in range(seeds):
        gaussian, flow = (bound(case, prior, seed) for prior in PRIORS)
        gains.append(flow.elbo - gaussian.elbo)
        numbers = (gaussian.elbo, flow.elbo, gains[-1], gaussian.marginal_kl, flow.marginal_kl)
        print(f"| {case}, seed {seed} | " + " | ".join(f"{value:.3f}" for value in numbers) + " |", flush=True)
    return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(seeds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=PRESETS, help="only this one; repeatable")
    parser.add_argument("--seeds", type=int, default=4, help="how many, from 0 on; at least 2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| | ELBO, Gaussian | flow | gain | marginal KL, Gaussian | flow |\n|---|---|---|---|---|---|")
    for case in given.case or PRESETS:
        mean, stderr = gain(case, given.seeds)
        print(f"| {case}, mean | | | {mean:.3f} ± {stderr:.3f} | | |", flush=True)


if __name__ == "__main__":
    main()
