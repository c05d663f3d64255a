"""One number under Gaussian noise, whose posterior is known, learned by matching joints.

x = z + e/2, z ~ N(0, 1), e ~ N(0, 1): p(x) = N(0, 5/4) and p(z|x) = N(4x/5, 1/5). The decoder can be z -> x or z -> -x.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from avb_service.fitting import Fit
from avb_service.settings import ExperimentConfig

pytestmark = pytest.mark.science


@pytest.fixture
def experiment(tmp_path: Path) -> Fit:
    x = np.random.default_rng(0).normal(0, 1.25**0.5, (20_000, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    small = {"name": "mlp", "hidden": [32, 32]}
    turn = {"betas": [0.5, 0.999], "schedule": {"decay": "linear"}}
    return Fit(ExperimentConfig.parse({
        "algorithm": {
            "name": "ali", "latent_dim": 1, "encoder": small, "decoder": small, "noise": 0.5,
            "discriminator": {"name": "mlp", "hidden": [64]}, "joint": [64, 64],
            "adversary": {"lr": 2e-3, "steps": 2, **turn}, "model": {"lr": 5e-4, **turn},
        },
        "data": {"name": "file", "path": str(tmp_path / "x.npy")},
        "training": {"rounds": 5000, "batch_size": 256, "report_every": 5000, "ema": 0.995},
    }), tmp_path)  # fmt: skip


def test_the_posterior_of_a_linear_gaussian_model_is_found(experiment):
    experiment.run()
    model = experiment.engine.model
    x = torch.linspace(-2, 2, 41)
    with torch.no_grad():
        q = model.posterior(x[:, None, None, None]).base_dist
        slope = torch.dot(x, q.loc[:, 0]) / x.square().sum()
        residual = (q.loc[:, 0] - slope * x).abs().max().item()
        draws = model.sample(20_000)
    print(f"slope {slope:.3f}, residual {residual:.3f}, scale {q.scale.mean():.3f}, variance {draws.var():.3f}")
    # A game's last iterate, averaged: 10 % is what it wanders by. An encoder that kept its prior would have slope 0 and
    # scale 1; the inverse of the decoder, which reconstruction alone asks for, slope 1 and scale 0.
    assert abs(slope.abs() - 0.8) < 0.08
    assert residual < 0.2
    assert abs(q.scale.mean() - 0.2**0.5) < 0.06
    assert abs(draws.var() - 1.25) < 0.15
