"""Lower bounds on one log p(x) for few and for many latents: `python -m benchmarks.latents`.

A VAE of 200 vectors of 20 standard normal numbers, which leaves most of its latents unused, and a linear-Gaussian model
(probabilistic PCA, 20 pixels) whose log p(x) is known, and whose q is a factorised Gaussian beside the posterior. With
`--sharp` a VAE whose posteriors are hard instead: vectors that two numbers make up, observed with a deviation of 0.05.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from avb_service.algorithm import LatentVariableModel
from avb_service.distributions import DataSpec
from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.maths import standard_normal
from avb_service.records import Estimate
from avb_service.seeding import seeded
from avb_service.settings import ExperimentConfig

LATENTS = (4, 16, 64, 128, 256)
BOUNDS = ("iwae_mixture", "iwae", "ais", "ais_prior")
PIXELS, DATA = 20, 100  # data of the second model


class LinearGaussian(LatentVariableModel):
    """p(x|z) = N(W z, s^2), W scaled so that data vary as much whatever the number of latents."""

    def __init__(self, dim: int, noise: float = 0.5) -> None:
        super().__init__(None, DataSpec((1, 1, PIXELS), "real", 0, torch.zeros(1, 1, PIXELS)))
        with seeded("linear", dim):
            self.w = nn.Parameter(torch.randn(PIXELS, dim) / math.sqrt(dim))
        self.noise = noise
        self.covariance = torch.linalg.inv(torch.eye(dim) + self.w.detach().mT @ self.w.detach() / noise**2)

    def players(self) -> tuple:
        """None: it is not trained."""
        return ()

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.w.shape[1], self.w)

    def likelihood(self, z: Tensor) -> Distribution:
        """N(W z, s^2)."""
        return Independent(Normal((z @ self.w.mT)[..., None, None, :], self.noise, validate_args=False), 3)

    def posterior(self, x: Tensor) -> Distribution:
        """Factorised, wider than the exact one and beside it, as an encoder's may be."""
        mean = x.flatten(1) @ self.w @ self.covariance / self.noise**2
        return Independent(Normal(mean + 0.3, 1.6 * self.covariance.diagonal().sqrt(), validate_args=False), 1)

    def exact(self, x: Tensor) -> Tensor:
        """Log p(x), [b]."""
        w = self.w.detach().double()
        covariance = w @ w.mT + self.noise**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(w.new_zeros(PIXELS), covariance).log_prob(x.flatten(1).double())


@dataclass(frozen=True)
class Row:
    """What was found for a number of latents.

    Attributes:
        model: which of the two.
        latents: how many.
        bounds: by estimator.
        exact: log p(x) of the same data, nats per datum; None where nobody knows it.
    """

    model: str
    latents: int
    bounds: dict[str, Estimate]
    exact: float | None = None


def trained(latents: int, sharp: bool = False) -> tuple[LatentVariableModel, Tensor]:
    """A VAE with a layer of 32 and the observation N(., 1), or sharp, after 300 rounds, and its 20 test data."""
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 2 if sharp else 20))
    if sharp:
        x = x @ random.standard_normal((2, 20))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npz"
        np.savez(path, x=x.astype(np.float32))
        layer = {"name": "mlp", "hidden": [32]}
        experiment = Fit(
            ExperimentConfig.parse(
                {
                    "algorithm": {
                        "name": "vae",
                        "latent_dim": latents,
                        "encoder": layer,
                        "decoder": layer,
                        "observation": {"name": "gaussian", "scale": 0.05 if sharp else 1.0},
                    },
                    "data": {"name": "file", "path": str(path)},
                    "training": {"rounds": 300, "report_every": 300},
                }
            ),
            Path(folder) / "run",
        )
        experiment.run()
        return experiment.engine.model, experiment.model.data("test", None)[0]


def measured(latents: Sequence[int] = LATENTS, sharp: bool = False) -> Iterator[Row]:
    """All bounds of both models, or of the sharp one."""
    if sharp:
        yield from (Row("sharp VAE", count, _bounds(*trained(count, sharp))) for count in latents)
        return
    for count in latents:
        model, x = trained(count)
        yield Row("VAE", count, _bounds(model, x))
    for count in latents:
        linear = LinearGaussian(count)
        with seeded("data"), torch.no_grad():
            x = linear.sample(DATA)
        yield Row("linear Gaussian", count, _bounds(linear, x), linear.exact(x).mean().item())


def _bounds(model: LatentVariableModel, x: Tensor) -> dict[str, Estimate]:
    evaluator = Evaluator(model, LikelihoodConfig())
    return {name: evaluator.score(name, x) for name in BOUNDS}


def main() -> None:
    """Print a line for each model and number of latents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, nargs="+", default=LATENTS)
    parser.add_argument("--sharp", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "latents", *BOUNDS, "exact", title="nats per datum, ± what other draws would make of it")
    for row in measured(given.latents, given.sharp):
        found = [f"{each.value:.2f} ± {each.own_error:.2f}" for each in row.bounds.values()]
        table.add_row(row.model, str(row.latents), *found, "" if row.exact is None else f"{row.exact:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
