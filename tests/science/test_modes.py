"""A GAN by its preset finds every mode of a mixture; without the critic's penalty it ended with 18 of 25."""

from pathlib import Path

import pytest

from avb_service.experiment import Experiment
from avb_service.settings import read_config

pytestmark = pytest.mark.science


@pytest.mark.parametrize("seed", [0, 1])
def test_a_gan_finds_all_25_gaussians(seed, tmp_path: Path):
    experiment = Experiment(read_config("gan_gaussians25", [f"training.seed={seed}"]), tmp_path)
    experiment.fit()
    assert experiment.history["validation/modes_found"][-1][1] == 25
    assert experiment.history["validation/good_draws"][-1][1] > 0.9  # 98.9 % of the data
