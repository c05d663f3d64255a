"""Whether another valid bound on the same data shows that an estimate is too low.

Floor 4. Which bound is the model's estimate is settled before anybody looks at the values: the largest of several
would be chosen for its luck. But none of them may be passed over in silence that is higher by more than luck.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from avb_service.records.estimate import Estimate
from avb_service.records.key import Key

TOLERANCE = 0.05  # nats per datum
STANDARD_ERRORS = 3.0  # of as many bounds as a model has, one would be above two by luck


@dataclass(frozen=True)
class Shortfall:
    """How an estimate stands to the valid bound that is furthest above it, on the data that both are of.

    Attributes:
        estimate: which the estimate is.
        bound: which the other is.
        difference: the other less the estimate, nats per datum.
        limit: what it may be: a tolerance, or three standard errors of their own draws together where these are more.
        data: how many.
    """

    estimate: Key
    bound: Key
    difference: float
    limit: float
    data: int

    @property
    def proven(self) -> bool:
        """Whether the estimate is too low beyond what draws can make of it."""
        return self.difference > self.limit

    def __str__(self) -> str:
        """For people."""
        higher = f"{self.bound}, as valid a bound, is {self.difference:.2f} nats above it"
        return f"{self.estimate} is too low: {higher} on the same {self.data} data"


def shortfall(estimate: Estimate, others: Sequence[Estimate], tolerance: float = TOLERANCE) -> Shortfall | None:
    """The valid bound that is furthest above an estimate, beyond what is allowed; None where there is no other.

    Args:
        estimate: a lower bound on log p(x), or its value.
        others: of the same data, or of the first of them; those that bound nothing from below are left out.
        tolerance: a difference that is none, nats per datum.

    Source: a valid bound is above log p(x) by t nats with probability e^-t at most (Markov's inequality; Grosse,
    Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo").
    """
    found = [_compared(estimate, other, tolerance) for other in others if other.valid and other.key != estimate.key]
    return max(found, key=lambda each: each.difference - each.limit, default=None)


def _compared(estimate: Estimate, other: Estimate, tolerance: float) -> Shortfall:
    data = min(len(estimate.per_datum), len(other.per_datum))
    mine, theirs = estimate.first(data), other.first(data)
    limit = max(tolerance, STANDARD_ERRORS * math.hypot(_error(mine), _error(theirs)))
    return Shortfall(estimate.key, other.key, theirs.value - mine.value, limit, data)


def _error(estimate: Estimate) -> float:
    """By an estimator's own draws; where that is not known, what other data would make, which holds it, if that is."""
    if estimate.kind == "exact":
        return 0.0
    return next((error for error in (estimate.own_error, estimate.stderr) if not math.isnan(error)), math.inf)
