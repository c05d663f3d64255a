"""The engine of whatever avb_service is on the path: `python engine.py DEVICE PRESET [SETTING ...]`."""

import sys
import tempfile
from pathlib import Path

from torch_laps import laps_on

from avb_service.settings import read_config

try:
    from avb_service.fitting import Fit
except ImportError:  # an earlier commit's tree
    from avb_service.experiment import Experiment as Fit

ROUNDS = 10  # between two moments at which the engine hears its caller


def main() -> None:
    """Train as `avb train` does, but for evaluation and checkpoints."""
    device, preset, *settings = sys.argv[1:]
    laps = laps_on(device)
    endless = ["training.rounds=1000000000", "training.report_every=500"]
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config(preset, [*settings, *endless]), Path(folder), device=device)
        experiment.engine.run(lambda report: laps(ROUNDS), lambda: laps(ROUNDS))


if __name__ == "__main__":
    main()
