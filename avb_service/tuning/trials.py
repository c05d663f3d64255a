"""A trial of a search, as its folder tells of it. Knows nothing of Ray Tune.

Floor 9.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from avb_service.checkpoint import CheckpointStore
from avb_service.lock import Owned
from avb_service.report import objective_of
from avb_service.runs import JOB, OUTCOME, Job, Outcome
from avb_service.settings import ExperimentConfig
from avb_service.trees import override

TRIAL, BASELINE = "trial", "baseline"
STOPPED = Outcome("stopped", "early by the scheduler")


@dataclass(frozen=True)
class Trial:
    """A trial that has begun.

    Attributes:
        job: what it trains.
        stage: `trial` or `baseline`.
        objective: the best estimate on validation data that it has reached, None where none.
        rounds: that it had trained at its last report.
        seconds: that these took.
        outcome: how it ended; None while it has not.
    """

    job: Job
    stage: str
    objective: float | None
    rounds: int
    seconds: float
    outcome: Outcome | None

    @property
    def config(self) -> ExperimentConfig:
        """What it is trained with."""
        return self.job.config

    @property
    def curve(self) -> list[list[float]]:
        """Round and objective of each report, nats per datum."""
        store = CheckpointStore(self.job.checkpoints)
        return store.last_history().get(objective_of(self.config.algorithm.name), [])

    @property
    def cores(self) -> float:
        """That all its workers have."""
        return self.config.scaling.workers * self.config.scaling.cpus_per_worker

    @property
    def seconds_alive(self) -> float:
        """From its beginning to its end, or to its last report where it has not ended, seconds."""
        begun, ended = self.job.folder / JOB, self.job.folder / OUTCOME
        last = ended if ended.exists() else CheckpointStore(self.job.checkpoints).newest
        return max(0.0, last.stat().st_mtime - begun.stat().st_mtime) if last else 0.0

    @property
    def status(self) -> str:
        """For people."""
        return "not at its end" if self.outcome is None else str(self.outcome)

    @classmethod
    def read(cls, folder: Path, owned: Owned | None = None) -> "Trial":
        """The trial that has begun in a folder.

        Args:
            folder: of the trial.
            owned: what says that the search is ours; None where it is only looked at.
        """
        job = replace(Job.read(folder), owned=owned)
        store = CheckpointStore(job.checkpoints, best_by=objective_of(job.config.algorithm.name))
        rounds, metrics = store.last_report()
        seconds = metrics.get("time/train_seconds", 0.0)
        return cls(job, job.tags["avb.kind"], store.best_metric(), rounds, seconds, Outcome.read(folder))


@dataclass(frozen=True)
class Mean:
    """What a setting has reached with all its seeds.

    Attributes:
        objective: the mean of the best that each seed has reached, nats per datum; None where none has.
        error: standard error of the mean; None of a single seed.
        seeds: how many have reached anything.
    """

    objective: float | None
    error: float | None
    seeds: int


def read_trials(folder: Path, owned: Owned | None = None) -> list[Trial]:
    """The trials of a search, in the order in which they were begun.

    Args:
        folder: of the search.
        owned: what says that it is ours; None where it is only looked at.
    """
    jobs = sorted(folder.glob(f"trials/*/{JOB}"), key=lambda path: (path.stat().st_mtime, path.parent.name))
    return [Trial.read(path.parent, owned) for path in jobs]


def setting_of(trial: Trial) -> str:
    """What a trial has in common with those of other seeds."""
    return json.dumps([trial.stage, override(trial.config.identity(), "training.seed", None)], sort_keys=True)


def means(trials: Iterable[Trial]) -> dict[Path, Mean]:
    """The mean of each trial's setting, by the trial's folder; the same for all seeds of a setting."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(setting_of(trial), []).append(trial)
    return {trial.job.folder: _mean(group) for group in groups.values() for trial in group}


def ranked(seeds: int, trials: Iterable[Trial]) -> list[Trial]:
    """Trials, best first: by their own objective; with several seeds, by the mean of their setting.

    Settings that were trained with all their seeds come before others, whose single figure is one of chance.
    """
    found = list(trials)
    by_setting = means(found) if seeds > 1 else {}

    def rank(trial: Trial) -> tuple[float, ...]:
        mean = by_setting.get(trial.job.folder)
        first = () if mean is None else (min(mean.seeds, seeds), _or_worst(mean.objective))
        return (*first, _or_worst(trial.objective))

    return sorted(found, key=rank, reverse=True)


def _mean(group: list[Trial]) -> Mean:
    reached = [trial.objective for trial in group if trial.objective is not None]
    if not reached:
        return Mean(None, None, 0)
    mean, count = math.fsum(reached) / len(reached), len(reached)
    spread = math.fsum((each - mean) ** 2 for each in reached)
    return Mean(mean, math.sqrt(spread / (count - 1) / count) if count > 1 else None, count)


def _or_worst(objective: float | None) -> float:
    return -math.inf if objective is None else objective
