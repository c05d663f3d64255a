"""A density cut into the cells of a grid: probabilities of levels of grey.

Floor 1.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints

from avb_service.maths import Shape


class Grid(constraints.Constraint):
    """The numbers {0, 1, ..., L} / L, whose probabilities are no density."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether numbers are of the grid, but for the rounding of floats."""
        number = value * self.levels
        return ((number - number.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)


class DiscretisedLogistic(Distribution):
    """A logistic density integrated over the cells of the grid {0, 1, ..., L} / L.

    Args:
        loc: [...], in units where the grid spans [0, 1].
        log_scale: [...].
        levels: L, the number of cells less one.
    """

    arg_constraints: dict = {}

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int) -> None:
        self.loc, self.log_scale, self.levels = loc, log_scale, levels
        super().__init__(batch_shape=loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The grid."""
        return Grid(self.levels)

    @property
    def mean(self) -> Tensor:
        """E[x], [...]; at the ends of the grid it is not the location, whose tail beyond them is drawn inside."""
        return self._expectation(lambda value: value).clamp(0, 1)  # which only rounding leaves

    @property
    def variance(self) -> Tensor:
        """E[(x - E[x])^2], [...]."""
        mean = self.mean
        return self._expectation(lambda value: (value - mean).square())

    def _expectation(self, function: Callable[[float], float | Tensor]) -> Tensor:
        """E[f(x)], [...]: the sum over the grid, a level at a time, so that images of 256 levels fit into memory."""
        inverse_scale = torch.exp(-self.log_scale)
        total = below = torch.zeros_like(self.loc)
        for level in range(self.levels + 1):
            edge = (level + 0.5) / self.levels if level < self.levels else math.inf
            up_to = torch.sigmoid((edge - self.loc) * inverse_scale)
            total = total + (up_to - below) * function(level / self.levels)
            below = up_to
        return total

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of the cell around each value, [...]; exact in the tails."""
        half = 0.5 / self.levels
        inverse_scale = torch.exp(-self.log_scale)
        upper = (value - self.loc + half) * inverse_scale
        lower = (value - self.loc - half) * inverse_scale
        # log(sigmoid(b) - sigmoid(a)) = log(1 - e^(a-b)) + logsigmoid(b) + logsigmoid(-a)
        inside = torch.log(-torch.expm1(lower - upper)) + F.logsigmoid(upper) + F.logsigmoid(-lower)
        first, last = value <= half, value >= 1 - half
        return torch.where(first, F.logsigmoid(upper), torch.where(last, F.logsigmoid(-lower), inside))

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws on the grid, [*sample_shape, ...]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(1e-6, 1 - 1e-6)
        draw = self.loc + torch.exp(self.log_scale) * torch.logit(u)
        return (draw.clamp(0, 1) * self.levels).round() / self.levels
