"""A trial of a search, as its folder tells of it. Knows nothing of Ray Tune.

Floor 9.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from avb_service.checkpoint import CheckpointStore
from avb_service.lock import Owned
from avb_service.report import objective_of
from avb_service.runs import JOB, OUTCOME, Job, Outcome
from avb_service.settings import ExperimentConfig

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
