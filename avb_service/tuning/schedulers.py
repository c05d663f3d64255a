"""Schedulers: which trials are stopped early. Each is a line of the table `SCHEDULERS`, and a scheduler of Ray Tune.

Floor 9.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from avb_service.config import Config
from avb_service.kinds import Table, subclass_of

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Race(NamedTuple):
    """What trials that compete with each other have in common.

    Attributes:
        metric: that they are compared by; more of it is better. Each report has it, and the `round` it is of.
        rounds: of the longest trial.
        every: the most rounds that lie between two reports.
    """

    metric: str
    rounds: int
    every: int


class Scheduler(Config):
    """A way to stop weak trials early.

    Attributes:
        name: which one.
    """

    name: str

    @abstractmethod
    def scheduler(self, race: Race) -> "TrialScheduler":
        """Decides at each report of a trial whether it goes on.

        Of a search that goes on, it is told first what trials have reported before.
        """

    def objections(self, race: Race) -> Iterator[str]:
        """What speaks against it, lines `field: why`."""
        yield from ()

    @abstractmethod
    def about(self) -> str:
        """In a few words: trials are ..."""


class NoScheduler(Scheduler):
    """All trials are trained to their end."""

    name: Literal["none"] = "none"

    def scheduler(self, race: Race) -> "TrialScheduler":
        """Of Ray Tune, the FIFOScheduler."""
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()

    def about(self) -> str:
        """In a few words."""
        return "all trained"


class ASHAConfig(Scheduler):
    """Asynchronous successive halving (Li et al. 2020).

    Attributes:
        grace: reports before a trial may be stopped.
        reduction: of the trials that reach a rung, one in so many goes on.
    """

    name: Literal["asha"] = "asha"
    grace: Annotated[int, Field(ge=1)] = 1
    reduction: Annotated[float, Field(gt=1)] = 3

    def scheduler(self, race: Race) -> "TrialScheduler":
        """Of Ray Tune, the ASHAScheduler."""
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="round",
            metric=race.metric,
            mode="max",
            reduction_factor=self.reduction,
            grace_period=min(self.grace * race.every, race.rounds),
            max_t=race.rounds + 1,  # a trial that gets there ends by itself, and is not stopped on its last report
        )

    def objections(self, race: Race) -> Iterator[str]:
        """A trial would end before it may be stopped."""
        reports = -(-race.rounds // race.every)
        if self.grace > reports:
            yield (
                f"grace: {self.grace} reports, and a trial makes {reports} (training.rounds {race.rounds}, "
                f"report_every {race.every}): none could be stopped early; give fewer, or scheduler: none"
            )

    def about(self) -> str:
        """In a few words."""
        return f"stopped early by halving (grace {self.grace}, reduction {self.reduction:g})"


SCHEDULERS: Table[type[Scheduler]] = Table(
    "schedulers", {"asha": ASHAConfig, "none": NoScheduler}, subclass_of(Scheduler)
)
