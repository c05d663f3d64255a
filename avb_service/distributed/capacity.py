"""What a worker of a model asks Ray for, and how many models fit on a cluster.

Floor 8.
"""

from dataclasses import dataclass

from avb_service.errors import UserError
from avb_service.scaling import ScalingConfig

# The actor of a trial with several workers only waits for them; on two cores it must not take a core from them.
TRIAL_CPUS = 0.01
WORKER_SHARE = 0.98  # of a core asked for: leaves room for the trials' own actors on a machine that is full
ROUNDING = 1e-6  # of quotients; Ray itself counts in steps of 1e-4


@dataclass(frozen=True)
class Node:
    """What one host of a cluster has."""

    cpus: float
    gpus: float

    def workers(self, scaling: ScalingConfig, trials: int) -> int:
        """How many whole workers fit beside the actors of so many trials."""
        fits = (self.cpus - trials * TRIAL_CPUS) / worker_cpus(scaling)
        if share := scaling.gpus_per_worker:
            # Several workers may share a GPU, or one have several; none has parts of two.
            fits = min(fits, int(self.gpus) * int(1 / share + ROUNDING) if share < 1 else self.gpus / share)
        return max(0, int(fits + ROUNDING))


@dataclass(frozen=True)
class Capacity:
    """What a cluster has in all."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """On all hosts."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """On all hosts."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        """For people."""
        return f"{len(self.nodes)} node(s), {self.cpus:g} CPUs, {self.gpus:g} GPUs"

    def models_at_a_time(self, scaling: ScalingConfig) -> int:
        """How many models of this size can be trained side by side; at least 1.

        Workers of a model may be on several hosts, each of them on one. Where Ray puts the actors of the trials is not
        known, so all of them are counted on every host.

        Raises:
            UserError: not even one; Ray would wait for ever.
        """
        models = 0
        while sum(node.workers(scaling, models + 1) for node in self.nodes) >= (models + 1) * scaling.workers:
            models += 1
        if models < 1 and sum(node.workers(scaling, 1) for node in self.nodes) >= scaling.enough:
            return 1
        if models < 1:
            largest = max(self.nodes, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
            raise UserError(
                f"scaling: {scaling.enough} workers of {scaling.cpus_per_worker:g} CPUs and "
                f"{scaling.gpus_per_worker:g} GPUs do not fit; the cluster has {self}, of which "
                f"{largest.cpus:g} CPUs and {largest.gpus:g} GPUs on its largest node. Lower scaling, or add nodes"
            )
        return models


def worker_cpus(scaling: ScalingConfig) -> float:
    """Of what a worker asks Ray for."""
    return scaling.cpus_per_worker * WORKER_SHARE


def room(scaling: ScalingConfig) -> dict[str, float]:
    """What a worker asks Ray for."""
    gpus = {"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {}
    return {"CPU": worker_cpus(scaling), **gpus}
