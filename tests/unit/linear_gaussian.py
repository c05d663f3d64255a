"""A model whose evidence and posterior are Gaussians, to hold estimators against."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from avb_service.algorithm import LatentVariableModel, Player
from avb_service.distributions import DataSpec, ImplicitPosterior
from avb_service.likelihood.scoring import Columns, Scorer, Task, estimate
from avb_service.maths import standard_normal
from avb_service.records import Estimate
from avb_service.seeding import seeded

PIXELS = 6
SPEC = DataSpec((1, 1, PIXELS), "real", 0, torch.zeros(1, 1, PIXELS))

Posterior = Distribution | ImplicitPosterior


class PCA(LatentVariableModel):
    """Probabilistic PCA: p(x|z) = N(W z + mu, s^2).

    Args:
        dim: of z.
        q: makes the posterior that the model is to have of the exact one.
        noise: s.
        pixels: of a datum.
        dtype: of the parameters; what is exact is computed in float64.
    """

    def __init__(
        self,
        dim: int,
        q: Callable[[MultivariateNormal], Posterior] = lambda exact: exact,
        noise: float = 0.7,
        pixels: int = PIXELS,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(None, DataSpec((1, 1, pixels), "real", 0, torch.zeros(1, 1, pixels)))
        with seeded("pPCA"):
            self.w = nn.Parameter(torch.randn(pixels, dim, dtype=dtype))
            self.mu = torch.randn(pixels, dtype=dtype)
        self.noise, self.q = noise, q

    def players(self) -> tuple[Player, ...]:
        return ()

    def prior(self) -> Distribution:
        return standard_normal(self.w.shape[1], self.w)

    def likelihood(self, z: Tensor) -> Distribution:
        mean = (z @ self.w.mT + self.mu)[..., None, None, :]
        return Independent(Normal(mean, self.noise, validate_args=False), 3)

    def exact_posterior(self, x: Tensor) -> MultivariateNormal:
        precision = torch.eye(self.w.shape[1], dtype=self.w.dtype) + self.w.mT @ self.w / self.noise**2
        covariance = torch.linalg.inv(precision)
        mean = (x.flatten(1) - self.mu) @ self.w @ covariance / self.noise**2
        return MultivariateNormal(mean, covariance.expand(len(x), *covariance.shape))

    def posterior(self, x: Tensor) -> Posterior:
        return self.q(self.exact_posterior(x))

    def exact(self, x: Tensor) -> Tensor:
        w, mu = self.w.detach().double(), self.mu.double()
        covariance = w @ w.mT + self.noise**2 * torch.eye(len(w), dtype=torch.float64)
        return MultivariateNormal(mu, covariance).log_prob(x.flatten(1).double())


def widened(factor: float, shift: float = 0.0) -> Callable[[MultivariateNormal], MultivariateNormal]:
    return lambda exact: MultivariateNormal(exact.loc + shift, scale_tril=factor * exact.scale_tril)


def mean_field(exact: MultivariateNormal) -> Independent:
    """A posterior with the ELBO in closed form, wider than the exact one and beside it."""
    return Independent(Normal(exact.loc + 0.3, 1.6 * exact.variance.sqrt()), 1)


def implicit(exact: MultivariateNormal) -> ImplicitPosterior:
    return ImplicitPosterior(exact.rsample)


def two_humps(exact: MultivariateNormal) -> MixtureSameFamily:
    """Half of it to one side of the exact posterior, half to the other; a density without a KL in closed form."""
    offset = 1.2 * exact.scale_tril.sum(-1)
    means = torch.stack([exact.loc - offset, exact.loc + offset], 1)
    each = MultivariateNormal(means, scale_tril=0.5 * exact.scale_tril[:, None].expand(*means.shape, means.shape[-1]))
    return MixtureSameFamily(Categorical(torch.ones(len(means), 2, dtype=torch.float64)), each)


def implicit_humps(exact: MultivariateNormal) -> ImplicitPosterior:
    return ImplicitPosterior(two_humps(exact).sample)


def divergence(model: PCA, x: Tensor) -> Tensor:
    """KL(q || exact posterior), by which the ELBO of a factorised Gaussian falls short."""
    q = model.posterior(x)
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), model.exact_posterior(x)).detach()


def data(model: LatentVariableModel, n: int) -> Tensor:
    with seeded("data"), torch.no_grad():
        return model.sample(n)


def run(
    make: Callable[[LatentVariableModel], Scorer], model: LatentVariableModel, x: Tensor, seed: int = 0, mib: int = 64
) -> Estimate:
    return estimate(Task(model, make, x, seed, mib))


def scored(scorer: Scorer, x: Tensor, seed: int = 0) -> Columns:
    """One block, under noise that does not depend on the estimator's name."""
    with seeded("scored", seed), torch.no_grad():
        return scorer.score(x)


def stderr(differences: Tensor) -> float:
    return differences.std().item() / math.sqrt(len(differences))
