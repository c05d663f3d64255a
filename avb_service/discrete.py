"""Distributions over codes that can be counted: bits, one-hot vectors, layers of bits; and codes side by side.

Floor 1. Their draws compare a uniform number, or Gumbel numbers, with what the network has computed. Where that is not
a number they are still codes, so that divergence shows in the loss, which the engine looks at, and not in the sampler.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    OneHotCategorical,
    constraints,
    register_kl,
)
from torch.nn.functional import softplus

from avb_service.maths import Shape, one_hot


class Bits(Bernoulli):
    """Bernoulli variables, [...]."""

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws, [*sample_shape, ...]."""
        probabilities = self.probs.detach()
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=probabilities.dtype, device=probabilities.device)
        return (uniform < probabilities).to(probabilities.dtype)


@register_kl(Bits, Bits)
def _kl_of_bits(q: Bits, p: Bits) -> Tensor:
    """Sigmoid(a) (a - b) - log(1 + e^a) + log(1 + e^b), of logits a and b; torch's own does not broadcast."""
    return q.probs * (q.logits - p.logits) - softplus(q.logits) + softplus(p.logits)


def bits(logits: Tensor) -> Independent:
    """Independent bits, event shape [D], from logits [..., D]."""
    return Independent(Bits(logits=logits, validate_args=False), 1, validate_args=False)


def arrangements(values: Tensor, parts: int) -> Tensor:
    """All that so many parts can be, [n^parts, parts, ...], where each is one of the values [n, ...]."""
    numbers = torch.arange(len(values), device=values.device)
    return values[torch.cartesian_prod(*[numbers] * parts).reshape(-1, parts)]


class DiscreteCodes(Distribution, ABC):
    """A distribution over codes [D] whose parts are alike, each one of a few values; the parts may hang together.

    Attributes:
        parts: how many.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_enumerate_support = True
    parts: int

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """What a part can be, [n, D / parts]."""

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All codes, [n^parts, *batch_shape, D]."""
        codes = arrangements(self.values, self.parts).flatten(1)
        codes = codes.reshape(len(codes), *[1] * len(self.batch_shape), -1)
        return codes.expand(-1, *self.batch_shape, -1) if expand else codes


class OneHots(DiscreteCodes):
    """Independent choices, each as a one-hot vector; the code is one after the other.

    Args:
        logits: [..., V, K], of V choices among K categories each; D = V K.
    """

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = logits.log_softmax(-1)
        self.parts, self.categories = logits.shape[-2:]
        event = torch.Size([self.parts * self.categories])
        super().__init__(logits.shape[:-2], event, validate_args=False)

    @property
    def values(self) -> Tensor:
        """The unit vectors, [K, K]."""
        return torch.eye(self.categories).to(self.log_probs)

    @property
    def mean(self) -> Tensor:
        """The probabilities, [..., D]."""
        return self.log_probs.exp().flatten(-2)

    @property
    def variance(self) -> Tensor:
        """Of each bit, [..., D]."""
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws by the Gumbel-max trick, [*sample_shape, ..., D]."""
        logits = self.log_probs.detach().expand(*sample_shape, *self.log_probs.shape)
        gumbel = -torch.empty_like(logits, memory_format=torch.contiguous_format).exponential_().log()
        return one_hot((logits + gumbel).argmax(-1), self.categories, logits).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of codes [..., D], nats."""
        return (value.unflatten(-1, (self.parts, self.categories)) * self.log_probs).sum((-2, -1))

    def entropy(self) -> Tensor:
        """Nats, [...]."""
        return -(self.log_probs.exp() * self.log_probs).sum((-2, -1))


@register_kl(OneHots, OneHots)
def _kl_of_one_hots(q: OneHots, p: OneHots) -> Tensor:
    """-H(q) - E_q[log p]; with a uniform p, -H(q) + V log K."""
    return (q.log_probs.exp() * (q.log_probs - p.log_probs)).sum((-2, -1))


class LayeredBits(DiscreteCodes):
    """Bits in layers, each layer drawn given the one before: p(h_1) p(h_2|h_1) ... p(h_L|h_{L-1}).

    Args:
        logits: of the first layer drawn, [..., D_1].
        links: from a layer to the logits of the next, L - 1 of them.
        sizes: of the layers, in the order in which they are drawn.
        downward: whether the code has the layers in the opposite order.
    """

    def __init__(
        self, logits: Tensor, links: Sequence[Callable[[Tensor], Tensor]], sizes: Sequence[int], downward: bool = False
    ) -> None:
        self.logits, self.links, self.parts = logits, tuple(links), sum(sizes)
        self._order = -1 if downward else 1
        self._sizes = list(sizes)[:: self._order]  # as in the code
        super().__init__(logits.shape[:-1], torch.Size([self.parts]), validate_args=False)

    @property
    def values(self) -> Tensor:
        """0 and 1, [2, 1]."""
        return torch.arange(2).to(self.logits)[:, None]

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Ancestral draws, [*sample_shape, ..., D]."""
        with torch.no_grad():
            layers = [bits(self.logits).sample(sample_shape)]
            for link in self.links:
                layers.append(bits(link(layers[-1])).sample())
        return torch.cat(layers[:: self._order], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of codes [..., D], nats."""
        layers = value.split(self._sizes, -1)[:: self._order]
        total = bits(self.logits).log_prob(layers[0])
        for link, given, layer in zip(self.links, layers, layers[1:], strict=False):
            total = total + bits(link(given)).log_prob(layer)
        return total


class OneOfK(OneHotCategorical):
    """One-hot vectors [K] from logits [..., K]; torch's own checks its logits even where told not to.

    NaN has to reach the engine, which stops the run and names the player.
    """

    def __init__(self, logits: Tensor) -> None:
        self._categorical = Categorical(logits=logits, validate_args=False)
        Distribution.__init__(self, logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws [*sample_shape, ..., K]."""
        chosen = self._categorical.sample(torch.Size(sample_shape))
        return one_hot(chosen, self.event_shape[0], self._categorical.logits)


class ProductDistribution(Distribution):
    """Independent vectors side by side.

    Args:
        parts: distributions of one batch shape, with event shapes [D_1], [D_2], ...
    """

    arg_constraints: dict = {}

    def __init__(self, *parts: Distribution) -> None:
        self.parts = parts
        self.sizes = [part.event_shape[0] for part in parts]
        super().__init__(parts[0].batch_shape, torch.Size([sum(self.sizes)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Each part's own; discrete where one of them is."""
        return constraints.cat([part.support for part in self.parts], -1, self.sizes)

    @property
    def mean(self) -> Tensor:
        """Means side by side, [..., D]."""
        return torch.cat([part.mean for part in self.parts], -1)

    @property
    def variance(self) -> Tensor:
        """Variances side by side, [..., D]."""
        return torch.cat([part.variance for part in self.parts], -1)

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The parts of a vector, [..., D_1], [..., D_2], ..."""
        return value.split(self.sizes, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum over the parts, [...]."""
        return sum((p.log_prob(v) for p, v in zip(self.parts, self.split(value), strict=True)), value.new_zeros(()))

    def sample(self, sample_shape: Shape | list[int] = ()) -> Tensor:
        """Draws [*sample_shape, ..., D]."""
        return torch.cat([part.sample(torch.Size(sample_shape)) for part in self.parts], -1)
