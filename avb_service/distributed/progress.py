"""What a person sees while models are trained.

Floor 8.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any

from ray.train import UserCallback
from ray.util.queue import Queue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from avb_service import tables
from avb_service.report import OBJECTIVE, OF_DRAWS


class Bars:
    """A bar for each model on a terminal, a line for each report elsewhere.

    Args:
        rounds: that each is trained for, where it is known; the time left is shown then.
        quiet: show nothing at all.
        console: where to.
    """

    def __init__(self, rounds: int | None = None, quiet: bool = False, console: Console = tables.ERR) -> None:
        self._rounds, self._quiet, self._console = rounds, quiet, console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[objective]}"),
            TimeElapsedColumn() if rounds is None else TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=3600,  # reports may be minutes apart
        )
        self._tasks: dict[str, Any] = {}

    def report(self, name: str, metrics: Mapping[str, Any], rounds: int | None = None) -> None:
        """Show a report.

        Args:
            name: of the model.
            metrics: its round, and its objective if it has one.
            rounds: of this model, where models differ.
        """
        round_ = metrics["round"]
        if name not in self._tasks:
            self._progress.start()
            # One round short, so that this report starts the clock for the time left; a resumed run begins late.
            self._tasks[name] = self._progress.add_task(
                name, total=rounds or self._rounds, completed=round_ - 1, objective="", visible=False
            )
        self._progress.update(self._tasks[name], completed=round_, objective=objective(metrics), visible=True)
        if not self._console.is_terminal:
            self._print(f"{name}  round {round_:>6}  {objective(metrics)}")

    def end(self, name: str, line: str) -> None:
        """Remove a bar and leave a line."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        self._print(line)

    def close(self) -> None:
        """Remove all bars."""
        for name in list(self._tasks):
            self._progress.remove_task(self._tasks.pop(name))
        self._progress.stop()

    def _print(self, line: str) -> None:
        if not self._quiet:
            tables.line(line, self._console)


def objective(metrics: Mapping[str, Any]) -> str:
    """What a model is compared by, for people."""
    if OBJECTIVE in metrics:
        return f"log p(x) >= {metrics[OBJECTIVE]:8.2f}"
    return f"parzen {metrics[OF_DRAWS]:8.2f}" if OF_DRAWS in metrics else ""


@contextmanager
def listening(on_report: Callable[[Mapping[str, Any]], None]) -> Iterator[list[UserCallback]]:
    """Callbacks for Ray Train by which its reports reach this process, while the block lasts.

    Args:
        on_report: told what rank 0 reports; called in a thread.
    """
    queue = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        for metrics in iter(queue.get, None):
            on_report(metrics)

    thread = Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield [_Forward(queue)]
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()


class _Forward(UserCallback):
    """What Ray Train calls, in a process of its own."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401
        """Pass a report on."""
        self._queue.put(metrics[0])
