"""Connecting to Ray: an existing cluster where there is one, else a local one.

Floor 8.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from avb_service.errors import UserError
from avb_service.settings import ScalingConfig

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how often Ray Train collects reports: 2 s by default
    "RAY_AIR_NEW_OUTPUT": "0",
}
LAPTOP = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # an actor for each model, for what happens to rented hosts only

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
    """Be connected to Ray for a block: to the cluster that RAY_ADDRESS or the node names, else to a local one.

    A local cluster is started for the block and stopped after it; one that was there is left as it is.

    Raises:
        UserError: no Ray answers where RAY_ADDRESS says.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (ENVIRONMENT if address else ENVIRONMENT | LAPTOP).items():
        os.environ.setdefault(name, value)
    import ray

    mine = not ray.is_initialized()
    if mine:
        package = Path(__file__).parents[1]
        try:
            ray.init(
                # Ray Train asks the dashboard whether a stopped trial is gone; without one its CPUs are never freed.
                include_dashboard=True,
                logging_level=logging.WARNING,
                log_to_driver=False,
                # Other hosts may have another version of the package, or none.
                runtime_env={
                    "env_vars": {name: os.environ[name] for name in (*ENVIRONMENT, *LAPTOP) if name in os.environ},
                    "py_modules": [str(package)],
                },
            )
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS={address or ''}: start it (ray up), mend the address, or unset "
                "RAY_ADDRESS to use this machine alone"
            ) from error
    try:
        resources = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        yield Capacity(resources.get("CPU", 0), resources.get("GPU", 0), nodes)
    finally:
        if mine:
            ray.shutdown()
