"""What an adversarial autoencoder loses by not maximising the likelihood, where all of it is known in closed form.

    python -m benchmarks.principal_axis --picture docs/pictures/aae_principal_axis.png

Data are Gaussian with covariance diag(lambda), and the decoder is linear, N(w z + mu, s^2 I), with one code, N(0, 1).
Maximum likelihood (Tipping & Bishop 1999, eq. 7 and 8) has s^2 = mean of lambda_2 .. lambda_D, |w|^2 = lambda_1 - s^2.
An adversarial autoencoder reconstructs as well as codes allow whose distribution, over all data, is p(z): E|x - w z|^2
is least for z = x_1 / sqrt(lambda_1), w along the first axis, |w|^2 = lambda_1, whatever the encoder can do, and then
s^2 = (lambda_2 + .. + lambda_D) / D. What it generates is too long along the first axis and too thin across it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from avb_service.figures.canvas import FAINT, INK, PALETTE, TEXT, blank, place, tidy, to_png
from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator
from avb_service.seeding import generator
from avb_service.settings import ExperimentConfig

VARIANCES = (4.0, 1.0)  # lambda
DATA = 20_000
TURN = {"lr": 2.0e-3, "betas": [0.5, 0.99], "schedule": {"decay": "linear", "decay_from": 0.3}}
ADVERSARY = {**TURN, "lr": 4.0e-3, "steps": 2}
METHODS: dict[str, dict[str, Any]] = {
    "aae": {"discriminator": [64, 64], "adversary": ADVERSARY, "generator": TURN, "reconstruction": TURN},
    "avb": {
        "discriminator": {
            "name": "flat",
            "trunk": {"name": "affine", "activation": "tanh"},
            "hidden": [64, 64],
        },
        "adversary": ADVERSARY,
        "model": TURN,
    },
}


class Solution(NamedTuple):
    """A linear Gaussian model of the data.

    Attributes:
        covariance: w w' + s^2 I, [D, D].
        factor: |w|^2.
        noise: s^2.
        loss: E[log p_data(x) - log p(x)] = KL(p_data || p), nats per datum.
    """

    covariance: Tensor
    factor: float
    noise: float
    loss: float


def optimum(factor: float, noise: float) -> Solution:
    """The model with w along the first axis and such a |w|^2 and s^2."""
    variances = torch.full((len(VARIANCES),), noise, dtype=torch.float64)
    variances[0] += factor
    covariance = torch.diag(variances)
    return Solution(covariance, factor, noise, kl_divergence(gaussian(), gaussian(covariance)).item())


def optima() -> dict[str, Solution]:
    """Where each method ends: the best reconstruction under q(z) = p(z), and maximum likelihood."""
    first, *others = VARIANCES
    discarded = sum(others) / len(others)
    return {"aae": optimum(first, sum(others) / len(VARIANCES)), "avb": optimum(first - discarded, discarded)}


def gaussian(covariance: Tensor | None = None) -> MultivariateNormal:
    """N(0, covariance), [D, D]; that of the data where none is given."""
    covariance = torch.diag(torch.tensor(VARIANCES, dtype=torch.float64)) if covariance is None else covariance
    return MultivariateNormal(torch.zeros(len(covariance), dtype=torch.float64), covariance)


def data() -> Tensor:
    """Draws [DATA, 1, 1, D] whose own mean and covariance are 0 and diag(lambda), so that sampling moves no optimum."""
    x = torch.randn(DATA, len(VARIANCES), generator=generator("cpu", "principal axis"), dtype=torch.float64)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(torch.cov(x.mT, correction=0))
    white = torch.linalg.solve_triangular(root, x.mT, upper=False).mT
    return (white * torch.tensor(VARIANCES, dtype=torch.float64).sqrt())[:, None, None].float()


def fit(method: str, seed: int = 0, rounds: int = 3000) -> Solution:
    """What a method finds, and the exact log p(x) that it loses on its data."""
    x = data()
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x.numpy())
        config = ExperimentConfig.parse(
            {
                "algorithm": {
                    "name": method,
                    "latent_dim": 1,
                    "decoder": {"name": "affine"},
                    "encoder": {"name": "noise_input", "trunk": {"name": "affine"}, "noise_dim": 1, "hidden": []},
                    "observation": {"name": "gaussian", "scale": 1.0, "noise": "learned"},
                    **METHODS[method],
                },
                "data": {"name": "file", "path": f"{folder}/x.npy", "validation": 200, "test": 200},
                "training": {"rounds": rounds, "report_every": rounds, "batch_size": 512, "seed": seed, "ema": 0.995},
                "likelihood": {"validation_data": 2},
            }
        )
        experiment = Fit(config, Path(folder) / "run")
        experiment.run()
    model = experiment.engine.model
    with torch.no_grad():
        w = model.get_submodule("decoder.network.0").get_parameter("weight").double()
        noise = (2 * model.get_submodule("decoder.observation").get_parameter("log_scale").double()).exp()
    exact = Evaluator(model, config.likelihood).score("ppca", x).value
    loss = gaussian().log_prob(x.flatten(1).double()).mean().item() - exact
    return Solution(w @ w.mT + noise * torch.eye(len(w)), w.square().sum().item(), noise.item(), loss)


def ellipses(fits: dict[str, Solution]) -> Figure:
    """The first two axes: 500 data, and where each model and the data have two standard deviations."""
    width, height = 276, 184
    figure = blank(
        len(fits) * (width + 44),
        height + 20,
        "Matched codes are no maximum likelihood",
        "two standard deviations of draws; dashed: of the data",
    )
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = 2 * torch.stack([angle.cos(), angle.sin()])
    x, own = data()[:500, 0, 0], gaussian().scale_tril[:2, :2] @ circle
    for k, (name, found) in enumerate(fits.items()):
        axes = place(figure, k * (width + 44) + 20, width, height)
        shape = torch.linalg.cholesky(found.covariance[:2, :2]) @ circle
        axes.scatter(x[:, 0], x[:, 1], s=2, color="#cccccc", linewidths=0)
        axes.plot(*own, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot(*shape, color=PALETTE[0], linewidth=1.6)
        axes.set(xlim=(-6, 6), ylim=(-4, 4), xticks=(-4, 0, 4), yticks=(-2, 0, 2))
        tidy(axes)
        axes.text(0.02, 0.98, name.upper(), transform=axes.transAxes, size=TEXT, color=INK, va="top")
        axes.text(
            0.02, 0.88, f"loses {found.loss:.3f} nats", transform=axes.transAxes, size=TEXT, color=FAINT, va="top"
        )
    return figure


def main() -> None:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    best, fits = optima(), {}
    print("| | w^2 | s^2 | nats lost | in theory: w^2 | s^2 | nats lost |\n|---|---|---|---|---|---|---|")
    for method in METHODS:
        for seed in range(given.seeds):
            found = fit(method, seed)
            fits.setdefault(method, found)
            numbers = [f"{value:.3f}" for value in (*found[1:], *best[method][1:])]
            print("| " + " | ".join([f"{method}, seed {seed}", *numbers]) + " |", flush=True)
    if given.picture is not None:
        given.picture.write_bytes(to_png(ellipses(fits)))


if __name__ == "__main__":
    main()
