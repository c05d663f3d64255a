"""What training has to say of itself, and where a run is recorded.

Floor 6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from avb_service.training.manner import Manner

if TYPE_CHECKING:
    from matplotlib.figure import Figure


History = Mapping[str, Sequence[Sequence[float]]]  # metric -> [round, value] at each report


@dataclass(frozen=True)
class Progress:
    """What training has to say of itself.

    Attributes:
        seconds: spent on training.
        manner: in which turns are played: auto until the first round.
        history: of all metrics.
    """

    seconds: float
    manner: Manner
    history: History

    def tags(self, round_: int | None) -> dict[str, str]:
        """What a table of runs shows of it, after so many rounds."""
        played = {f"training.{name}": value for name, value in self.manner._asdict().items()}
        return {"rounds": str(round_), "train_seconds": f"{self.seconds:.1f}", **played}


class Recorder(Protocol):
    """Where a run is recorded; MLflow's `Run` is one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, tags: Mapping[str, str] | None = None) -> None:
        """Numbers at a round; those that are there already are left. The tags are true of the run from then on."""

    def log_figure(self, name: str, picture: Any, step: int | None = None) -> None:  # noqa: ANN401
        """A PNG at a round; without one, the final picture of that name."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What a table of runs shows of this one."""


def record_plots(recorder: Recorder, drawn: "Mapping[str, Figure]", round_: int | None = None) -> None:
    """Record plots of a model: at a round, or as the final ones."""
    from avb_service.figures import to_png  # matplotlib is slow to import, and most processes draw nothing

    for name, plot in drawn.items():
        recorder.log_figure(name, to_png(plot), round_)
