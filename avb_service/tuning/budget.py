"""The time that a search may take: shared out among its stages, and counted over interruptions.

Floor 9.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avb_service.errors import UserError
from avb_service.plan import measure
from avb_service.storage import write_json
from avb_service.tuning.space import SpaceConfig

SPENT = "spent.json"  # in the folder of a search


class Budget:
    """What is left of the minutes of a search.

    Args:
        space: says how many there are.
        folder: of the search.
    """

    def __init__(self, space: SpaceConfig, folder: Path) -> None:
        self._whole = None if space.budget is None else 60 * space.budget.minutes
        self._path = folder / SPENT
        self._spent = float(json.loads(self._path.read_text())["seconds"]) if self._path.exists() else 0.0
        self._stages = stages(space)
        self._since: float | None = None

    def share(self) -> float | None:
        """Seconds that the next stage may take, an even share of what is left; None: as many as it needs."""
        self._stages -= 1
        return None if self._whole is None else max(0.0, self._whole - self._spent) / (self._stages + 1)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what goes on."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.note()
            self._since = None

    def note(self) -> None:
        """Keep what was spent by now."""
        if self._whole is not None and self._since is not None:
            now = time.monotonic()
            self._spent, self._since = self._spent + now - self._since, now
            write_json(self._path, {"seconds": self._spent})


def stages(space: SpaceConfig) -> int:
    """How many there are, one after the other: each preset's trials, and the baselines."""
    return len(space.presets) + bool(space.baselines)


def check_budget(space: SpaceConfig) -> None:
    """Play some rounds of each preset, and make sure that the time is enough for a report of each.

    Raises:
        UserError: it is not.
    """
    if space.budget is None:
        return
    seconds = 60 * space.budget.minutes / stages(space)
    for preset in space.presets:
        config = space.trial(preset)
        costs = measure(config)
        report = config.training.report_every * (config.training.logical_workers * costs.slice_s + costs.step_s)
        if report > seconds:
            raise UserError(
                f"budget.minutes: {space.budget.minutes:g} leave {preset} {seconds:.0f} s, and here the "
                f"{config.training.report_every} rounds before its first report take about {report:.0f} s; give "
                f"{stages(space) * report / 60:.1g} at least, several times as many to compare trials, or report "
                "oftener (training.report_every)"
            )
