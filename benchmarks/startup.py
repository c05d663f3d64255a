"""How soon the command line answers: `python -m benchmarks.startup`."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from avb_service.fitting import Fit
from avb_service.report import assess
from avb_service.settings import read_config
from avb_service.tracking import Run
from avb_service.tracking.publish import publish

MODEL = "startup"
READERS = {
    "leaderboard": ["leaderboard"],
    "pull": ["pull", f"models:/{MODEL}/1", "pulled"],
    "compare": ["compare", f"models:/{MODEL}/1", f"models:/{MODEL}/2"],
    "promote": ["promote", f"models:/{MODEL}/2", "--override", "the benchmark's"],
}
COMMANDS = {
    "--help": ["--help"],
    "methods": ["methods"],
    "datasets": ["datasets"],
    "settings": ["settings", "avb_digits"],
    **READERS,
}


def register(folder: Path) -> None:
    """Two versions of a model that has been trained for one round."""
    likelihood = {"test_data": 20, "validation_data": 20, "importance_draws": 20, "search.temperatures": 10}
    assign = [f"likelihood.{name}={value}" for name, value in likelihood.items()]
    assign += ["training.rounds=1", f"tracking.model={MODEL}"]
    for version in ("1", "2"):
        experiment = Fit(read_config("vae_digits", assign), folder / version / "checkpoints")
        experiment.run()
        run = Run.start(MODEL, version, experiment.config.tree())
        publish(replace(experiment.model, likelihood=assess(experiment.model)), run, folder / version / "model")
        run.finish()


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Seconds of every command that trains and scores nothing, after a first run, and those of an empty interpreter.

    Seconds of the processor stand beside those of the clock: they tell more where others work on the machine.
    """
    avb = str(Path(sys.executable).with_name("avb"))
    commands = {"python": [sys.executable, "-c", ""], **{f"avb {n}": [avb, *words] for n, words in COMMANDS.items()}}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        register(Path(folder))
        for _ in range(6):
            for name, command in commands.items():
                start, before = time.perf_counter(), processor_seconds()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append((time.perf_counter() - start, processor_seconds() - before))
        os.chdir("/")
    for name, runs in times.items():
        seconds, processor = zip(*runs[1:], strict=True)
        print(
            f"{name:16} median {median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s; "
            f"{median(processor):.2f} s of a processor"
        )


if __name__ == "__main__":
    main()
