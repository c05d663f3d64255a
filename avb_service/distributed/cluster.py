"""Connecting to Ray: an existing cluster where there is one, else a local one.

Floor 8.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avb_service.errors import UserError
from avb_service.settings import ScalingConfig

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how often Ray Train collects reports: 2 s by default
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # else a trial that fails before its first report ends the search
}
LAPTOP = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # an actor for each model, for what happens to rented hosts only

QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}

# The actor that runs a trial only waits for its workers; on two cores it must not take a core from them.
TRIAL_CPUS = 0.01
WORKER_SHARE = 0.98  # of a core asked for: leaves room for the trials' own actors on a machine that is full


@dataclass(frozen=True)
class Capacity:
    """What a cluster has in all."""

    cpus: float
    gpus: float
    nodes: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.nodes} node(s), {self.cpus:g} CPUs, {self.gpus:g} GPUs"

    def models_at_a_time(self, scaling: ScalingConfig) -> int:
        """How many models of this size can be trained side by side; at least 1.

        Raises:
            UserError: not even one; Ray would wait for ever.
        """
        cpus, gpus = scaling.workers * worker_cpus(scaling), scaling.workers * scaling.gpus_per_worker
        fits = int(self.cpus / (cpus + TRIAL_CPUS))
        if gpus:
            fits = min(fits, int(self.gpus / gpus))
        if fits < 1:
            raise UserError(
                f"scaling: {scaling.workers} workers of {scaling.cpus_per_worker:g} CPUs and "
                f"{scaling.gpus_per_worker:g} GPUs do not fit; the cluster has {self.cpus:g} CPUs and "
                f"{self.gpus:g} GPUs on {self.nodes} node(s). Lower scaling.workers, or add nodes"
            )
        return fits


def worker_cpus(scaling: ScalingConfig) -> float:
    """What a worker asks Ray for."""
    return scaling.cpus_per_worker * WORKER_SHARE


@contextmanager
def cluster() -> Iterator[Capacity]:
    """Be connected to Ray for a block: to the cluster that RAY_ADDRESS names, else to one of our own on this machine.

    Our own is started for the block and stopped after it. Another that runs on this machine is not joined unless
    RAY_ADDRESS says so (`auto` finds the one that `ray start` made): it may be another program's, and end with that.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    mine, address = not ray.is_initialized(), os.environ.get("RAY_ADDRESS", "local")
    if mine and address == "local":
        _start()
    elif mine:
        _join(address)
    try:
        resources = ray.cluster_resources()
        alive = [node for node in ray.nodes() if node["Alive"]]
        yield Capacity(resources.get("CPU", 0), resources.get("GPU", 0), len(alive))
    finally:
        if mine:
            ray.shutdown()


def _join(address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        UserError: none answers there.
    """
    import ray

    try:
        ray.init(address=address, runtime_env=_runtime_env({}), **QUIET)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start it (ray up), mend the address, or unset it to run "
            "on this machine alone"
        ) from error


def _start() -> None:
    """Start a cluster on this machine, known to all its processes by its address.

    Ray Train's clean-up of a stopped trial would else look for the cluster among the processes of the machine, and give
    up where it finds two; the CPUs of the trial would never be freed.
    """
    import ray
    from ray.util import get_node_ip_address

    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    here = {**LAPTOP, "RAY_ADDRESS": f"{get_node_ip_address()}:{port}"}
    # The clean-up asks the dashboard, so that has to be there as well.
    ray.init(address="local", include_dashboard=True, runtime_env=_runtime_env(here), **QUIET)


def _runtime_env(more: dict[str, str]) -> dict[str, Any]:
    """What every process of the job gets: the settings, and the package as it is here; other hosts may have another."""
    settings = {name: os.environ[name] for name in ENVIRONMENT}
    return {"env_vars": {**settings, **more}, "py_modules": [str(Path(__file__).parents[1])]}
