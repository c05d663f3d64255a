"""Normalising flows, as densities of codes.

Floor 1. The flows are zuko's (Rozet et al. 2022); here is what a prior and a posterior need besides.
"""

from typing import Annotated, Literal

import zuko
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from avb_service.config import Config
from avb_service.maths import standard_normal
from avb_service.networks.encoders import GaussianEncoder
from avb_service.networks.masked import stateless
from avb_service.networks.trunks import ACTIVATIONS, Activation, ImageShape, TrunkConfig, Width

Count = Annotated[int, Field(ge=1)]


class SplineFlowConfig(Config):
    """Monotonic splines on [-5, 5], the identity beyond (Durkan et al. 2019): bends where a few dimensions need it.

    Attributes:
        transforms: how many, one after the other.
        bins: pieces of each spline.
        hidden: widths of the network of each.
        activation: between its layers.
    """

    name: Literal["spline"] = "spline"
    transforms: Count = 3
    bins: Annotated[int, Field(ge=2)] = 8
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 64)
    activation: Activation = "elu"

    def build(self, dim: int, context: int = 0) -> zuko.lazy.LazyTransform:
        """A map of vectors [..., dim], given a context [..., context]; it begins as the identity."""
        hyper = {"hidden_features": self.hidden, "activation": ACTIVATIONS[self.activation]}
        flow = zuko.flows.NSF(dim, context, bins=self.bins, transforms=self.transforms, randperm=False, **hyper)
        return _from_identity(flow.transform)


class AffineFlowConfig(Config):
    """Shifts and scales (Papamakarios et al. 2017): cheaper, and enough in many dimensions.

    Attributes:
        transforms: how many, one after the other.
        hidden: widths of the network of each.
        activation: between its layers.
    """

    name: Literal["affine"] = "affine"
    transforms: Count = 5
    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 64)
    activation: Activation = "elu"

    def build(self, dim: int, context: int = 0) -> zuko.lazy.LazyTransform:
        """A map of vectors [..., dim], given a context [..., context]; it begins as the identity."""
        hyper = {"hidden_features": self.hidden, "activation": ACTIVATIONS[self.activation]}
        flow = zuko.flows.MAF(dim, context, transforms=self.transforms, randperm=False, **hyper)
        return _from_identity(flow.transform)


FlowConfig = Annotated[SplineFlowConfig | AffineFlowConfig, Field(discriminator="name")]


def _from_identity(transform: zuko.lazy.LazyTransform) -> zuko.lazy.LazyTransform:
    """The map with the last layer of each of its networks at 0, where shifts are 0, scales 1 and splines straight."""
    for network in transform.modules():
        if isinstance(network, zuko.nn.MaskedMLP | zuko.nn.MLP):
            for parameter in network[-1].parameters():
                nn.init.zeros_(parameter)
    return stateless(transform)


class FlowPrior(nn.Module):
    """log p(z) = log N(f(z); 0, I) + log|det df/dz|; it begins as N(0, I). Source: Rezende & Mohamed 2015, section 3.

    Args:
        flow: f, autoregressive.
        dim: D.
    """

    def __init__(self, flow: FlowConfig, dim: int) -> None:
        super().__init__()
        self.transform, self.dim = flow.build(dim), dim

    def forward(self) -> Distribution:
        """p(z), event shape [D]."""
        return Flow(self.transform(), standard_normal(self.dim, like=next(self.parameters())))


class FlowPosterior(GaussianEncoder):
    """q(z|x): z_0 = m(x) + s(x) * eps, z = f(z_0; h(x)), h the features that m and s are read off; it begins Gaussian.

    A draw and its density take one pass of each network of f. The density of any other code takes D, to find its z_0.

    Args:
        trunk: the network of h.
        shape: of a datum, (C, H, W).
        dim: D.
        flow: f, autoregressive.

    Source: Kingma et al. 2016, algorithm 1.
    """

    def __init__(self, trunk: TrunkConfig, shape: ImageShape, dim: int, flow: FlowConfig) -> None:
        super().__init__(trunk, shape, dim)
        self.transform = flow.build(dim, self.head.in_features)

    def forward(self, x: Tensor) -> "Flow":
        """q(z|x), batch shape [B], event shape [D]."""
        h = self.features(x)
        return Flow(self.transform(h).inv, self.gaussian(h))


class Flow(zuko.distributions.NormalizingFlow):
    """With a support, by which estimators tell codes that can be annealed."""

    support = constraints.real_vector
    arg_constraints: dict[str, constraints.Constraint] = {}

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws z = f^-1(u), u ~ N(0, I), [*sample_shape, D]."""
        return self.rsample(sample_shape).detach()
