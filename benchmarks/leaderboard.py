"""Every method on one data set, side by side: `python -m benchmarks.leaderboard digits FOLDER`, or `mnist`.

Each preset of the digits is trained by `avb train`, registered, pulled and sampled from; then `avb leaderboard`. On
MNIST they are the same networks, made for 8x8 images: it shows the methods at one small size, and not their best. A
translation needs a second set of the same size, and is left out there. What has been trained in FOLDER goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.progress import track

from avb_service.settings import PRESETS, read_config

AVB = str(Path(sys.executable).with_name("avb"))
# Annealing of 784 pixels takes the default temperatures; the presets have fewer. One datum in two hundred is scored.
MNIST = {
    "data.name": "mnist",
    "data.validation": 5000,
    "tracking.experiment": "mnist",
    "tracking.plots_every": 1000,
    "likelihood": {"validation_data": 100, "test_data": 50, "certificate": {"real": 20, "simulated": 20}},
}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with its own tracking file and Ray, in that folder."""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run([AVB, *arguments], cwd=folder, env=environment, text=True, capture_output=True)


def train(folder: Path, preset: str, settings: dict[str, object]) -> str | None:
    """Train, register, pull and sample; gives what went wrong, if anything did."""
    name = preset.replace("_digits", f"_{settings.get('data.name', 'digits')}").replace("_", "-")
    words = [word for path, value in settings.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    model = f"models:/{name}/latest"
    for command in (
        ("train", preset, "--name", name, "--set", f"tracking.model={name}", *words),
        ("pull", model, f"pulled/{name}"),
        ("sample", f"pulled/{name}", f"samples/{name}.png"),
    ):
        done = call(folder, *command)
        if done.returncode:
            return f"avb {command[0]}: {done.stderr[-1000:]}"
    return None


def main() -> None:
    """Train what is not there yet, and print the leaderboard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "mnist"))
    parser.add_argument("folder", type=Path, help="for runs, pulled models and samples; kept")
    parser.add_argument("--preset", action="append", help="only this one of the digits'; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="for all; JSON values")
    given = parser.parse_args()
    settings = dict(MNIST if given.data == "mnist" else {})
    settings |= {path: json.loads(value) for path, _, value in (each.partition("=") for each in given.set)}
    (given.folder / "samples").mkdir(parents=True, exist_ok=True)
    presets = given.preset or [
        name
        for name in PRESETS.own
        if name.endswith("_digits") and (given.data == "digits" or read_config(name).data.other is None)
    ]
    for preset in track(presets, "Training"):
        if wrong := train(given.folder, preset, settings):
            print(f"{preset}: {wrong}", flush=True)
    print(call(given.folder, "leaderboard").stdout)


if __name__ == "__main__":
    main()
