"""An autoregressive distribution over one-hot codes.

Floor 1.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import zuko
from pydantic import Field
from torch import Tensor, nn

from avb_service.config import Config
from avb_service.discrete import DiscreteCodes
from avb_service.maths import Shape, one_hot
from avb_service.networks.masked import stateless
from avb_service.networks.trunks import ACTIVATIONS, Activation, Width


class AutoregressiveConfig(Config):
    """A masked network, whose outputs for a position see only the positions before it.

    Attributes:
        hidden: widths of its layers.
        activation: between them.
    """

    hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (128, 128)
    activation: Activation = "relu"


class Autoregressive(nn.Module):
    """log p(z) = sum_i log p(z_i | z_1 .. z_{i-1}). Source: Germain et al. 2015 (MADE), eq. 4, over categories.

    Args:
        config: the network.
        positions: how many, at least 2.
        categories: K, of each.
    """

    def __init__(self, config: AutoregressiveConfig, positions: int, categories: int) -> None:
        super().__init__()
        self.positions, self.categories = positions, categories
        before = torch.ones(positions, positions, dtype=torch.bool).tril(-1)
        adjacency = before.repeat_interleave(categories, 0).repeat_interleave(categories, 1)
        self.network = stateless(zuko.nn.MaskedMLP(adjacency, config.hidden, ACTIVATIONS[config.activation]))

    def forward(self) -> "AutoregressiveOneHots":
        """p(z), event shape [positions * K]."""
        like = next(self.network.parameters())
        return AutoregressiveOneHots(self.network, like.new_zeros(self.positions, self.categories))


class AutoregressiveOneHots(DiscreteCodes):
    """Choices one after the other, each as a one-hot vector.

    Args:
        network: one-hot codes [..., D] to logits [..., D], of each position by those before it.
        empty: a code before its first choice, zeros [V, K].
    """

    def __init__(self, network: Callable[[Tensor], Tensor], empty: Tensor) -> None:
        self.network, self.empty, self.parts = network, empty, len(empty)
        super().__init__(torch.Size(), torch.Size([empty.numel()]), validate_args=False)

    @property
    def values(self) -> Tensor:
        """The unit vectors, [K, K]."""
        return torch.eye(self.empty.shape[1]).to(self.empty)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of codes [..., D], nats."""
        log_probs = self.network(value).unflatten(-1, (self.parts, -1)).log_softmax(-1)
        return (value.unflatten(-1, (self.parts, -1)) * log_probs).sum((-2, -1))

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws position by position, by the Gumbel-max trick, [*sample_shape, D]."""
        code = self.empty.repeat(*sample_shape, 1, 1)
        with torch.no_grad():
            for i in range(self.parts):
                logits = self.network(code.flatten(-2)).unflatten(-1, (self.parts, -1))[..., i, :]
                gumbel = -torch.empty_like(logits).exponential_().log()
                code[..., i, :] = one_hot((logits + gumbel).argmax(-1), logits.shape[-1], code)
        return code.flatten(-2)


class Delta(DiscreteCodes):
    """All mass on one code.

    Args:
        code: [..., D].
        parts: V, of K categories each; D = V K.
    """

    def __init__(self, code: Tensor, parts: int) -> None:
        self.code, self.parts = code, parts
        super().__init__(code.shape[:-1], code.shape[-1:], validate_args=False)

    @property
    def values(self) -> Tensor:
        """The unit vectors, [K, K]."""
        return torch.eye(self.code.shape[-1] // self.parts).to(self.code)

    @property
    def mean(self) -> Tensor:
        """The code."""
        return self.code

    @property
    def variance(self) -> Tensor:
        """None."""
        return torch.zeros_like(self.code)

    def log_prob(self, value: Tensor) -> Tensor:
        """0 of the code, -inf of any other."""
        same = (value == self.code).all(-1)
        return torch.zeros_like(same, dtype=self.code.dtype).masked_fill(~same, -torch.inf)

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """The code, [*sample_shape, ..., D]."""
        return self.code.expand(*sample_shape, *self.code.shape)
