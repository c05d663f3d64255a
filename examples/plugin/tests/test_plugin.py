"""What holds for every method, network and source holds for these; and the bound is one, and tightens."""

from itertools import pairwise

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from avb_service import testing
from avb_service.distributions import DataSpec, GaussianConfig, ImplicitPosterior
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.networks.trunks import AffineConfig
from avb_service.seeding import seeded
from avb_sivi.residual import ResidualMLPConfig
from avb_sivi.sivi import SIVI, SIVIConfig


def test_the_method():
    testing.check_method("sivi_rings", {"algorithm.mixing_draws": 3})


def test_the_trunk():
    testing.check_trunk(ResidualMLPConfig(width=16))


def test_the_source():
    testing.check_source("rings")


class OfTheExactPosterior(nn.Module):
    """q(psi|x) under which q(z|x) is the posterior of an affine decoder with Gaussian noise: N(m, V), in closed form.

    psi = (m + e, log s), e ~ N(0, V - s^2 I).
    """

    def __init__(self, model: SIVI) -> None:
        super().__init__()
        identity = torch.eye(model.config.latent_dim)
        self.bias = model.decode(torch.zeros_like(identity[:1])).flatten(1)
        self.w = (model.decode(identity).flatten(1) - self.bias).mT / model.config.observation.scale**2  # [pixels, D]
        self.v = torch.linalg.inv(identity + self.w.mT @ self.w * model.config.observation.scale**2)
        self.s = (0.2 * torch.linalg.eigvalsh(self.v)[0]).sqrt()
        self.mixing = MultivariateNormal(torch.zeros(len(identity)), self.v - self.s**2 * identity)

    def forward(self, x):
        mean = (x.flatten(1) - self.bias) @ self.w @ self.v

        def draw(shape):
            psi = mean + self.mixing.sample((*shape, len(x)))
            return torch.cat([psi, self.s.log().expand_as(psi)], -1)

        return ImplicitPosterior(draw)


def test_the_bound_is_below_log_p_and_rises_to_it_with_the_draws_where_q_is_the_posterior():
    config = SIVIConfig(latent_dim=2, decoder=AffineConfig(), observation=GaussianConfig(scale=0.5))
    with seeded("bound"), torch.no_grad():
        model = SIVI(config, DataSpec((1, 1, 6), "real", 0, torch.zeros(1, 1, 6))).eval()
        model.encoder, x = OfTheExactPosterior(model), model.sample(2000)
        exact = Evaluator(model, LikelihoodConfig()).score("ppca", x).per_datum.mean()
        gaps = []
        for draws in (0, 1, 10, 100):
            reconstruction, kl = model.terms(x, draws)
            gaps.append(exact - (reconstruction - kl).mean().item())
    assert all(after < before / 1.2 for before, after in pairwise(gaps)), gaps
    assert 0 < gaps[-1] < 0.1, "the bound is not below log p(x), or far from it"
