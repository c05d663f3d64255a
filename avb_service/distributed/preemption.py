"""Hosts that are given notice, as rented ones are: what is trained is saved in time, and training goes on elsewhere.

Floor 8. There are two ways to be told: Ray drains the host (`ray drain-node`, its autoscaler), which it announces with
a deadline and does not count as a failure; or somebody sends a worker SIGTERM.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig

TERMINATED = threading.Event()  # this process has been told to end
ASK_EVERY = 5  # seconds between two questions to Ray, which all workers wait for; it looks as often itself


class HostLeaves(Exception):
    """A worker was told to end; what it has trained is saved."""


class Preemption:
    """What a worker does between two reports: it saves the state, once, when one of them has been given notice.

    Args:
        device: of the workers' collectives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._asked, self._drained = device, time.monotonic(), set[str]()

    def __call__(self, save: Callable[[], None]) -> None:
        """Look, and save.

        Args:
            save: called by all workers or none.

        Raises:
            HostLeaves: SIGTERM came, and the state is saved. Ray Train starts the workers again, where there is room.
        """
        due = time.monotonic() - self._asked > ASK_EVERY
        told = torch.tensor([TERMINATED.is_set(), due], dtype=torch.int32, device=self._device)
        dist.all_reduce(told, dist.ReduceOp.MAX)  # so that all do the same
        terminated, ask = told.tolist()
        if terminated:
            save()
            raise HostLeaves("a worker of this model was told to end; its state is saved")
        if ask:
            self._asked = time.monotonic()
            draining = ray.train.get_preemption_info()
            if draining is not None and not self._drained.issuperset(draining.preempted_node_ids):
                save()
                self._drained.update(draining.preempted_node_ids)


class HeedingTorchConfig(TorchConfig):
    """torch.distributed, in worker processes that heed SIGTERM; Ray's own end at once."""

    @property
    def backend_cls(self) -> Any:  # noqa: ANN401  Ray has no public type for it
        """What Ray Train calls in its controller when workers start."""

        class HeedingBackend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:  # noqa: ANN401
                super().on_start(worker_group, backend_config)
                worker_group.execute(listen)  # in the main thread of each worker, as signals have to be

        return HeedingBackend


def listen() -> None:
    """Answer the first SIGTERM with a note of it, and the second in the ordinary way."""

    def note(signum: int, frame: object) -> None:
        TERMINATED.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, note)
