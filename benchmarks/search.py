"""What a search costs beside its trials: `python -m benchmarks.search`, a quarter of an hour on two cores.

A search of 16 trials, half of each preset, without early stopping, and the same trainings bare: one after another in
one process, without Ray and MLflow. Compared are core-seconds, of all processes that the search has started, from its
start until the last trial has ended; what is scored and registered then is not counted. Printed, too, is how soon a
trial begins after the one before it in the same process has ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table

from avb_service.checkpoint import CheckpointStore
from avb_service.fitting import Fit
from avb_service.runs import JOB, OUTCOME, Job

LOOK_EVERY = 0.2  # seconds between two looks at the processes
AVB = str(Path(sys.executable).with_name("avb"))


class Meter:
    """The processor seconds of a process and of all that descend from it, looked at while they run.

    Args:
        root: the process.
    """

    def __init__(self, root: int) -> None:
        self._root, self._seconds, self._over = (
            psutil.Process(root),
            dict[tuple[int, float], float](),
            threading.Event(),
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Core-seconds up to now."""
        self._over.set()
        self._thread.join()
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            for process in (self._root, *self._root.children(recursive=True)):
                try:
                    used = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = used.user + used.system
                except psutil.NoSuchProcess:
                    continue


def search(folder: Path, presets: list[str], trials: int, rounds: int) -> tuple[float, float]:
    """Search in a folder; gives core-seconds and seconds until the last trial has ended."""
    space = {
        "preset": presets,
        "set": {"training.rounds": rounds, "training.report_every": rounds // 2, "likelihood.budget": "quick"},
        "space": {"algorithm.model.lr": {"loguniform": [3.0e-4, 2.0e-3]}},
        "trials": trials,
        "scheduler": {"none": None},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    begun = time.monotonic()
    command = [AVB, "tune", "--space", "space.yaml"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    meter, used = Meter(process.pid), None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if used is None and line.startswith("scoring "):
            used = meter.stop(), time.monotonic() - begun
    if process.wait() or used is None:
        raise SystemExit("the search failed")
    return used


def bare(jobs: list[Job]) -> float:
    """Train what was searched, one after another; gives core-seconds."""
    torch.set_num_threads(1)
    begun = time.process_time()
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            Fit(job.config, folder).run()
    return time.process_time() - begun


def starts(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds from the end of one trial to the begin of the next in its process, and from there to the first round."""
    processes: dict[int, list[Path]] = {}
    for path in folder.glob("runs/*/tune/*/*/result.json"):
        pid = json.loads(path.read_text().splitlines()[0])["pid"]
        (trial,) = folder.glob(f"runs/*/trials/{path.parent.name}")
        processes.setdefault(pid, []).append(trial)
    between, until = [], []
    for trials in processes.values():
        for before, after in pairwise(sorted(trials, key=lambda trial: (trial / JOB).stat().st_mtime)):
            begun = (after / JOB).stat().st_mtime
            between.append(begun - (before / OUTCOME).stat().st_mtime)
            until.append(first_round(after) - begun)
    return between, until


def first_round(trial: Path) -> float:
    """When the first round was played, or somewhat earlier: the first report is counted as long as it takes."""
    first = min((trial / "checkpoints").glob("round-*"), key=lambda path: path.name)
    history = CheckpointStore(trial / "checkpoints").last_history()
    return first.stat().st_mtime - history["time/train_seconds"][0][1]


def main() -> None:
    """Search, train the same bare, and print what the search adds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--presets", nargs="+", default=["avb_digits", "vae_digits"])
    parser.add_argument("--trials", type=int, default=16, help="of all presets together")
    parser.add_argument("--rounds", type=int, default=4000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        searched, seconds = search(folder, given.presets, given.trials, given.rounds)
        between, until = starts(folder)
        alone = bare([Job.read(path.parent) for path in sorted(folder.glob(f"runs/*/trials/*/{JOB}"))])
    table = Table("", "", title=f"{given.trials} trials of {', '.join(given.presets)}, {given.rounds} rounds each")
    table.add_row("core-seconds of the search", f"{searched:.0f}, in {seconds:.0f} s")
    table.add_row("of the same trainings bare", f"{alone:.0f}")
    table.add_row("ratio", f"{searched / alone:.2f}")
    table.add_row(
        "from the end of a trial to the begin of the next", f"{median(between):.2f} s, at most {max(between):.2f}"
    )
    table.add_row("from there to its first round", f"{median(until):.2f} s, at most {max(until):.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
