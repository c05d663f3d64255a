"""Laps of rounds, timed when somebody asks for them; of the standard library alone, for environments of all kinds."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Laps:
    """What a contestant calls as it plays: it answers the benchmark with a line of JSON when a lap is over.

    Each line that the benchmark writes asks for a lap of so many seconds. Before the first, the contestant warms up:
    what it answers then is the time since its process began. It ends where there is no further line.

    Args:
        clock: seconds; by default those that this process has computed, so that others do not matter much.
        mib: the most memory that was in use.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time, mib: Callable[[], float] | None = None) -> None:
        self._clock, self._mib, self._out = clock, mib or resident, sys.stdout
        sys.stdout = sys.stderr  # what libraries print is no answer
        self._start = self._lap = 0.0
        self._rounds = 0

    def __call__(self, rounds: int) -> None:
        """So many more rounds have been played."""
        self._rounds += rounds
        seconds = self._clock() - self._start
        if seconds < self._lap:
            return
        print(json.dumps({"rounds": self._rounds, "seconds": seconds, "mib": self._mib()}), file=self._out, flush=True)
        if not (line := sys.stdin.readline()):
            raise SystemExit
        self._lap, self._rounds, self._start = float(line), 0, self._clock()


def resident() -> float:
    """The most memory that this process had, in MiB; on Linux without that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
