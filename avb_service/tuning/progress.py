"""What a person sees while a search runs.

Floor 9.
"""

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from avb_service.experiment import OBJECTIVE

ERR = Console(stderr=True)


class ProgressCallback(Callback):
    """A bar for each trial on a terminal, a line for each report elsewhere; and a line for each trial that ends."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bars: dict[str, Any] = {}
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
        if "round" not in result:
            return
        bars = self._shown()
        name = self._name(trial)
        text = f"log p(x) >= {result[OBJECTIVE]:8.2f}" if OBJECTIVE in result else ""
        if trial.trial_id not in self._bars:
            self._bars[trial.trial_id] = bars.add_task(name, total=None, objective="")
        bars.update(self._bars[trial.trial_id], completed=result["round"], objective=text)
        if not bars.console.is_terminal:
            bars.console.print(f"{name}  round {result['round']:>6}  {text}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial finished or was stopped."""
        self._end(trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ANN401
        """A trial's processes failed for good."""
        self._end(trial, "failed")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:  # noqa: ANN401
        """Stop showing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _end(self, trial: Trial, how: str) -> None:
        self._ended += 1
        bars = self._shown()
        if trial.trial_id in self._bars:
            bars.remove_task(self._bars.pop(trial.trial_id))
        last = trial.last_result or {}
        figure = f"log p(x) >= {last[OBJECTIVE]:8.2f}" if OBJECTIVE in last else "no figure"
        of = f"/{self._total}" if self._total else ""
        line = f"{self._name(trial)}  {how} at round {last.get('round', 0)}  {figure}  [{self._ended}{of}]"
        bars.console.print(line, markup=False)

    def _shown(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[objective]}"), TimeElapsedColumn(), console=ERR, disable=not ERR.is_terminal,
            )  # fmt: skip
            self._progress.start()
        return self._progress

    @staticmethod
    def _name(trial: Trial) -> str:
        return f"{trial.config['preset']} {trial.trial_id}"
