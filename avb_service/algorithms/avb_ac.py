"""AVB with adaptive contrast (Mescheder, Nowozin & Geiger 2017, algorithm 2)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.distributions import Independent, MultivariateNormal, Normal

from avb_service.algorithm import AlgorithmConfig
from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.distributions import ImplicitPosterior, NoiseBasisPosterior
from avb_service.maths import cholesky
from avb_service.networks.encoders import NoiseBasisConfig


class AVBACConfig(AVBConfig):
    """Settings of AVB with adaptive contrast."""

    name: Literal["avb_ac"] = "avb_ac"  # type: ignore[assignment]
    encoder: NoiseBasisConfig = NoiseBasisConfig()  # its moments are tractable
    covariance: Literal["full", "diagonal"] = "full"
    moment_draws: Annotated[int, Field(ge=8)] = 128
    jitter: Annotated[float, Field(gt=0)] = 1e-3

    def problems(self) -> Iterator[str]:
        """Adaptive contrast needs an encoder whose moments are known."""
        yield from super().problems()
        if not isinstance(self.encoder, NoiseBasisConfig):
            yield (
                f"encoder.name: given {self.encoder.name}, whose moments are not known; adaptive contrast needs "
                "noise_basis (or use algorithm.name: avb)"
            )


class AVBAC(AVB):
    """The adversary tells q(z|x) from N(m(x), C(x)) with q's own moments, so that it has little left to learn.

    KL(q || p) = E_q[T(x,u) - |u|^2/2 - log|L| + |z|^2/2], u = L^-1 (z - m), L L' = C + jitter (section 4).
    """

    Config: ClassVar[type[AlgorithmConfig]] = AVBACConfig
    quadratic = False
    config: AVBACConfig

    @torch.no_grad()  # the moments are constants for both players
    def contrast(self, q: ImplicitPosterior, generator: torch.Generator) -> Independent | MultivariateNormal:
        """N(m(x), C(x)); sampling noise and log-density use the same factor, so the KL is not biased by the jitter."""
        if not isinstance(q, NoiseBasisPosterior):
            raise TypeError(f"adaptive contrast needs the moments of q(z|x), which {type(q).__name__} does not have")
        mean, covariance = q.moments(self.config.moment_draws, generator)
        variance = covariance.diagonal(dim1=-2, dim2=-1) + self.config.jitter
        if self.config.covariance == "diagonal":
            return Independent(Normal(mean, variance.sqrt(), validate_args=False), 1, validate_args=False)
        factor = cholesky(covariance.diagonal_scatter(variance, dim1=-2, dim2=-1))
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)
