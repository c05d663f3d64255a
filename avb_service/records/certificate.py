"""Whether an annealed estimate can be believed, and why.

Floor 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HOLDS = "It holds for data that the model itself draws; no upper bound holds for real data."


@dataclass(frozen=True)
class Check:
    """One number and its limit.

    Attributes:
        name: `gap`.
        value: what was measured; NaN passes nothing.
        relation: how the value has to stand to the limit.
        limit: the limit.
        meaning: for people.
    """

    name: str
    value: float
    relation: Literal["<=", ">="]
    limit: float
    meaning: str

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        return self.value <= self.limit if self.relation == "<=" else self.value >= self.limit


@dataclass(frozen=True)
class Certificate:
    """The checks that an annealed estimate went through.

    It holds for the recipe on data of the model's own making, and says that nothing spoke against it on real data. It
    gives no upper bound on the likelihood of real data; nothing can.

    Attributes:
        checks: all of them, passed or not.
        lower: bound on the log-likelihood of simulated data, by `bdmc`, nats per datum.
        upper: the bound on the other side.
    """

    checks: tuple[Check, ...]
    lower: float
    upper: float

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Certificate":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**tree, "checks": tuple(Check(**check) for check in tree["checks"])})

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def bracket(self) -> float:
        """Distance of the two bounds on simulated data, nats per datum."""
        return self.upper - self.lower

    @property
    def verdict(self) -> str:
        """PASS, or what the estimate is instead."""
        return "PASS" if self.passed else "lower bound only"

    @property
    def reason(self) -> str:
        """Which checks failed, with their numbers; empty where none did."""
        return "; ".join(
            f"{check.meaning}: {check.value:.3g}, expected {check.relation} {check.limit:.3g}"
            for check in self.checks
            if not check.passed
        )

    def metrics(self) -> dict[str, float]:
        """Named for a tracker: `certificate/gap`, `certificate/passed`, and the bounds on simulated data."""
        numbers = {f"certificate/{check.name}": check.value for check in self.checks}
        bounds = {"certificate/simulated.lower": self.lower, "certificate/simulated.upper": self.upper}
        return {**numbers, **bounds, "certificate/passed": float(self.passed)}
