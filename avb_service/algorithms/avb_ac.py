"""AVB with adaptive contrast (Mescheder, Nowozin & Geiger 2017, algorithm 2)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from avb_service.algorithm import AlgorithmConfig, Shared
from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.algorithms.inference import InferenceConfig
from avb_service.distributions import BasisMoments, ImplicitPosterior, NoiseBasisPosterior
from avb_service.maths import cholesky, whiten
from avb_service.networks.encoders import NoiseBasisConfig, NoiseBasisEncoder


class ContrastConfig(InferenceConfig):
    """Settings of the contrast.

    Attributes:
        encoder: the network of q(z|x); no other has moments that are known.
        covariance: what r(z|x) has of q's: all of it, or its diagonal, which is cheaper and leaves the adversary more.
        moment_draws: draws of the noise variables that m(x) and C(x) are taken from, in every round.
        jitter: added to the diagonal of C(x), so that a q that is nearly flat has a Cholesky factor.
    """

    encoder: NoiseBasisConfig = NoiseBasisConfig()
    covariance: Literal["full", "diagonal"] = "full"
    moment_draws: Annotated[int, Field(ge=8)] = 128
    jitter: Annotated[float, Field(gt=0)] = 1e-3


class AVBACConfig(ContrastConfig, AVBConfig):
    """Settings of AVB with adaptive contrast."""

    name: Literal["avb_ac"] = "avb_ac"  # type: ignore[assignment]


class AVBAC(AVB):
    """The adversary tells q(z|x) from a Gaussian r(z|x) with q's own moments, so that it has little left to learn.

    KL(q || p) = E_q[T(x,u) - |u|^2/2 - log|L| + |z|^2/2], u = L^-1 (z - m), L L' = C + jitter: KL(q || r) is T's, and
    log r(z|x) - log p(z) is known (eq. 4.1, 4.2). KL(q || r) is the same for u and N(0, I) (eq. 4.3). The paper's r
    has a diagonal covariance, which is `covariance: diagonal`; here it has q's own, correlations included.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AVBACConfig
    quadratic = False
    config: AVBACConfig
    encoder: NoiseBasisEncoder

    def standardise(self, q: ImplicitPosterior, z: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """The whitened code u = L^-1 (z - m), which the adversary compares with N(0, I), and log r(z|x) - log p(z)."""
        u, log_r = whiten(self.contrast(q, shared), z)
        return u, log_r - self.prior().log_prob(z)

    def shared(self) -> BasisMoments:
        """Moments of the noise variables v_i, which do not depend on x: one sample for all that a round sees of q."""
        return self.encoder.basis.moments(self.config.moment_draws)

    @torch.no_grad()  # the moments are constants for both players
    def contrast(self, q: ImplicitPosterior, shared: Shared) -> Independent | MultivariateNormal:
        """r(z|x) = N(m(x), C(x) + jitter); one factor L scales and measures, so the jitter does not bias the KL."""
        if not isinstance(q, NoiseBasisPosterior):
            raise TypeError(f"adaptive contrast needs the moments of q(z|x), which {type(q).__name__} does not have")
        mean, covariance = q.moments(*shared)
        variance = covariance.diagonal(dim1=-2, dim2=-1) + self.config.jitter
        if self.config.covariance == "diagonal":
            return Independent(Normal(mean, variance.sqrt(), validate_args=False), 1, validate_args=False)
        factor = cholesky(covariance.diagonal_scatter(variance, dim1=-2, dim2=-1))
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)
