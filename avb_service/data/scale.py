"""How large the numbers of a data set are, and what to do where a network cannot start from them.

Floor 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from avb_service.data.datasets import Dataset

ROWS = 2**16  # of a split that are looked at
LARGE, SMALL = 100.0, 0.01  # of the largest number, and of the standard deviation; networks begin near 0 and 1
OUTLYING = 10.0  # standard deviations from the mean; a million normal numbers come to 5
FIRST = 20  # rounds in which data that are out of scale show
STANDARDISED = "x = x.astype(float); s = x.std(0); x = (x - x.mean(0)) / np.where(s > 0, s, 1)"


@dataclass(frozen=True)
class Scale:
    """How large the numbers are that a model sees.

    Attributes:
        low: the least.
        high: the largest.
        mean: of all.
        deviation: standard deviation of all.
        constant: how many numbers of a datum are the same in all data.
        size: how many numbers a datum has.
    """

    low: float
    high: float
    mean: float
    deviation: float
    constant: int
    size: int

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Those of the data that are trained on and validated by, 65,536 each at most."""
        size, unit = math.prod(dataset.spec.shape), max(dataset.spec.levels, 1)
        low, high = torch.full((size,), math.inf), torch.full((size,), -math.inf)
        count, mean, squares = 0, 0.0, 0.0  # the squares of what is left without the mean; Chan et al. 1979
        for part in (part for split in (dataset.train, dataset.validation) for part in split.parts(ROWS)):
            x = part.flatten(1).double() / unit
            low, high = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0))
            apart = x.mean().item() - mean
            squares += x.var(correction=0).item() * x.numel() + apart**2 * count * x.numel() / (count + x.numel())
            mean += apart * x.numel() / (count + x.numel())
            count += x.numel()
        constant = int((low == high).sum())
        return cls(low.min().item(), high.max().item(), mean, math.sqrt(squares / count), constant, size)

    @property
    def far(self) -> bool:
        """Whether a network, whose weights suit numbers around 0 and 1, can hardly start from them."""
        return max(abs(self.low), abs(self.high)) > LARGE or self.deviation < SMALL

    def __str__(self) -> str:
        """For people."""
        said = f"from {self.low:.4g} to {self.high:.4g}, mean {self.mean:.4g}, standard deviation {self.deviation:.4g}"
        farthest = max(self.high - self.mean, self.mean - self.low)
        if farthest > OUTLYING * self.deviation > 0:
            said += f", and some {farthest / self.deviation:.0f} of these away, like codes for what is missing"
        if self.constant:
            said += f"; {self.constant} of the {self.size} numbers of a datum are the same in all data"
        return said


def introduction(dataset: Dataset) -> list[str]:
    """What a person is told of data before anything is trained on them: what was read, and whether it is far off."""
    return [dataset.description, *caution(dataset)]


def caution(dataset: Dataset) -> list[str]:
    """A line for each source of real values that are far from those that a network starts from."""
    scales = _scales(dataset) if dataset.spec.values == "real" else {}
    return [
        f"{name} has numbers {scale}: networks learn such slowly, or diverge. They start best from mean 0 and standard "
        f"deviation 1, in numpy {STANDARDISED}"
        for name, scale in scales.items()
        if scale.far
    ]


def remedy(dataset: Dataset, round_: int, players: Sequence[str], stepped: bool) -> str:
    """What to do where training has left the finite numbers.

    Args:
        dataset: that was trained on.
        round_: in which it did.
        players: who may have taken too large a step.
        stepped: whether a step had been taken at all.
    """
    scales = _scales(dataset)
    far = [name for name, scale in scales.items() if scale.far]
    said = [f"{name} has numbers {scale}" for name, scale in scales.items() if name in far or round_ < FIRST]
    if far:
        said.append(f"Bring {' and '.join(far)} to mean 0 and standard deviation 1, in numpy {STANDARDISED}")
    rates = " and ".join(f"algorithm.{player}.lr" for player in players)
    norms = " and ".join(f"algorithm.{player}.clip_norm" for player in players)
    if stepped:
        said.append(f"{'Or lower' if far else 'Lower'} {rates}, or set {norms}")
    else:
        said.append("No step had been taken, so no learning rate matters")
        said += [] if far else ["Look for a scale among the settings of algorithm that these numbers do not suit"]
    return ". ".join(said)


def _scales(dataset: Dataset) -> dict[str, Scale]:
    sources = {"data": dataset, "data.other": dataset.other}
    return {name: Scale.of(each) for name, each in sources.items() if each is not None}
