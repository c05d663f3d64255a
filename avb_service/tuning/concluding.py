"""The end of a search: its best trials are scored on held-out data, and the best of each method is registered.

Floor 9.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from avb_service.data.datasets import DataConfig, Dataset
from avb_service.model import Model
from avb_service.recorder import record_plots
from avb_service.tracking.publish import Published
from avb_service.tuning.look import begun, plots, tried
from avb_service.tuning.record import Search
from avb_service.tuning.trials import TRIAL, Trial, setting_of

RERANKED = 3  # trials whose held-out estimates decide which is best


def conclude(search: Search, on_step: Callable[[str], None], **scoring: Any) -> list[Published]:  # noqa: ANN401
    """Score the best trials on held-out data and register the best of each method; the best of all may be champion.

    The search ranks trials by a bound that is cheap; its best few are ranked again by what their budget buys, those
    whose estimates can be believed before the others.

    Every step asks what is there already, so a call that was interrupted anywhere is brought to its end by another:
    what has been scored or registered is not done again.

    Args:
        search: whose trials have run.
        on_step: told what is being done.
        scoring: who scores the data, and who is told; options of `likelihood.Evaluator`.
    """
    search.best()  # says why, where there is none
    reached = [trial for trial in search.trials() if trial.objective is not None]
    registered = [trial for trial in reached if trial.job.name in search.published()]
    if _methods(registered) != _methods(reached):
        contenders = _contenders(search, reached)
        leaders = _leaders(reached)
        assessed = _assess([*contenders, *leaders.values()], on_step, scoring)
        best = max(contenders, key=lambda trial: assessed[trial.job.name].record.standing)
        _register(search, _leaders([best, *reached]).values(), best, assessed)
    search.check_owned()
    search.tell()
    record_plots(search.run, plots(search.space, tried(search.space, begun(search.folder))))
    search.run.finish()
    return list(search.published().values())


def _contenders(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """The best few trials, of as many settings: of several seeds the best."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.stage == TRIAL:
            found.setdefault(trial.job.name if search.space.seeds == 1 else setting_of(trial), trial)
    return list(found.values())[:RERANKED]


def _methods(trials: Iterable[Trial]) -> set[str]:
    return {trial.config.algorithm.name for trial in trials}


def _leaders(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The first of each method."""
    return {trial.config.algorithm.name: trial for trial in reversed(trials)}


def _assess(trials: Iterable[Trial], on_step: Callable[[str], None], scoring: Mapping[str, Any]) -> dict[str, Model]:
    """Models with their held-out likelihoods, by trial; each is scored once, and data are read once."""
    assessed: dict[str, Model] = {}
    datasets: dict[DataConfig, Dataset] = {}
    for trial in trials:
        name, data = trial.job.name, trial.config.data
        if name not in assessed:
            on_step(f"scoring {name} on held-out data")
            assessed[name] = trial.job.assess(datasets.get(data), **scoring)
            datasets[data] = assessed[name].dataset()
    return assessed


def _register(search: Search, trials: Iterable[Trial], champion: Trial, assessed: Mapping[str, Model]) -> None:
    """Publish what is not yet published, and note each at once."""
    published = search.published()
    for trial in trials:
        name = trial.job.name
        if name not in published:
            published[name] = trial.job.publish(assessed[name], candidate=trial is champion)
            if trial is champion:
                search.run.log_metrics(published[name].metrics, 0)
                search.run.set_tags({"avb.best_trial": name, "avb.best_model": published[name].uri})
            search.keep(published)
