"""A preset as it is and with other settings, datum by datum: `python -m benchmarks.paired PRESET PATH=VALUE ...`.

As many rounds for both, or, with `--seconds`, as many as each plays in so much CPU time; schedules end with the last.
Printed is the difference of their held-out estimates, nats per datum, with the standard error over data, for each seed.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from avb_service.fitting import Fit
from avb_service.records import Estimate, mean_and_stderr
from avb_service.report import assess
from avb_service.settings import read_config

WARM, TIMED = 5, 60  # rounds
DATA = ["likelihood.validation_data=300", "likelihood.test_data=300"]


def seconds_a_round(preset: str, settings: Sequence[str]) -> float:
    """CPU time of a round."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Fit(read_config(preset, [*settings]), Path(folder)).engine
        engine.choose()
        for number in range(WARM + TIMED):
            if number == WARM:
                start = time.process_time()
            engine.play_round()
        return (time.process_time() - start) / TIMED


def held_out(preset: str, settings: Sequence[str], rounds: int) -> Estimate:
    """What a model is judged by, after so many rounds."""
    whole = [*settings, *DATA, f"training.rounds={rounds}", f"training.report_every={rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config(preset, whole), Path(folder))
        experiment.run()
        found = assess(experiment.model).held_out
    assert found is not None, f"{preset} has no estimate that its model is judged by"
    return found


def main() -> None:
    """Train both for each seed, and print what they have in common and what not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("preset")
    parser.add_argument("settings", nargs="+", metavar="PATH=VALUE")
    parser.add_argument("--seconds", type=float, help="CPU time of each; without it, the preset's rounds")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        both = ([f"training.seed={seed}"], [f"training.seed={seed}", *given.settings])
        rounds = [read_config(given.preset).training.rounds] * 2
        if given.seconds is not None:
            rounds = [int(given.seconds / seconds_a_round(given.preset, settings)) for settings in both]
        plain, other = (held_out(given.preset, settings, n) for settings, n in zip(both, rounds, strict=True))
        apart, error = mean_and_stderr(other.per_datum - plain.per_datum)
        print(
            f"{given.preset}, seed {seed}: {plain.name} {plain.value:.2f} after {rounds[0]} rounds; with "
            f"{' '.join(given.settings)} {other.value:.2f} after {rounds[1]}: {apart:+.3f} "
            f"± {error:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
