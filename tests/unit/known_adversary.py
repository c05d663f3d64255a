"""Adversaries and posteriors whose log-ratio is known."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from avb_service.distributions import DataSpec, ImplicitPosterior, NoiseBasisPosterior
from avb_service.maths import standard_normal
from avb_service.networks.adversaries import InnerProductConfig
from avb_service.networks.encoders import NoiseBasisConfig, NoiseInputConfig
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import seeded

SMALL = {
    "latent_dim": 3,
    "decoder": MLPConfig(hidden=(8,)),
    "discriminator": InnerProductConfig(trunk=MLPConfig(hidden=(8,)), hidden=(8,), rank=4),
}
INPUT = NoiseInputConfig(trunk=MLPConfig(hidden=(8,)), noise_dim=4, hidden=(8,))
BASIS = NoiseBasisConfig(trunk=MLPConfig(hidden=(8,)), bases=4, noise_dim=4, hidden=(8,))
BINARY = DataSpec((1, 1, 4), "binary", 1, torch.full((1, 1, 4), 0.25))


class Known(NoiseBasisPosterior):
    """A posterior whose density is known, with whatever moments are asked for: any contrast will do."""

    def __init__(self, q: MultivariateNormal, mean: Tensor, covariance: Tensor) -> None:
        ImplicitPosterior.__init__(self, q.rsample)
        self.q, self.contrast = q, (mean, covariance)

    def moments(self, *shared: Tensor) -> tuple[Tensor, Tensor]:
        return self.contrast


class Optimal(nn.Module):
    """T*(x, u) = log q(u|x) - log N(u), u = L^-1 (z - m): the adversary that has learned all there is to learn.

    Args:
        q: q(z|x).
        mean: m(x), [B, D].
        factor: L(x), [B, D, D].
    """

    def __init__(self, q: MultivariateNormal, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.q, self.mean, self.factor = q, mean, factor

    def forward(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        def log_ratio(u: Tensor) -> Tensor:
            z = self.mean + (self.factor @ u[..., None])[..., 0]
            log_q = self.q.log_prob(z) + torch.linalg.slogdet(self.factor).logabsdet
            return log_q - standard_normal(u.shape[-1], u).log_prob(u)

        return log_ratio


class Always(nn.Module):
    """T(x, u) = c, an adversary that has learned nothing."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: torch.full_like(u[..., 0], self.value)


class Constant(nn.Module):
    """An encoder that has made up its mind."""

    def __init__(self, q: Known) -> None:
        super().__init__()
        self.q, self.basis = q, SimpleNamespace(moments=lambda draws: ())  # the posterior has moments of its own

    def forward(self, x: Tensor) -> Known:
        return self.q


def gaussian(batch: int, dim: int, *seed: str | int) -> MultivariateNormal:
    with seeded("gaussian", *seed):
        root = torch.randn(batch, dim, dim, dtype=torch.float64)
        factor = torch.linalg.cholesky(root @ root.mT / dim + 0.3 * torch.eye(dim, dtype=torch.float64))
        return MultivariateNormal(torch.randn(batch, dim, dtype=torch.float64), scale_tril=factor)


def one_hot(batch: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64)[torch.arange(batch) % 4][:, None, None]
