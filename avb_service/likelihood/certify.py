"""The test that a recipe of annealing is put to, from which a certificate comes.

Floor 5. Chains that have not mixed look well: their own spread is small, and their estimate low by nats. What shows it
is data drawn from the model itself, for which the truth can be bracketed, and a second start for real data.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from avb_service.config import Config
from avb_service.records.certificate import Certificate, Check
from avb_service.records.estimate import Estimate, mean_and_stderr
from avb_service.records.shortfall import TOLERANCE, shortfall

ENOUGH = 200  # simulated data, fewer of which say little of the 95th percentile
ENOUGH_REAL = 50  # real data, fewer of which do not excuse a drift by its standard error
Score = Callable[[str, Tensor], Estimate]  # (estimator, data) -> estimate


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
    held = next((each for each in known if each.key == ais.key), ais)  # on all data, where there is one
    higher = shortfall(held, (*known, doubled, prior), config.shortfall)
    allowed = max(config.drift, 2 * drift_error) if len(x) >= ENOUGH_REAL else config.drift
    return Certificate(
        (
            Check("simulated_data", float(config.simulated), ">=", ENOUGH, "data simulated from the model"),
            Check("gap", gap + 2 * gap_error, "<=", config.gap, "mean gap between the bounds, plus 2 s.e."),
            Check(
                "gap_95",
                float(np.quantile(simulated.columns["gap"], 0.95)),
                "<=",
                config.gap_95,
                "95th percentile of the gap",
            ),
            Check("drift", abs(drift), "<=", allowed, "change under twice the temperatures"),
            Check("starts", abs(starts), "<=", config.starts, "chains from the prior against the refined start"),
            Check("ess", ais.diagnostics["ess"], ">=", max(chains / 2, 2.0), "effective chains"),
            *(
                [Check("shortfall", higher.difference, "<=", higher.limit, f"{higher.bound} above {higher.estimate}")]
                if higher
                else []
            ),
        ),
        simulated.value,
        simulated.diagnostics["upper"],
    )
