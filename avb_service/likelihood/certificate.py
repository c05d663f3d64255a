"""Whether an annealed estimate can be believed, and why.

Floor 5. Chains that have not mixed look well: their own spread is small, and their estimate low by nats. What shows it
is data drawn from the model itself, for which the truth can be bracketed, and a second start for real data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from avb_service.config import Config
from avb_service.likelihood.estimate import Estimate, mean_and_stderr
from avb_service.likelihood.shortfall import TOLERANCE, shortfall

ENOUGH = 200  # simulated data, fewer of which say little of the 95th percentile
ENOUGH_REAL = 50  # real data, fewer of which do not excuse a drift by its standard error
Score = Callable[[str, Tensor], Estimate]  # (estimator, data) -> estimate
HOLDS = "It holds for data that the model itself draws; no upper bound holds for real data."


class CertificateConfig(Config):
    """What a certificate asks for, in nats per datum. Its limits can be tightened, and not loosened.

    Attributes:
        simulated: data drawn from the model; at least 200 for a certificate.
        real: how many of the given data the checks on real data use.
        gap: limit on the mean gap between the two bounds plus two standard errors.
        gap_95: limit on the gap's 95th percentile.
        drift: limit on the change when the number of temperatures is doubled; two standard errors where they are more,
            and at least 50 real data make them.
        starts: limit on the difference between chains from the prior and from the refined Gaussian.
        shortfall: limit on how far any other lower bound on the same data is above; three standard errors of their own
            draws where they are more.
    """

    simulated: Annotated[int, Field(ge=2)] = ENOUGH
    real: Annotated[int, Field(ge=2)] = 100
    gap: Annotated[float, Field(gt=0, le=0.2)] = 0.2
    gap_95: Annotated[float, Field(gt=0, le=1.0)] = 1.0
    drift: Annotated[float, Field(gt=0, le=0.05)] = 0.05
    starts: Annotated[float, Field(gt=0, le=0.2)] = 0.2
    shortfall: Annotated[float, Field(gt=0, le=TOLERANCE)] = TOLERANCE


@dataclass(frozen=True)
class Check:
    """One figure and its limit.

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
        """Which checks failed, with their figures; empty where none did."""
        return "; ".join(
            f"{check.meaning}: {check.value:.3g}, expected {check.relation} {check.limit:.3g}"
            for check in self.checks
            if not check.passed
        )

    def metrics(self) -> dict[str, float]:
        """Named for a tracker: `certificate/gap`, `certificate/passed`, and the bounds on simulated data."""
        figures = {f"certificate/{check.name}": check.value for check in self.checks}
        bounds = {"certificate/simulated.lower": self.lower, "certificate/simulated.upper": self.upper}
        return {**figures, **bounds, "certificate/passed": float(self.passed)}


def certify(
    score: Score, x: Tensor, chains: int, config: CertificateConfig, known: Sequence[Estimate] = ()
) -> Certificate:
    """Put the recipe of `ais` to the test.

    Args:
        score: scores data by the estimators `bdmc`, `ais`, `ais_doubled` and `ais_prior`.
        x: real data [n, ...], of which the first `config.real` are used.
        chains: C of the recipe.
        config: the limits.
        known: of these data already; a lower bound among them that is higher refutes `ais`.

    Source: Grosse, Ancha & Roy 2016 for the two bounds; the limits are docs/likelihoods.md's.
    """
    simulated = score("bdmc", torch.arange(config.simulated, device=x.device))
    x = x[: config.real]
    ais, doubled, prior = (score(name, x) for name in ("ais", "ais_doubled", "ais_prior"))
    gap, gap_error = mean_and_stderr(simulated.columns["gap"])
    drift, drift_error = mean_and_stderr(doubled.per_datum - ais.per_datum)
    starts, _ = mean_and_stderr(prior.per_datum - ais.per_datum)
    figure = next((each for each in known if each.name == ais.name), ais)  # on all data, where there is one
    higher = shortfall(figure, (*known, doubled, prior), config.shortfall)
    allowed = max(config.drift, 2 * drift_error) if len(x) >= ENOUGH_REAL else config.drift
    return Certificate(
        (
            Check("simulated_data", float(config.simulated), ">=", ENOUGH, "data simulated from the model"),
            Check("gap", gap + 2 * gap_error, "<=", config.gap, "mean gap between the bounds, plus 2 s.e."),
            Check(
                "gap_95",
                simulated.columns["gap"].quantile(0.95).item(),
                "<=",
                config.gap_95,
                "95th percentile of the gap",
            ),
            Check("drift", abs(drift), "<=", allowed, "change under twice the temperatures"),
            Check("starts", abs(starts), "<=", config.starts, "chains from the prior against the refined start"),
            Check("ess", ais.columns["ess"].mean().item(), ">=", max(chains / 2, 2.0), "effective chains"),
            *(
                [Check("shortfall", higher.difference, "<=", higher.limit, f"{higher.bound} above {figure.name}")]
                if higher
                else []
            ),
        ),
        simulated.value,
        simulated.diagnostics["upper"],
    )
