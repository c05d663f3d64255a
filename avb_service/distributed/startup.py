"""How Ray Train starts workers: with no more than a model needs, and in time.

Floor 8.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # there is no public way to learn of a start

LOGGER = logging.getLogger(__name__)


class LeanTrainer(TorchTrainer):
    """Starts no process to hand out shards of Ray Data, of which there are none: two seconds of a core a start."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if type(each).__name__ != "DatasetsCallback"]  # by name, which may change


class StartsInTime(WorkerGroupCallback):
    """Ends the controller of a group of workers that is not in training in time; its owner starts another.

    A worker that has begun to train is watched by the others, in their collectives.

    Args:
        seconds: what a start may take, with the minute for which Ray Train waits for room.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """From the search for room on."""
        self._disarm()
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True
        self._timer.start()
        try:
            yield
        except BaseException:  # Ray Train tries again, and begins to count anew
            self._disarm()
            raise

    def after_worker_group_training_start(self, worker_group: Any) -> None:  # noqa: ANN401
        """All of them train."""
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _end(self) -> None:
        LOGGER.error("the workers have not started within %g s; giving them up", self._seconds)
        os._exit(1)  # the main thread waits for a worker, and nothing can reach it there
