"""A codebook, and the nearest of its vectors: learned by gradient or by moving averages.

Floor 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avb_service.config import Config
from avb_service.maths import one_hot
from avb_service.networks.trunks import Width


class CodebookConfig(Config):
    """What every codebook has.

    Attributes:
        size: K, how many vectors.
        dim: d, of each.
    """

    size: Annotated[Width, Field(ge=2)] = 16
    dim: Width = 8


class GradientCodebookConfig(CodebookConfig):
    """A codebook that follows the gradient of its distance to the encoder's outputs."""

    name: Literal["gradient"] = "gradient"

    def build(self) -> "Quantizer":
        """The module."""
        return GradientQuantizer(self)


class AveragedCodebookConfig(CodebookConfig):
    """A codebook of moving averages of the encoder's outputs that chose each vector.

    Attributes:
        decay: gamma.
    """

    name: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    def build(self) -> "Quantizer":
        """The module."""
        return AveragedQuantizer(self)


AnyCodebookConfig = Annotated[GradientCodebookConfig | AveragedCodebookConfig, Field(discriminator="name")]


class Quantizer(nn.Module, ABC):
    """K vectors e_k of dimension d; equations are of van den Oord et al. 2017.

    Attributes:
        codebook: [K, d].
    """

    codebook: Tensor

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.size = config.size

    def forward(self, z_e: Tensor) -> Tensor:
        """The nearest vector, k = argmin_j |z_e - e_j|, to each of z_e [..., d], as one-hot [..., K] (eq. 1)."""
        with torch.no_grad():
            return one_hot(torch.cdist(z_e, self.codebook).argmin(-1), self.size, z_e)

    def lookup(self, chosen: Tensor) -> Tensor:
        """What one-hot choices [..., K] stand for, z_q = e_k, [..., d] (eq. 2)."""
        return chosen @ self.codebook

    @abstractmethod
    def distance(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        """What moves the codebook by gradient, [...]: of outputs z_e [..., d] and the vectors z_q that they chose."""

    @abstractmethod
    def statistics(self, z_e: Tensor, chosen: Tensor) -> Mapping[str, Tensor]:
        """What moves the codebook by counting."""

    @abstractmethod
    def update_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Move it, by the statistics of V slices, [V, ...] each."""


class GradientQuantizer(Quantizer):
    """|sg[z_e] - e|^2, the second term of eq. 3."""

    def __init__(self, config: GradientCodebookConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(_start(config))

    def distance(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        """See `Quantizer.distance`."""
        return (z_e.detach() - z_q).square().sum(-1)

    def statistics(self, z_e: Tensor, chosen: Tensor) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def update_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """There is nothing to count."""


class AveragedQuantizer(Quantizer):
    """N_k = g N_k + (1 - g) n_k;  m_k = g m_k + (1 - g) sum z_e;  e_k = m_k / N_k.

    Both begin at 0, so the first batch that chooses a vector puts it at the mean of what chose it; a vector that
    nothing has ever chosen stays where it is.

    Source: van den Oord et al. 2017, appendix A.1, eq. 6 to 8.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, config: AveragedCodebookConfig) -> None:
        super().__init__(config)
        self.decay = config.decay
        self.register_buffer("codebook", _start(config))
        self.register_buffer("counts", torch.zeros(config.size))
        self.register_buffer("sums", torch.zeros(config.size, config.dim))

    def distance(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        """Nothing."""
        return z_e.new_zeros(z_e.shape[:-1])

    def statistics(self, z_e: Tensor, chosen: Tensor) -> Mapping[str, Tensor]:
        """n_k, [K], and the sum of the outputs that chose e_k, [K, d]."""
        flat, z_e = chosen.flatten(0, -2), z_e.detach().flatten(0, -2)
        return {"counts": flat.sum(0), "sums": flat.mT @ z_e}

    def update_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """See `Quantizer.update_statistics`."""
        for mean, new in ((self.counts, statistics["counts"]), (self.sums, statistics["sums"])):
            mean.mul_(self.decay).add_(new.sum(0), alpha=1 - self.decay)
        alive = self.counts > torch.finfo(self.counts.dtype).tiny  # chosen, and not so long ago that it is forgotten
        self.codebook[alive] = self.sums[alive] / self.counts[alive, None]


def perplexity(chosen: Tensor) -> Tensor:
    """Exp of the entropy of how often each vector is chosen, of one-hot choices [..., K]: between 1 and K."""
    share = chosen.flatten(0, -2).mean(0)
    return torch.exp(-torch.xlogy(share, share).sum())


def _start(config: CodebookConfig) -> Tensor:
    """Near the origin, so that an output's direction decides between vectors and not its length."""
    return torch.empty(config.size, config.dim).uniform_(-1, 1) / config.size
