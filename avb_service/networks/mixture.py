"""A mixture of Gaussians that is fitted to codes, and not trained.

Floor 1.
"""

import warnings
from typing import Annotated

import torch
from pydantic import Field
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from avb_service.config import Config
from avb_service.errors import DivergenceError

ITERATIONS = 300
RIDGE = 1e-4  # of the mean variance of the codes: a component on few codes keeps a volume


class MixtureConfig(Config):
    """A mixture of Gaussians with full covariances.

    Attributes:
        components: K.
        starts: fits from as many k-means starts, of which the best is kept.
    """

    components: Annotated[int, Field(ge=1)] = 20
    starts: Annotated[int, Field(ge=1)] = 1


class Mixture(nn.Module):
    """p(z) = sum_k w_k N(z; m_k, L_k L_k'), all of it in buffers; N(0, I) until it is fitted.

    Args:
        config: how many components.
        dim: D.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, config: MixtureConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        k = config.components
        self.register_buffer("weights", torch.full((k,), 1 / k))
        self.register_buffer("means", torch.zeros(k, dim))
        self.register_buffer("factors", torch.eye(dim).repeat(k, 1, 1))

    def forward(self) -> MixtureSameFamily:
        """p(z), event shape [D]."""
        components = MultivariateNormal(self.means, scale_tril=self.factors, validate_args=False)
        shares = Categorical(self.weights, validate_args=False)
        return MixtureSameFamily(shares, components, validate_args=False)

    @torch.no_grad()
    def fit(self, codes: Tensor, noise: float = 0.0) -> None:
        """Maximum likelihood by expectation maximisation, begun by k-means under torch's present noise.

        Args:
            codes: [N, D], N >= K.
            noise: standard deviation of what was added to codes in training; no component is narrower.

        Raises:
            DivergenceError: the codes are not finite, or too far apart for a covariance.

        Source: Dempster, Laird & Rubin 1977; scikit-learn's `GaussianMixture`.
        """
        from sklearn.exceptions import ConvergenceWarning  # two seconds to import, and only a fit needs it
        from sklearn.mixture import GaussianMixture

        points = codes.double().cpu()
        if not points.isfinite().all():
            raise DivergenceError("the codes are not finite, so no mixture fits them")
        mixture = GaussianMixture(
            self.config.components,
            max_iter=ITERATIONS,
            n_init=self.config.starts,
            reg_covar=noise**2 + RIDGE * points.var(0).mean().item() + 1e-12,
            random_state=int(torch.randint(2**31, ())),
        )
        # threads of its own would wait for those of other workers in a busy loop
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that still moves is a density all the same
            try:
                mixture.fit(points.numpy())
            except ValueError as error:
                raise DivergenceError(f"no mixture fits the codes: {error}") from error
        self.weights.copy_(torch.from_numpy(mixture.weights_))
        self.means.copy_(torch.from_numpy(mixture.means_))
        self.factors.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)))
