"""What holds for every preset, with the networks that it has; MNIST is noise that is written here."""

import math
from pathlib import Path

import pytest

from avb_service.fitting import Fit
from avb_service.settings import PRESETS, read_config
from tests.mnist import write_mnist

BRIEF = [
    "training.rounds=2",
    "training.report_every=2",
    "likelihood.validation_data=8",
    "likelihood.search.temperatures=3",
    "data.validation=20",
]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data of that name are."""
    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root, 300, 40)
    return root


@pytest.mark.parametrize("preset", PRESETS.own)
def test_it_trains(preset, mnist, tmp_path):
    experiment = Fit(read_config(preset, [*BRIEF, f"data.root={mnist}"]), tmp_path)
    experiment.run()
    for player in experiment.engine.players:
        assert any(name.startswith(f"train/{player.name}/") for name in experiment.history)
    for name, points in experiment.history.items():
        assert [round_ for round_, _ in points] == [2] and math.isfinite(points[0][1]), name
