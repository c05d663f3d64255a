"""A prior that is learned goes where the codes are: a better bound on the same budget, and less KL to save."""

import pytest
import torch

from avb_service.experiment import Experiment
from avb_service.settings import read_config

pytestmark = pytest.mark.science


def test_a_flow_prior_is_closer_to_the_codes_than_a_gaussian(tmp_path):
    """Both with two latent dimensions, the same networks, rounds and seed, on digits."""
    torch.set_num_threads(1)
    found = {}
    for preset in ("flow_vae_digits", "vae_digits"):
        config = read_config(preset, ["algorithm.latent_dim=2", "training.report_every=4000"])
        experiment = Experiment(config, tmp_path / preset)
        experiment.fit()
        found[preset] = {name.removeprefix("validation/surgery."): v for name, v in experiment.surgery().items()}
        print(preset, found[preset])
    flow, gaussian = found["flow_vae_digits"], found["vae_digits"]
    assert flow["marginal_kl"] < gaussian["marginal_kl"]
    assert flow["reconstruction"] - flow["kl"] > gaussian["reconstruction"] - gaussian["kl"]
