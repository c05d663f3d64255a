"""Points from mixtures of Gaussians whose modes are known, so that it can be counted how many a model has found.

Floor 4.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from avb_service.seeding import derive_seed

FOUND = 0.1  # of a mode's fair share of the draws, at least, in good ones: a stray draw is no mode that was learned
WITHIN = 3.0  # standard deviations from its mode that a good draw is at most; 98.9 % of the data are, on a plane


class Coverage(NamedTuple):
    """What draws have found of a mixture.

    Attributes:
        modes: how many have their share of good draws.
        of: how many there are.
        good: share of draws that are good, between 0 and 1.
    """

    modes: int
    of: int
    good: float


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, s^2 I).

    Attributes:
        means: m_k, [K, D].
        scale: s, of every mode.
        weights: w_k, [K]; equal where not given.
    """

    means: tuple[tuple[float, ...], ...]
    scale: float
    weights: tuple[float, ...] | None = None

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """N points [n, D] and the modes that they come from, [n]; the same on every machine."""
        random, means = np.random.default_rng(derive_seed("mixture", seed)), np.array(self.means)
        modes = random.choice(len(means), n, p=self.weights)
        x = means[modes] + self.scale * random.standard_normal((n, means.shape[1]))
        return torch.from_numpy(x), torch.from_numpy(modes)

    def density(self, x: Tensor) -> Tensor:
        """p(x) of points [n, D], [n]."""
        means = torch.tensor(self.means, dtype=x.dtype)
        modes = Normal(means, self.scale).log_prob(x[:, None]).sum(-1).exp()
        return modes @ self.shares(x.dtype)

    def shares(self, dtype: torch.dtype) -> Tensor:
        """w_k, [K]."""
        modes = len(self.means)
        return torch.tensor(self.weights or [1 / modes] * modes, dtype=dtype)

    def coverage(self, draws: Tensor, within: float = WITHIN) -> Coverage:
        """How many modes have been found, and the share of draws that are good.

        A draw is good within so many standard deviations of the nearest mode. Of n draws n w_k are due to a mode; it is
        found where a tenth of these (`FOUND`) are there, and good.

        Args:
            draws: [n, ..., D], n >= 1.
            within: standard deviations.

        Source: Srivastava et al. 2017 (VEEGAN), section 4.1, for whom one good draw, also by chance, is a mode found.
        """
        means = torch.tensor(self.means, dtype=torch.float64)
        distance, nearest = torch.cdist(draws.detach().cpu().double().flatten(1), means).min(1)
        good = distance <= within * self.scale
        hits = torch.bincount(nearest[good], minlength=len(means))
        found = hits >= FOUND * len(draws) * self.shares(torch.float64)
        return Coverage(int(found.sum()), len(means), good.double().mean().item())


def ring(modes: int, radius: float, scale: float) -> Mixture:
    """Modes evenly on a circle."""
    angles = torch.arange(modes, dtype=torch.float64) * (2 * torch.pi / modes)
    points = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return Mixture(tuple(map(tuple, points.tolist())), scale)


def grid(side: int, spacing: float, scale: float) -> Mixture:
    """Modes on a square grid around the origin."""
    steps = [spacing * (i - (side - 1) / 2) for i in range(side)]
    return Mixture(tuple(product(steps, steps)), scale)


MIXTURES = {
    "gaussians8": ring(8, radius=2.0, scale=0.02),  # Metz et al. 2017
    "gaussians25": grid(5, spacing=2.0, scale=0.05),  # Srivastava et al. 2017
    "mixture1d": Mixture(((-1.5,), (1.5,)), 0.6, (0.35, 0.65)),
}
POINTS = 20_000
