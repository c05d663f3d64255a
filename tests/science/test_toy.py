"""Four one-hot points in a plane: an implicit posterior can tile it, a Gaussian one cannot.

Source: Mescheder et al. 2017, section 6.1. The optimum of log p is -log 4 = -1.386.
"""

import math
from pathlib import Path

import pytest
import torch

from avb_service.fitting import Fit
from avb_service.likelihood import Evaluator
from avb_service.settings import read_config

pytestmark = pytest.mark.science


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact_log_likelihood(preset: str, seed: int, folder: Path) -> float:
    """Log p by quadrature, mean over the four points, at the end of training."""
    experiment = Fit(read_config(preset, [f"training.seed={seed}"]), folder)
    experiment.run()
    estimate = Evaluator(experiment.engine.model, experiment.config.likelihood).score(
        "quadrature", experiment.model.data("test")[0]
    )
    print(f"{preset}, seed {seed}: {estimate.value:.4f} {dict(estimate.diagnostics)}")
    assert estimate.diagnostics["shift"] < 1e-3  # of the finest grid; doubling compares it with a coarser one
    return estimate.value


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("preset", "lowest", "highest"),
    [
        pytest.param("vae_onehot4", -1.59, -1.55, id="vae"),
        pytest.param("avb_onehot4", -1.43, -math.log(4), id="avb"),
        pytest.param("avb_ac_onehot4", -1.42, -math.log(4), id="avb_ac"),
    ],
)
def test_log_likelihood(preset, lowest, highest, seed, tmp_path):
    assert lowest <= exact_log_likelihood(preset, seed, tmp_path) <= highest
