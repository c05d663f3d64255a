"""What a person sees while a search runs.

Floor 9.
"""

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from avb_service.distributed.progress import Bars, objective


class ProgressCallback(Callback):
    """Shows trials as they go, and a line for each that ends."""

    def __init__(self) -> None:
        self._bars = Bars()
        self._ended = 0
        self._total: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray saves its callbacks with the search; a display cannot be saved, and is made anew."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start over."""
        self.__init__()  # type: ignore[misc]

    def setup(self, *args: Any, total_num_samples: int | None = None, **info: Any) -> None:  # noqa: ANN401
        """Begin to show a stage."""
        self._ended, self._total = 0, total_num_samples

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
            self._bars.report(self._name(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial finished or was stopped."""
        self._end(trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial's processes failed for good."""
        self._end(trial, "failed")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:  # noqa: ANN401
        """Stop showing."""
        self._bars.close()

    def _end(self, trial: Trial, how: str) -> None:
        self._ended += 1
        last = trial.last_result or {}
        of = f"/{self._total}" if self._total else ""
        self._bars.end(
            self._name(trial),
            f"{self._name(trial)}  {how} at round {last.get('round', 0)}  {objective(last) or 'no figure'}  "
            f"[{self._ended}{of}]",
        )

    @staticmethod
    def _name(trial: Trial) -> str:
        return f"{trial.config['preset']} {trial.trial_id}"
