"""What holds for every preset, with the networks that it has; data that do not come with us are noise, written here."""

import math
from pathlib import Path

import numpy as np
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


SHAPES = {"fashion_mnist": (16, 16), "cifar10": (16, 16, 3), "celeba": (16, 16, 3)}  # of data for these: smaller ones


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data of that name are."""
    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root, 300, 40)
    return root


@pytest.mark.parametrize("preset", PRESETS.own)
def test_it_trains(preset, mnist, tmp_path):
    settings, source = [f"data.root={mnist}"], read_config(preset).data.name
    if source in SHAPES:
        x = np.random.default_rng(0).integers(0, 256, (100, *SHAPES[source]), dtype=np.uint8)
        np.savez(tmp_path / "noise.npz", x=x)
        likelihood = [
            "importance_draws=2",
            "search.rest=1",
            "search.leapfrog=1",
            "validation_data=2",
            "proposal_draws=4",
        ]
        settings = ["data.name=file", f"data.path={tmp_path / 'noise.npz'}", "training.batch_size=8"]
        settings += [f"likelihood.{each}" for each in likelihood]
    experiment = Fit(read_config(preset, [*BRIEF, *settings]), tmp_path)
    experiment.run()
    for player in experiment.engine.players:
        assert any(name.startswith(f"train/{player.name}/") for name in experiment.history)
    for name, points in experiment.history.items():
        assert [round_ for round_, _ in points] == [2] and math.isfinite(points[0][1]), name
