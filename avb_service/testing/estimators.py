"""What holds for every estimator of a log-likelihood.

Floor 9.
"""

import numpy as np
import torch

from avb_service.algorithm import LatentVariableModel
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.distributions import DataSpec, GaussianConfig
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.networks.trunks import AffineConfig
from avb_service.seeding import seeded

DATA = 60
SIGMAS = 5  # of its own error and of the data's, beyond which an estimate contradicts what it says of itself
ROUNDING = 1e-3  # nats per datum, in 32 bits


def known_model() -> LatentVariableModel:
    """A VAE whose log p(x) is known, since an affine decoder with Gaussian noise is factor analysis; q is not exact."""
    config = VAEConfig(latent_dim=2, decoder=AffineConfig(), observation=GaussianConfig(scale=0.5))
    with seeded(0, "known model"):
        return VAE(config, DataSpec((1, 1, 6), "real", 0, torch.zeros(1, 1, 6))).eval()


def check_estimator(name: str, config: LikelihoodConfig | None = None) -> None:
    """Make sure that an estimator is what it says: a bound, an estimate or the value, with an error that covers it.

    It is asked about a model whose log p(x) is known in closed form, on draws of that model.

    Args:
        name: by which it is found.
        config: its options.

    Raises:
        AssertionError: it contradicts log p(x), depends on chance that is not seeded, or gives a datum no number.
        UserError: there is none, or it does not fit the model.
    """
    model, config = known_model(), config or LikelihoodConfig()
    with seeded(0, "data"), torch.no_grad():
        x = model.sample(DATA)
    evaluator = Evaluator(model, config)
    exact, found, again = (evaluator.score(each, x) for each in ("ppca", name, name))
    assert found.per_datum.shape == (DATA,), f"{name}: {found.per_datum.shape} numbers for {DATA} data"
    assert np.isfinite(found.per_datum).all(), f"{name}: numbers are not finite"
    assert np.array_equal(found.per_datum, again.per_datum), f"{name}: draws random numbers that are not seeded"
    if found.quantity != "log_likelihood":
        return
    gap = found.per_datum - exact.per_datum
    error = SIGMAS * gap.std() / DATA**0.5 + ROUNDING
    above, below = gap.mean() > error, gap.mean() < -error
    wrong = {"lower_bound": above, "upper_bound": below, "exact": above or below, "estimate": above or below}
    assert not wrong[found.kind], f"{name} says that it is {found.meaning}, and is {gap.mean():+.4f} nats from log p(x)"
