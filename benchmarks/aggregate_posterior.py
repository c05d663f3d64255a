"""What adversarial autoencoders match and AVB does not, and the reverse: `python -m benchmarks.aggregate_posterior`.

Both have the same encoder, decoder and data, and train for the same number of rounds. The adversarial autoencoder is
asked that the codes of all data together follow p(z); AVB that the codes of each datum follow p(z|x). A classifier,
trained afterwards, tells the codes from draws of p(z) as well as it can: accuracy 0.5 says that it cannot.
"""

import argparse
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator
from avb_service.optim import TurnConfig
from avb_service.records import Estimate
from avb_service.seeding import seeded
from avb_service.settings import read_config

CODES = 1397  # the training digits, a code each


@dataclass(frozen=True)
class Match:
    """What was found.

    Attributes:
        accuracy: of the classifier that tells codes from draws of the prior, cross-validated.
        moments: largest deviation of a mean from 0 and of a variance or covariance from those of N(0, I).
        reconstruction: E_q log p(x|z) of test data, nats per datum.
        ceiling: an upper bound on q's ELBO on test data: what a lower bound that q gives can be at most.
        likelihood: by annealing, of test data.
        seconds: of training.
    """

    accuracy: float
    moments: float
    reconstruction: float
    ceiling: Estimate
    likelihood: Estimate
    seconds: float


def match(preset: str, settings: list[str], data: int = 200) -> Match:
    """Train a preset and see how its codes and its likelihood came out."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config(preset, settings), Path(folder))
        experiment.run()
    model = experiment.engine.model
    x, (train, _) = experiment.model.data("test", data)[0], experiment.model.data("train", CODES)
    with seeded(0, "codes"), torch.no_grad():
        codes = model.encode(train)[0]
        reconstruction = model.likelihood(model.encode(x, 16)).log_prob(x).mean().item()
        drawn = model.prior().sample((len(codes),))
    evaluator = Evaluator(model, experiment.config.likelihood)
    return Match(
        told_apart(codes.numpy(), drawn.numpy()),
        deviation(codes),
        reconstruction,
        evaluator.score("elbo_ceiling", x),
        evaluator.score("ais", x),
        experiment.seconds,
    )


def told_apart(codes: np.ndarray, drawn: np.ndarray) -> float:
    """Accuracy of a network that tells the rows of two arrays apart, on rows that it was not trained on."""
    x, y = np.concatenate([codes, drawn]), np.repeat([0, 1], [len(codes), len(drawn)])
    network = MLPClassifier((64, 64), alpha=1e-2, early_stopping=True, max_iter=200, random_state=0)
    return float(cross_val_score(network, x, y, cv=5).mean())


def deviation(codes: torch.Tensor) -> float:
    """Largest deviation of the moments of codes [N, D] from those of N(0, I)."""
    off = torch.cov(codes.mT) - torch.eye(codes.shape[1])
    return max(off.abs().max().item(), codes.mean(0).abs().max().item())


def main() -> None:
    """Train and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faster", type=float, default=1.0, help="multiply all learning rates with this")
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    title = f"Digits, 8-dim codes, learning rates x {given.faster:g}, {given.rounds} rounds, 200 test data"
    table = Table(
        "", "told from p(z)", "moments", "E_q log p(x|z)", "ELBO <=", "log p(x) >= (AIS)", "trained", title=title
    )
    for seed, preset in product(range(given.seeds), ("aae_digits", "avb_digits")):
        turns = [(name, value) for name, value in read_config(preset).algorithm if isinstance(value, TurnConfig)]
        rates = [f"algorithm.{name}.lr={given.faster * turn.lr}" for name, turn in turns]
        found = match(preset, [*rates, f"training.rounds={given.rounds}", f"training.seed={seed}"])
        ceiling, ais = (f"{number.value:.2f} ± {number.stderr:.2f}" for number in (found.ceiling, found.likelihood))
        table.add_row(
            f"{preset}, seed {seed}",
            f"{found.accuracy:.3f}",
            f"{found.moments:.2f}",
            f"{found.reconstruction:.2f}",
            ceiling,
            ais,
            f"{found.seconds:.0f} s",
        )
        Console(width=120).print(preset, seed, found.likelihood.value, f"{found.seconds:.0f} s")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
