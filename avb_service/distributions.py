"""Observation models p(x|z) and posteriors that are known only through their samples.

Floor 1. A network's forward returns one of these, never a tuple of tensors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Normal,
)

from avb_service.config import Config
from avb_service.discretised import DiscretisedLogistic
from avb_service.kinds import OneOf, Table, subclass_of
from avb_service.maths import Shape, logit_of_mean

Values = Literal["binary", "levels", "real"]  # {0, 1}; {0, ..., L} / L; any number


class DataSpec(NamedTuple):
    """What a datum is: all that a model needs to know of the data before it sees any.

    Attributes:
        shape: (channels, height, width); vectors are (1, 1, D).
        values: which numbers occur.
        levels: the largest integer before scaling to [0, 1]; 255 for 8-bit images, 0 for real values.
        mean: mean over the training set, [C, H, W], in the units that the model sees.
    """

    shape: tuple[int, int, int]
    values: Values
    levels: int
    mean: Tensor


class ObservationModel(nn.Module, ABC):
    """Turns what a decoder computes into p(x|z).

    Attributes:
        planes: numbers that the decoder has to give for each pixel and channel.
    """

    planes: int = 1

    @abstractmethod
    def forward(self, parameters: Tensor) -> Distribution:
        """p(x|z), event shape [C, H, W], from decoder outputs [..., planes, C, H, W]."""

    @abstractmethod
    def bias(self, mean: Tensor) -> Tensor:
        """Decoder outputs [planes, C, H, W] under which the model is right on average for data of that mean."""


class Observation(Config):
    """What every observation model's section has.

    Attributes:
        name: the kind of distribution.
    """

    name: str

    @abstractmethod
    def build(self, spec: DataSpec) -> ObservationModel:
        """The module for data of that kind."""

    def objection(self, values: Values) -> str | None:
        """Why the model does not fit data with such values, as `observation: reason`, if so."""
        return None


class BernoulliConfig(Observation):
    """Binary pixels."""

    name: Literal["bernoulli"] = "bernoulli"

    def build(self, spec: DataSpec) -> ObservationModel:
        """The module."""
        return BernoulliObservation()

    def objection(self, values: Values) -> str | None:
        """Why the model does not fit data with such values, as `path: reason`, if so."""
        if values != "binary":
            return f"observation: bernoulli needs binary data, given {values}; set data.binarisation or use gaussian"
        return None


class GaussianConfig(Observation):
    """Real-valued pixels with Gaussian noise: its scale given, learned for all pixels, or predicted for each.

    Attributes:
        scale: standard deviation of the noise; where it is learned or predicted, of the first round.
        noise: whether that stays, is learned for all pixels, or is predicted for each.
    """

    name: Literal["gaussian"] = "gaussian"
    scale: Annotated[float, Field(gt=0)] = 0.1
    noise: Literal["fixed", "learned", "predicted"] = "fixed"

    def build(self, spec: DataSpec) -> ObservationModel:
        """The module."""
        return GaussianObservation(self)

    def objection(self, values: Values) -> str | None:
        """Gaussian noise fits anything that is not binary."""
        if values == "binary":
            return "observation: gaussian would put a density on binary data; use bernoulli"
        return None


class LogisticConfig(Observation):
    """8-bit (or coarser) pixels as bins of a logistic density."""

    name: Literal["discretised_logistic"] = "discretised_logistic"

    def build(self, spec: DataSpec) -> ObservationModel:
        """The module."""
        return DiscretisedLogisticObservation(spec.levels)

    def objection(self, values: Values) -> str | None:
        """It needs pixels that lie on a grid."""
        if values != "levels":
            instead = "bernoulli" if values == "binary" else "gaussian"
            return f"observation: discretised_logistic needs levels of grey, given {values} values; use {instead}"
        return None


OBSERVATIONS: Table[type[Observation]] = Table(
    "observations",
    {"bernoulli": BernoulliConfig, "gaussian": GaussianConfig, "discretised_logistic": LogisticConfig},
    subclass_of(Observation),
)
ObservationConfig = Annotated[Observation, OneOf(OBSERVATIONS)]


class BernoulliObservation(ObservationModel):
    """p(x|z) = prod_i Bernoulli(x_i; sigmoid(l_i(z)))."""

    def forward(self, parameters: Tensor) -> Distribution:
        """See `ObservationModel.forward`."""
        return Independent(Bernoulli(logits=parameters.squeeze(-4), validate_args=False), 3, validate_args=False)

    def bias(self, mean: Tensor) -> Tensor:
        """The logit of the mean, kept away from certainty."""
        return logit_of_mean(mean)[None]


class GaussianObservation(ObservationModel):
    """p(x|z) = prod_i N(x_i; m_i(z), s^2), with s fixed, learned, or s_i(z)."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.planes = 2 if config.noise == "predicted" else 1
        log_scale = torch.tensor(math.log(config.scale))
        if config.noise == "learned":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, parameters: Tensor) -> Distribution:
        """See `ObservationModel.forward`."""
        mean = parameters.select(-4, 0)
        log_scale = self.log_scale.expand_as(mean)
        if self.planes == 2:
            log_scale = log_scale + parameters.select(-4, 1).clamp(-7, 7)
        return Independent(Normal(mean, log_scale.exp(), validate_args=False), 3, validate_args=False)

    def bias(self, mean: Tensor) -> Tensor:
        """The mean itself; predicted scales begin at the configured one."""
        return torch.cat([mean[None], torch.zeros_like(mean)[None].expand(self.planes - 1, *mean.shape)])


class DiscretisedLogisticObservation(ObservationModel):
    """p(x|z) = prod_i P(x_i - 1/2L <= y_i < x_i + 1/2L), y_i ~ Logistic(m_i(z), s_i(z)), open at both ends.

    Source: Salimans et al. 2017 (PixelCNN++), eq. 2, with one component.
    """

    planes = 2
    log_scale = -2.0  # where the decoder gives 0

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, parameters: Tensor) -> Distribution:
        """See `ObservationModel.forward`."""
        loc, log_scale = parameters.select(-4, 0), parameters.select(-4, 1) + self.log_scale
        return Independent(DiscretisedLogistic(loc, log_scale.clamp(-7.0, 7.0), self.levels), 3, validate_args=False)

    def bias(self, mean: Tensor) -> Tensor:
        """The location that has this mean at the starting scale s: m = s log((1 + e^(l/s)) / (1 + e^((l-1)/s)))."""
        m, s = mean.double().clamp(0.01, 0.99), math.exp(self.log_scale)
        loc = s * (torch.log(torch.expm1(m / s)) - torch.log(-torch.expm1((m - 1) / s)))
        return torch.stack([loc, torch.zeros_like(loc)]).to(mean)


def likelihood_score(p: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """What log p(x|z) is a function of, and its gradient by that: all that its gradient by z needs.

    Of binary pixels it is x - sigmoid(l) by the logits l, which saves annealing a tenth of its time; of any other,
    log p(x|z) itself and ones.

    Args:
        p: p(x|z), event shape [C, H, W].
        x: data, [..., C, H, W].
    """
    if isinstance(p, Independent) and isinstance(p.base_dist, Bernoulli):
        logits = p.base_dist.logits
        return logits, x - torch.sigmoid(logits)
    log_p = p.log_prob(x)
    return log_p, torch.ones_like(log_p)


class ImplicitPosterior:
    """q(z|x) that can be sampled but whose density is not known.

    Args:
        sampler: gives reparameterised draws [*sample_shape, B, D] for a sample shape.
    """

    def __init__(self, sampler: Callable[[Shape], Tensor]) -> None:
        self._sampler = sampler

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws z = z_phi(x, eps), [*sample_shape, B, D], through which gradients flow."""
        return self._sampler(torch.Size(sample_shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draws [*sample_shape, B, D] without gradients."""
        return self.rsample(sample_shape).detach()


class BasisMoments(NamedTuple):
    """Moments of the noise variables v_1 .. v_N: means [N, D] and covariances [N, D, D]."""

    mean: Tensor
    covariance: Tensor


class NoiseBasisPosterior(ImplicitPosterior):
    """q(z|x): z = z0(x) + sum_i a_i(x) * v_i(eps_i), an implicit posterior with tractable moments.

    Args:
        offset: z0(x), [B, D].
        weights: a(x), [B, N, D].
        basis: draws of all v_i for a leading shape: `basis((..., B))` is [..., B, N, D].

    Source: Mescheder et al. 2017, section 4 and supplement; the v_i do not depend on x.
    """

    def __init__(self, offset: Tensor, weights: Tensor, basis: Callable[..., Tensor]) -> None:
        super().__init__(self._draw)
        self.offset, self.weights, self.basis = offset, weights, basis

    def _draw(self, sample_shape: Shape) -> Tensor:
        v = self.basis((*sample_shape, len(self.offset)))
        return self.offset + (self.weights * v).sum(-2)

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, D] and covariance [B, D, D] of q(z|x).

        m(x) = z0 + sum_i a_i E[v_i];  C(x) = sum_i diag(a_i) Cov(v_i) diag(a_i).

        Args:
            mean: E[v_i], [N, D].
            covariance: Cov(v_i), [N, D, D].
        """
        whole = torch.einsum("bni,nij,bnj->bij", self.weights, covariance, self.weights)
        return self.offset + (self.weights * mean).sum(-2), whole
