"""How many workers train a model.

Floor 6.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from avb_service.config import Config


class ScalingConfig(Config):
    """How many data-parallel workers train one model, and what each of them gets.

    Attributes:
        workers: processes; must divide training.logical_workers.
        min_workers: with how many training begins, or goes on after a host was lost, where there is no room for all; it
            takes more as they come. Always waits for all by default.
        cpus_per_worker: cores of each, which torch uses as threads.
        gpus_per_worker: GPUs of each; 0 trains on CPUs.
        max_failures: how many times workers that died are replaced; training goes on from the last checkpoint.
        collective_timeout_s: how long workers wait for one of them, seconds; then it counts as dead. Longer than the
            first of them takes to draw, evaluate and save at a report.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    min_workers: Annotated[int, Field(ge=1)] | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    max_failures: Annotated[int, Field(ge=0)] = 2
    collective_timeout_s: Annotated[int, Field(ge=1)] = 600

    def problems(self) -> Iterator[str]:
        """The least is no more than all."""
        yield from super().problems()
        if self.min_workers is not None and self.min_workers > self.workers:
            yield f"min_workers: {self.min_workers} are more than workers, {self.workers}; lower it"

    @property
    def enough(self) -> int:
        """Workers that training can begin with."""
        return self.min_workers or self.workers
