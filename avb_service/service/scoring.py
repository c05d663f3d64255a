"""What a model is worth: log-likelihoods, a comparison with another, plots.

Floor 9.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service.display import Display
from avb_service.errors import UserError
from avb_service.results import Compared, Evaluation
from avb_service.service.models import load, prepare
from avb_service.shown import Plots

if TYPE_CHECKING:
    from torch import Tensor

    from avb_service.data.inputs import Given
    from avb_service.likelihood import Budget, Evaluator, Runner
    from avb_service.model import Model
    from avb_service.records import Estimate, LikelihoodRecord


def evaluate(
    model: "str | Path | Model",
    x: "Given | None" = None,
    *,
    estimators: Sequence[str] = (),
    budget: "Budget | None" = None,
    settings: str | Path | None = None,
    noise: float | None = None,
    data_root: str | None = None,
    limit: int | None = None,
    workers: int = 1,
    keep: Path | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Log-likelihoods in nats per datum, each with its kind and error bar; with a certificate where asked for.

    Args:
        model: as `load` takes it, or one that is loaded.
        x: data [n, C, H, W], as a model takes them; its own test data by default.
        estimators: only these, by name.
        budget: quick unless given; standard buys annealing, certified a certificate, too.
        settings: YAML file with keys of the `likelihood` section.
        noise: standard deviation of the pixels, for a model without p(x|z), such as a GAN.
        data_root: folder of the data here.
        limit: use only so many test data.
        workers: score on so many cores, through Ray; 1 stays in this process.
        keep: folder for scored data; called again, it goes on.
        display: as for `train`.

    Raises:
        UserError: no such model, estimator or budget, or data that do not fit or are missing.
    """
    prepare()
    from avb_service.settings import read_likelihood

    if estimators and budget:
        raise UserError("--budget buys estimators, and --estimator names them one by one: give either")
    display, loaded = display or Display(), load(model)
    likelihood = read_likelihood(loaded.config.likelihood, None if settings is None else Path(settings), budget)
    loaded = replace(loaded, config=loaded.config.model_copy(update={"likelihood": likelihood}))
    if x is None or "parzen" in estimators:
        loaded = loaded.with_data(data_root)
    data = loaded.check(x) if x is not None else loaded.data("test", limit)[0]
    with _runner(workers, display) as run, display.scoring() as progress:
        options = {"run": run, "store": keep, "progress": progress}
        evaluator = loaded.evaluator(noise=noise, **options)
        windows = partial(loaded.parzen, data, **options)
        if estimators:
            record = _by_name(estimators, evaluator, data, windows)
        else:
            record = evaluator.assess(data, likelihood.budget)
    named = str(model) if isinstance(model, str | Path) else loaded.subject
    other_data = loaded.other_data() if x is None else None
    return Evaluation(named, loaded.config.data.name, len(data), record, loaded.subject, other_data)


def _by_name(
    names: Sequence[str], evaluator: "Evaluator", data: "Tensor", windows: "Callable[[], Iterable[Estimate]]"
) -> "LikelihoodRecord":
    """These estimates; that of an adversary with what speaks against it.

    Raises:
        UserError: there is none of a name, or it does not fit the model; before any is computed.
    """
    from avb_service.records import LikelihoodRecord

    for name in set(names) - {"parzen"}:
        evaluator.require(name)
    scored = (windows() if name == "parzen" else [evaluator.score(name, data)] for name in names)
    estimates = tuple(chain.from_iterable(scored))
    diagnosis = evaluator.diagnosis(data) if "elbo_adversarial" in names else None
    return LikelihoodRecord({}, estimates, diagnosis=diagnosis)


def compare(first: "str | Path | Model | Evaluation", second: "str | Path | Model | Evaluation") -> Compared:
    """Which of two models is better, datum by datum on the same held-out data; neither is built.

    Args:
        first: as `load` takes it, or one that is loaded and carries its likelihoods; or what `certify` has given.
        second: another.

    Raises:
        UserError: no such model, or they were not scored on the same data.
    """
    one, other = map(_said, (first, second))
    return Compared(one, other, _record(first).against(_record(second)))


def plots(model: "str | Path | Model", data_root: str | None = None) -> Plots:
    """All plots that a model can have, by name, as matplotlib's Figures.

    Args:
        model: as `load` takes it, or one that is loaded.
        data_root: folder of its data here.

    Raises:
        UserError: there is no such model, or its data are missing.
    """
    prepare()
    from avb_service.report import plots as draw

    return Plots(draw(load(model).with_data(data_root)))


def _said(model: "str | Path | Model | Evaluation") -> str:
    """How a model is called."""
    if isinstance(model, Evaluation):
        return model.model
    return str(model) if isinstance(model, str | Path) else model.subject


def _record(model: "str | Path | Model | Evaluation") -> "LikelihoodRecord":
    """Of a model that need not be built."""
    if isinstance(model, Evaluation):
        if not model.record.basis:
            raise UserError(
                f"the evaluation of {model.model} does not keep which data it is of: compare the model itself"
            )
        return model.record
    if not isinstance(model, str | Path):
        return model.record
    from avb_service.tracking.promotion import record_of

    return record_of(str(model))


@contextmanager
def _runner(workers: int, display: Display) -> "Iterator[Runner]":
    """Who scores blocks: this process, or so many Ray workers."""
    if workers == 1:
        from avb_service.likelihood.scoring import serially

        yield serially
        return
    from avb_service.distributed.cluster import cluster, own_capacity
    from avb_service.distributed.scoring import on_cluster

    if (here := own_capacity()) is not None:
        on_cluster(here, workers)
    with cluster(display.note, partial(on_cluster, workers=workers)) as capacity:
        yield on_cluster(capacity, workers)
