"""The eight schools by AVB against long Hamiltonian Monte Carlo: `python -m benchmarks.eight_schools`. Two minutes.

Prints means, standard deviations and quantiles of every unknown by both, and with --plot draws their densities.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from avb_service.algorithms.avb_joint import AVBJoint
from avb_service.figures import to_png
from avb_service.figures.canvas import FAINT, PALETTE, TEXT, blank, place, tidy
from avb_service.fitting import Fit
from avb_service.likelihood.anneal import Path as AnnealingPath
from avb_service.likelihood.anneal import transition
from avb_service.seeding import seeded
from avb_service.settings import read_config

CHAINS, WARM_UP, KEPT, LEAPFROG, STEP = 200, 500, 2000, 10, 0.15
SPREAD = 0.5  # of the first states: where tau is in the hundreds, no step of this size is accepted
LEVELS = (0.05, 0.5, 0.95)


def train() -> tuple[AVBJoint, Tensor]:
    """The preset's model, and the data."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config("avb_joint_eight_schools"), Path(folder))
        experiment.run(lambda round_, metrics: Console().print(f"AVB  round {round_}"))
    return experiment.engine.model, experiment.model.data("test")[0]  # type: ignore[return-value]


def long_hmc(model: AVBJoint, x: Tensor) -> tuple[Tensor, float]:
    """Draws from the posterior [n, D], from the prior's coordinates, and the acceptance."""
    with seeded("eight schools"):
        path = AnnealingPath(model, x, model.prior())
        state = path.at(SPREAD * torch.randn(CHAINS, 1, model.decoder.dim))
        kept, accepted = [], []
        for i in range(WARM_UP + KEPT):
            state, acceptance = transition(path, state, 1.0, torch.tensor([STEP]), LEAPFROG)
            if i >= WARM_UP and i % 10 == 0:
                kept.append(path.z(state.u)[:, 0])
                accepted.append(acceptance.mean())
    return torch.cat(kept), torch.stack(accepted).mean().item()


def draw(names: tuple[str, ...], avb: Tensor, hmc: Tensor, file: Path) -> None:
    """Densities of mu, tau and three of the effects."""
    shown = [names.index(name) for name in ("mu", "tau", "theta_1", "theta_3")]
    width, height, gap = 150, 120, 26
    figure = blank(len(shown) * (width + gap), height + 40, "Eight schools", "filled: long HMC, line: AVB's q(z|x)")
    for k, index in enumerate(shown):
        axes = place(figure, k * (width + gap), width, height)
        tidy(axes)
        low, high = hmc[:, index].quantile(0.002).item(), hmc[:, index].quantile(0.995).item()
        edges = np.linspace(low, high, 50)
        axes.hist(hmc[:, index].numpy(), edges, density=True, color="#d0d0d0")
        axes.hist(avb[:, index].numpy(), edges, density=True, histtype="step", color=PALETTE[0])
        axes.set_yticks([])
        axes.set_xlabel(names[index], size=TEXT, color=FAINT)
    file.write_bytes(to_png(figure))


def main() -> None:
    """Train, sample, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="write the densities there")
    arguments = parser.parse_args()
    model, x = train()
    with seeded("eight schools", "q"), torch.no_grad():
        avb = model.decoder.natural(model.encode(x, 100_000)[:, 0])
    z, acceptance = long_hmc(model, x)
    hmc = model.decoder.natural(z)
    title = f"{len(hmc)} draws by HMC in {CHAINS} chains, acceptance {acceptance:.2f}; {len(avb)} of AVB"
    table = Table("", "mean HMC", "AVB", "sd HMC", "AVB", "5, 50, 95 % HMC", "AVB", title=title)
    for name, a, b in zip(model.decoder.unknowns, hmc.T, avb.T, strict=True):
        q = [", ".join(f"{each.kthvalue(int(level * len(each))).values:.1f}" for level in LEVELS) for each in (a, b)]
        table.add_row(name, f"{a.mean():.2f}", f"{b.mean():.2f}", f"{a.std():.2f}", f"{b.std():.2f}", *q)
    Console().print(table)
    if arguments.plot:
        draw(model.decoder.unknowns, avb[:20_000], hmc[:: len(hmc) // 20_000], arguments.plot)


if __name__ == "__main__":
    main()
