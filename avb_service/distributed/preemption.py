"""Hosts that are given notice, as rented ones are: what is trained is saved in time, and training goes on elsewhere.

Floor 8. There are two ways to be told: Ray drains the host (`ray drain-node`, its autoscaler), which it announces with
a deadline and does not count as a failure; or somebody sends a worker SIGTERM.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray._private import state  # there is no public way to ask who is drained, without a dashboard
from ray.train.torch import TorchConfig

TERMINATED = threading.Event()  # this process has been told to end
ASK_EVERY = 5  # seconds between two questions to Ray, which all workers wait for; it looks as often itself


class HostLeaves(Exception):
    """A worker was told to end; what it has trained is saved."""


class Preemption:
    """What a worker does between two reports: it saves the state, once, when one of them has been given notice.

    Args:
        device: of the workers' collectives.
        draining: the hosts of the workers that Ray drains; asked by all workers, or by none.
    """

    def __init__(self, device: torch.device, draining: Callable[[], Iterable[str]]) -> None:
        self._device, self._draining = device, draining
        self._asked, self._drained = time.monotonic(), set[str]()

    def __call__(self, save: Callable[[], None]) -> None:
        """Look, and save.

        Args:
            save: called by all workers or none.

        Raises:
            HostLeaves: SIGTERM came, and the state is saved. Ray starts the workers again, where there is room.
        """
        terminated, ask = self._agreed(TERMINATED.is_set(), time.monotonic() - self._asked > ASK_EVERY)
        if terminated:
            save()
            raise HostLeaves("a worker of this model was told to end; its state is saved")
        if ask:
            self._asked = time.monotonic()
            if not self._drained.issuperset(draining := set(self._draining())):
                save()
                self._drained |= draining

    def _agreed(self, *told: bool) -> list[bool]:
        """What one of the workers was told, so that all do the same."""
        if not dist.is_initialized():
            return list(told)
        told_all = torch.tensor(told, dtype=torch.int32, device=self._device)
        dist.all_reduce(told_all, dist.ReduceOp.MAX)
        return [bool(each) for each in told_all.tolist()]


def preempted() -> list[str]:
    """Hosts of this group of Ray Train's workers that are drained."""
    draining = ray.train.get_preemption_info()
    return [] if draining is None else list(draining.preempted_node_ids)


def leaving() -> set[str]:
    """This host, where it is drained."""
    return {ray.get_runtime_context().get_node_id()} & state.state.get_draining_nodes().keys()


class Heeding:
    """An actor of Ray Tune that heeds SIGTERM; Ray's own end at once."""

    def setup(self, config: dict[str, Any]) -> None:
        """In the main thread, as signals have to be."""
        listen()
        super().setup(config)  # type: ignore[misc]  # of the class that it is mixed into


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
