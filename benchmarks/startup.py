"""How soon the command line answers: `python -m benchmarks.startup`."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median


def main() -> None:
    """Median, least and most seconds of `avb --help` after a first run, beside an empty interpreter's."""
    avb = Path(sys.executable).with_name("avb")
    commands = {"avb --help": [str(avb), "--help"], "python": [sys.executable, "-c", ""]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(8):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    for name, all_seconds in times.items():
        seconds = all_seconds[1:]
        print(f"{name:12} median {median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s")


if __name__ == "__main__":
    main()
