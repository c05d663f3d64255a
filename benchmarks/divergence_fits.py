"""Mode covering and mode seeking: one Gaussian fitted to two, under each f-divergence, by f-GAN and by quadrature.

    python -m benchmarks.divergence_fits --picture docs/pictures/f_gan_modes.png

The layout of table 3 of Nowozin et al. 2016: what a game of draws finds, and what minimises the divergence itself.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch.distributions import Normal

from avb_service.data.mixtures import MIXTURES
from avb_service.divergences import DIVERGENCES
from avb_service.figures.canvas import FAINT, INK, PALETTE, TEXT, blank, place, tidy, to_png
from avb_service.fitting import Fit
from avb_service.settings import ExperimentConfig

DATA = "mixture1d"
STARTS = ((0.0, 1.5), (1.5, 0.6), (-1.5, 0.6))  # of the search for the optimum: between the modes, and in each
TURN = {"lr": 2.0e-3, "betas": [0.5, 0.99], "clip_norm": 1.0, "schedule": {"decay": "linear", "decay_from": 0.3}}
GAME = {
    "discriminator": {"name": "mlp", "hidden": [32, 32], "activation": "tanh"},
    "adversary": {**TURN, "steps": 2, "lr": 5.0e-3},
    "model": TURN,
}
# log p/q falls like -x^2 outside the modes, where a critic of tanh is flat and the generator would feel nothing; and
# where the gradient is as noisy as here, a tight clip turns it. The critic follows to the end.
QUICK = {
    "discriminator": {"name": "mlp", "hidden": [32, 32], "activation": "silu"},
    "adversary": {"steps": 4, "lr": 5.0e-3, "betas": [0.5, 0.99], "clip_norm": 10.0},
    "model": {**TURN, "lr": 3.0e-3},
}
# The best critic of total variation is a step where p = q, flat elsewhere: without a penalty of its slope it becomes
# one, and does not follow when p = q moves.
SMOOTH = {**QUICK, "penalty": 1.0e-3, "adversary": {**QUICK["adversary"], "steps": 8}, "model": TURN}
GAMES = {"jeffrey": QUICK, "total_variation": SMOOTH}
TRAINING = {
    "jeffrey": {"dtype": "float64"},  # e^-V of data may overflow while the draws are still narrow
    "total_variation": {"rounds": 3000},
}


class Gaussian(NamedTuple):
    """A fit.

    Attributes:
        mean: its mean.
        scale: its standard deviation.
        value: D(P || Q), by quadrature.
    """

    mean: float
    scale: float
    value: float


def divergence(name: str, mean: float, scale: float) -> float:
    """D_f(mixture || N(mean, scale^2)), by the trapezoid rule."""
    x = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    log_p = MIXTURES[DATA].density(x[:, None]).clamp(min=1e-300).log()
    log_q = Normal(mean, scale).log_prob(x)
    ratio = (log_p - log_q).clamp(-600, 600).exp()
    value = torch.trapezoid(log_q.exp() * DIVERGENCES[name].f(ratio), x).item()
    return value if math.isfinite(value) else 1e9


def optimum(name: str) -> Gaussian:
    """The Gaussian of the smallest divergence."""
    found = [
        minimize(
            lambda a: divergence(name, a[0], math.exp(a[1])),
            [mean, math.log(scale)],
            method="Nelder-Mead",
            options={"xatol": 1e-5, "fatol": 1e-9},
        )
        for mean, scale in STARTS
    ]
    best = min(found, key=lambda result: result.fun)
    return Gaussian(float(best.x[0]), math.exp(best.x[1]), float(best.fun))


def fit(name: str, seed: int = 0) -> Gaussian:
    """What the f-GAN finds: its generator is affine in one Gaussian number, so its draws are a Gaussian."""
    training = {"rounds": 2000, "batch_size": 512, "seed": seed, "ema": 0.99, **TRAINING.get(name, {})}
    config = ExperimentConfig.parse(
        {
            "algorithm": {
                "name": "f_gan",
                "divergence": name,
                "latent_dim": 1,
                "generator": {"name": "affine"},
                **GAMES.get(name, GAME),
            },
            "data": {"name": DATA},
            "training": {**training, "report_every": training["rounds"]},
            "likelihood": {"validation_data": 8},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(config, Path(folder))
        experiment.run()
    generator = experiment.engine.model.get_submodule("generator.network.0")
    mean, scale = generator.bias.item(), abs(generator.weight.item())
    return Gaussian(mean, scale, divergence(name, mean, scale))


def densities(fits: dict[str, Gaussian], optima: dict[str, Gaussian]) -> Figure:
    """The mixture in grey, each fit over it, and the optimum dashed."""
    columns, width, height = 3, 200, 118
    rows = -(-len(fits) // columns)
    figure = blank(
        columns * (width + 24),
        rows * (height + 46),
        "Mode covering and mode seeking",
        "one Gaussian fitted to the grey density by f-GAN; dashed: the optimum",
    )
    x = torch.linspace(-5, 5, 401, dtype=torch.float64)
    p = MIXTURES[DATA].density(x[:, None])
    for k, (name, found) in enumerate(fits.items()):
        axes = place(figure, (k % columns) * (width + 24), width, height)
        box = axes.get_position()
        axes.set_position(
            (
                box.x0,
                box.y0 - (k // columns) * (height + 46) / (figure.get_figheight() * figure.dpi),
                box.width,
                box.height,
            )
        )
        axes.fill_between(x, p, color="#dddddd", linewidth=0)
        axes.plot(x, Normal(found.mean, found.scale).log_prob(x).exp(), color=PALETTE[0], linewidth=1.4)
        best = optima[name]
        axes.plot(x, Normal(best.mean, best.scale).log_prob(x).exp(), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlim=(-5, 5), ylim=(0, 0.72), xticks=(-3, 0, 3), yticks=[])
        tidy(axes)
        axes.text(0.02, 0.98, name.replace("_", " "), transform=axes.transAxes, size=TEXT, color=INK, va="top")
        axes.text(
            0.02,
            0.80,
            f"μ {found.mean:.2f}  σ {found.scale:.2f}".replace("-", "−"),
            transform=axes.transAxes,
            size=TEXT - 1,
            color=FAINT,
            va="top",
        )
    return figure


def main(names: Sequence[str], seed: int, picture: Path | None) -> None:
    """Print the table, and draw it."""
    print("| divergence | f-GAN: mean | sd | value | optimum: mean | sd | value |\n|---|---|---|---|---|---|---|")
    fits, optima = {}, {}
    for name in names:
        fits[name], optima[name] = fit(name, seed), optimum(name)
        print(
            "| " + " | ".join([name, *(f"{v:.3f}" for v in fits[name]), *(f"{v:.3f}" for v in optima[name])]) + " |",
            flush=True,
        )
    if picture is not None:
        picture.write_bytes(to_png(densities(fits, optima)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divergence", action="append", choices=DIVERGENCES, help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.divergence or list(DIVERGENCES), given.seed, given.picture)
