"""A normalising flow as a density of codes.

Floor 1. The flows are zuko's (Rozet et al. 2022); here is what a prior needs besides.
"""

from typing import Annotated, Literal

import zuko
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from avb_service.config import Config
from avb_service.maths import standard_normal
from avb_service.networks.masked import stateless
from avb_service.networks.trunks import ACTIVATIONS, Activation, Width

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

    def build(self, dim: int) -> "FlowPrior":
        """The module."""
        hyper = {"hidden_features": self.hidden, "activation": ACTIVATIONS[self.activation]}
        flow = zuko.flows.NSF(dim, bins=self.bins, transforms=self.transforms, randperm=False, **hyper)
        return FlowPrior(flow.transform, dim)


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

    def build(self, dim: int) -> "FlowPrior":
        """The module."""
        hyper = {"hidden_features": self.hidden, "activation": ACTIVATIONS[self.activation]}
        flow = zuko.flows.MAF(dim, transforms=self.transforms, randperm=False, **hyper)
        return FlowPrior(flow.transform, dim)


FlowConfig = Annotated[SplineFlowConfig | AffineFlowConfig, Field(discriminator="name")]


class FlowPrior(nn.Module):
    """log p(z) = log N(f(z); 0, I) + log|det df/dz|; it begins as N(0, I). Source: Rezende & Mohamed 2015, section 3.

    Args:
        transform: f, autoregressive.
        dim: D.
    """

    def __init__(self, transform: zuko.lazy.LazyTransform, dim: int) -> None:
        super().__init__()
        self.transform, self.dim = stateless(transform), dim
        for network in transform.modules():
            if isinstance(network, zuko.nn.MaskedMLP):
                for parameter in network[-1].parameters():
                    nn.init.zeros_(parameter)

    def forward(self) -> Distribution:
        """p(z), event shape [D]."""
        return Flow(self.transform(), standard_normal(self.dim, like=next(self.parameters())))


class Flow(zuko.distributions.NormalizingFlow):
    """With a support, by which estimators tell codes that can be annealed."""

    support = constraints.real_vector
    arg_constraints: dict[str, constraints.Constraint] = {}

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws z = f^-1(u), u ~ N(0, I), [*sample_shape, D]."""
        return self.rsample(sample_shape).detach()
