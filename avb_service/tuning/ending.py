"""The end of trials that do not end by themselves.

Floor 9. Ray Tune kills the workers of a trial that its scheduler stops, so they cannot say that it has ended.
"""

import logging
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from avb_service.errors import UserError
from avb_service.lock import Owned
from avb_service.runs import JOB, Job, Outcome
from avb_service.tracking import Status
from avb_service.tuning.trials import STOPPED

LOGGER = logging.getLogger(__name__)
RAISED = re.compile(r"^(?:\w+\.)+\w+: ", re.MULTILINE)  # before the message of an exception, at the end of a traceback


class EndingCallback(Callback):
    """Notes that a trial is stopped, or has failed for good, and closes its run, at that moment.

    Args:
        folder: of the trials.
        owned: what says that the search is ours; what another has taken over is left alone.
    """

    def __init__(self, folder: Path, owned: Owned | None = None) -> None:
        self._folder, self._owned = folder, owned

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial finished, diverged or was stopped; its workers have said so, unless they were stopped."""
        if Outcome.read(self._folder / trial.config["trial"]) is None:
            self._close(trial, STOPPED, "FINISHED", str(STOPPED))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial's processes failed for good."""
        reason = failure(trial)
        self._close(trial, Outcome("failed", reason), "FAILED", reason)

    def _close(self, trial: Trial, outcome: Outcome, status: Status, reason: str) -> None:
        """In a thread: MLflow may not answer, and the other trials go on."""
        folder = self._folder / trial.config["trial"]
        if (folder / JOB).exists():  # else it has no run
            job = replace(Job.read(folder), owned=self._owned)
            with suppress(OSError, UserError):  # it is for people to read, or another's to write
                job.end(outcome)
            Thread(target=_close, args=(job, status, reason), name=f"ending-{trial.trial_id}", daemon=True).start()


def failure(trial: Trial) -> str:
    """What last went wrong with a trial's processes, without Ray's account of where."""
    noted = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    _, *raised = RAISED.split(noted.rpartition("Failure # ")[2])
    return raised[-1].strip() if raised else "its process has died"


def _close(job: Job, status: Status, reason: str) -> None:
    try:
        job.close(status, reason)
    except UserError as error:  # it is kept, and delivered at the end of the search
        LOGGER.warning("the run of %s is not closed: %s", job.name, error)
