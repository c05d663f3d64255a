"""A number for a model's likelihood, with all that it says of itself.

Floor 4. It is read, compared and printed without torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avb_service.records.key import Key, Kind, Quantity, metric, title

Column = NDArray[np.float64]  # a number for each datum, [n]
Recipe = Mapping[str, str | float]  # how an estimator goes about it: `temperatures`, `chains`, `schedule`
NATS = "nats"  # the column of log-likelihoods
VARIANCE = "variance"  # that of their variances by the estimator's own draws, where it is known
OF: dict[Quantity, str] = {
    "log_likelihood": "",
    "simulated": " on data that the model drew itself",
    "own_elbo": " on q's own ELBO",
    "parzen_density": " of a density around samples",
}


@dataclass(frozen=True)
class Estimate:
    """A log-likelihood, or what stands in for one, in nats per datum, with its kind and its error bar.

    Attributes:
        key: which estimator it is by, and with which options.
        value: mean over data.
        stderr: standard deviation over data / sqrt(n): how far another test set would move the mean. It does not hold
            the bias of the estimator.
        kind: what the value is of the quantity.
        columns: numbers for each datum; kept so that two models can be compared datum by datum.
        quantity: log p(x), or another, which is never compared with it.
        recipe: what was asked for: draws, or temperatures, chains, schedule and where they start.
        seconds: what it took, less what was found in a store; NaN where that is not known. No part of the estimate,
            which is the same whoever computes it.
    """

    key: Key
    value: float
    stderr: float
    kind: Kind
    columns: Mapping[str, Column] = field(default_factory=dict)
    quantity: Quantity = "log_likelihood"
    recipe: Recipe = field(default_factory=dict)
    seconds: float = field(default=math.nan, compare=False)

    @classmethod
    def of(
        cls,
        key: Key,
        kind: Kind,
        columns: Mapping[str, ArrayLike],
        quantity: Quantity = "log_likelihood",
        recipe: Recipe | None = None,
    ) -> "Estimate":
        """The mean over data and its standard error."""
        arrays = {name: np.asarray(column, np.float64) for name, column in columns.items()}
        value, stderr = mean_and_stderr(arrays[NATS])
        return cls(key, value, stderr, kind, arrays, quantity, recipe or {})

    def first(self, count: int) -> "Estimate":
        """The same on the first of the data alone."""
        columns = {name: column[:count] for name, column in self.columns.items()}
        return Estimate.of(self.key, self.kind, columns, self.quantity, self.recipe)

    @property
    def name(self) -> str:
        """Of its key, for people."""
        return str(self.key)

    @property
    def per_datum(self) -> Column:
        """Log-likelihood of each datum, [n]."""
        return self.columns[NATS]

    @property
    def diagnostics(self) -> dict[str, float]:
        """Means over data of what tells whether the estimator worked."""
        return {name: float(column.mean()) for name, column in self.columns.items() if name not in (NATS, VARIANCE)}

    @property
    def own_error(self) -> float:
        """How far other draws or chains would move the mean, on the same data; NaN where that is not known.

        It is known to first order from the weights that were drawn, so it sees no mode that all of them have missed.
        """
        variance = self.columns.get(VARIANCE)
        if variance is None:
            return math.nan
        total = float(variance.sum())
        total = 0.0 if total < 0 else total  # by rounding, where all weights are equal
        return math.sqrt(total) / len(variance)

    @property
    def valid(self) -> bool:
        """Whether it bounds log p(x) from below: a lower bound, or the value itself."""
        return self.quantity == "log_likelihood" and self.kind in ("exact", "lower_bound")

    @property
    def title(self) -> str:
        """Names its table, and its metrics begin with it."""
        return title(self.key, self.quantity)

    @property
    def meaning(self) -> str:
        """For people: `lower bound`, `upper bound on q's own ELBO`."""
        return self.kind.replace("_", " ") + OF[self.quantity]

    def metrics(self, split: str) -> dict[str, float]:
        """Named for a tracker."""
        prefix = f"{split}/{self.title}"
        main = metric(split, self.key, self.kind, self.quantity)
        own = {main: self.value, f"{prefix}.stderr": self.stderr, f"{prefix}.own_error": self.own_error}
        return known(own | {f"{prefix}.{name}": value for name, value in self.diagnostics.items()})


def known(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics without those that are no number: a single datum has no standard error."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def mean_and_stderr(values: Column) -> tuple[float, float]:
    """Mean over data [n] and its standard error; NaN where one datum gives none."""
    with np.errstate(invalid="ignore"):  # where a number is infinite
        stderr = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), stderr
