"""What a person sees while a search runs.

Floor 9.
"""

from functools import cache
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from avb_service.distributed.progress import Bars, objective
from avb_service.runs import Job, Outcome
from avb_service.tuning.ending import failure


class ProgressCallback(Callback):
    """Shows trials as they go, and a line for each that ends.

    Args:
        folder: of the trials, where each leaves how it ended.
        bars: that show them; on the terminal by default.
    """

    def __init__(self, folder: Path, bars: Bars | None = None) -> None:
        self._bars, self._folder = bars or Bars(), folder
        self._total: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray saves its callbacks with the search; a display cannot be saved, and is made anew."""
        return {"folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start over."""
        self.__init__(**state)  # type: ignore[misc]

    def setup(self, *args: Any, total_num_samples: int | None = None, **info: Any) -> None:  # noqa: ANN401
        """Begin to show a stage."""
        self._total = total_num_samples

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ANN401
    ) -> None:
        """A report."""
        if "round" in result:
            self._bars.report(self._name(trial), result, _rounds(self._folder / trial.config["trial"]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial finished, diverged or was stopped."""
        outcome = Outcome.read(self._folder / trial.config["trial"])
        if outcome is None or outcome.status == "stopped":
            self._end(trials, trial, "stopped early")
        else:
            self._end(trials, trial, outcome.status, outcome.reason)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial's processes failed for good."""
        self._end(trials, trial, "failed", failure(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial's processes failed, and it is started again."""
        self._bars.end(self._name(trial), f"{self._name(trial)}  goes on from its last checkpoint: {failure(trial)}")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:  # noqa: ANN401
        """Stop showing."""
        self._bars.close()

    def _end(self, trials: list[Trial], trial: Trial, how: str, reason: str = "") -> None:
        ended = 1 + sum(other.is_finished() for other in trials if other is not trial)
        last = trial.last_result or {}
        of = f"/{self._total}" if self._total else ""
        self._bars.end(
            self._name(trial),
            f"{self._name(trial)}  {how} at round {last.get('round', 0)}  {objective(last) or 'no estimate'}  "
            f"[{ended}{of}]{f'  {reason}' if reason else ''}",
        )

    @staticmethod
    def _name(trial: Trial) -> str:
        return f"{trial.config['preset']} {trial.config['trial']}"


@cache
def _rounds(folder: Path) -> int:
    """Of the trial in a folder; wanted at every report, and read once."""
    return Job.read(folder).config.training.rounds
