"""What is told of a model: by which estimate it is compared, its likelihood on held-out data, its plots, its tags.

Floor 6. Functions of a model and its data, whether its training goes on or has ended.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from avb_service.algorithm import JointDensity, LatentVariableModel
from avb_service.algorithms import METHODS
from avb_service.data.mixtures import MIXTURES
from avb_service.errors import DataError
from avb_service.likelihood import (
    LikelihoodRecord,
    Runner,
    can_be_diagnosed,
    codes_seen,
    diagnose,
    parzen_of_draws,
    surgery,
)
from avb_service.likelihood.needs import measure
from avb_service.likelihood.scoring import serially
from avb_service.model import Model
from avb_service.provenance import code_version
from avb_service.records import Certificate, Estimate
from avb_service.seeding import seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What runs are compared by, on validation data that are always the same: a lower bound; where there is none, how dense
# the draws are around the data.
OBJECTIVE, OF_DRAWS = "validation/log_likelihood", "validation/parzen"
PLOTTED_DATA = 500
COVERAGE_DRAWS = 2500


def objective_of(method: str) -> str:
    """What runs of a method are compared by."""
    return OBJECTIVE if issubclass(METHODS[method], LatentVariableModel) else OF_DRAWS


def objective(model: Model, run: Runner = serially) -> dict[str, float]:
    """Metrics by which searches compare the model; `objective_of` names the one that decides.

    Args:
        model: with its data.
        run: who scores the data.

    Raises:
        UserError: the estimate cannot be had, or is not finite.
    """
    config = model.config.likelihood
    x, _ = model.data("validation", config.validation_data)
    if not isinstance(model.algorithm, LatentVariableModel):
        return parzen_of_draws(model.algorithm, x, seed=config.seed).metrics("validation")
    estimate = model.evaluator(run=run).objective(x)
    if not math.isfinite(estimate.value):
        raise DataError(f"{estimate.name} on validation data is {estimate.value}")
    return {OBJECTIVE: estimate.value, **estimate.metrics("validation")}


def diagnosis(model: Model) -> dict[str, float]:
    """What speaks against the adversary, on validation data; nothing where it cannot be told."""
    if not can_be_diagnosed(model.algorithm):
        return {}
    config = model.config
    x, _ = model.data("validation", config.likelihood.diagnosis_data)
    seen = codes_seen(model.algorithm, model.round or 0, config.training.batch_size)
    return diagnose(model.algorithm, x, seen, seed=config.likelihood.seed).metrics("validation")


def coverage(model: Model) -> dict[str, float]:
    """What draws have found of data whose modes are known; nothing for other data."""
    mixture = MIXTURES.get(model.dataset().name)
    if mixture is None:
        return {}
    with seeded(model.config.likelihood.seed, "coverage"), torch.no_grad():
        found = mixture.coverage(model.algorithm.sample(COVERAGE_DRAWS))
    return {"validation/modes_found": float(found.modes), "validation/good_draws": found.good}


def elbo_surgery(model: Model) -> dict[str, float]:
    """The mean ELBO of validation data taken apart; nothing without a likelihood, or of a single datum."""
    config = model.config.likelihood
    if not isinstance(model.algorithm, LatentVariableModel):
        return {}
    x, _ = model.data("validation", config.validation_data)
    if len(x) < 2:
        return {}
    return surgery(model.algorithm, x, config.elbo_draws, config.seed).metrics("validation")


def assess(model: Model, **options: Any) -> LikelihoodRecord:  # noqa: ANN401
    """Score a model on its test data by what its configuration's budget buys; without p(x|z), by Parzen windows.

    Args:
        model: whose data are read where they have not been.
        options: `likelihood.Evaluator`'s.

    Raises:
        UserError: the data are missing or damaged.
    """
    model = model.with_data()
    x, _ = model.data("test")
    if not isinstance(model.algorithm, LatentVariableModel):
        return LikelihoodRecord(basis(model), tuple(model.parzen(x, **options)))
    return model.evaluator(**options).assess(x, model.config.likelihood.budget, basis(model, model.algorithm))


def basis(model: Model, scored: JointDensity | None = None) -> dict[str, str]:
    """What estimates on a model's test data depend on beside the model that is scored.

    Args:
        model: whose data they are.
        scored: whose estimates, which tells whether they are of a density; None where they are no log-likelihoods.

    Raises:
        UserError: the data are missing or damaged.
    """
    config, dataset = model.config, model.dataset()
    return {
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "split": "test",
        "binarisation": config.data.binarisation,
        "seed": str(config.likelihood.seed),
        "data_scored": str(config.likelihood.test_data or "all"),
        **({"measure": measure(scored)} if scored and dataset.spec.values == "levels" else {}),  # others have but one
    }


def plots(model: Model) -> "dict[str, Figure]":
    """All plots that a model can have, by name; those that show data show validation data.

    Raises:
        UserError: the data are missing or damaged.
    """
    from avb_service.figures import draw  # matplotlib is slow to import, and most processes draw nothing

    model = model.with_data()
    x, labels = model.data("validation", PLOTTED_DATA)
    other = model.other("validation", PLOTTED_DATA)
    history = {} if model.progress is None else model.progress.history
    return draw(
        model.algorithm,
        x,
        labels,
        {name: [(int(round_), value) for round_, value in points] for name, points in history.items()},
        other=None if other is None else other[0],
        subject=model.subject,
        data="validation data",
    )


def bounds_plot(estimates: Sequence[Estimate], certificate: Certificate | None, subject: str) -> "Figure":
    """Estimates of the log-likelihood of test data on one axis, with their errors.

    Args:
        estimates: in nats per datum.
        certificate: of the annealed one, where there is one.
        subject: the model in words.
    """
    from avb_service.figures import bounds, caption

    return caption(bounds(estimates, certificate.bracket if certificate else None), f"{subject}, test data")


def tags(model: Model) -> dict[str, str]:
    """What tables of runs and models show of a model.

    Raises:
        UserError: its data are missing or damaged.
    """
    config, dataset = model.config, model.dataset()
    return {
        "method": config.algorithm.name,
        "latent_dim": str(getattr(config.algorithm, "latent_dim", "")),
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "data_read": dataset.description,
        "code": code_version(config.packages()),
        "parameters": str(sum(p.numel() for p in model.algorithm.parameters())),
        **(model.progress.tags(model.round) if model.progress else {}),
    }
