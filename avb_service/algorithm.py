"""The whole extension interface: a method is a game of players.

Floor 2. A method says which losses are minimised over which networks, in which order; the engine does the rest
(fresh batches, freezing the opponents, clipping, data parallelism, precision, averaging).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from avb_service.config import Config
from avb_service.discrete import ProductDistribution
from avb_service.distributions import DataSpec, ImplicitPosterior, Values
from avb_service.optim import TurnConfig

Shared = tuple[Tensor, ...]  # what `Algorithm.shared` gives


class Batch(NamedTuple):
    """What a player sees in one step.

    Attributes:
        x: data, [B, C, H, W].
        labels: classes, [B], where the data has them; for pictures, never for training.
        round: rounds played so far, for schedules; a scalar in x's precision and on its device.
        shared: what `Algorithm.shared` drew. A method's own noise (`rsample()`, `randn`) differs from slice to slice;
            this is the same for the whole batch.
        other: data of the second source, [B, C, H, W], where `data.other` names one; not paired with x.
    """

    x: Tensor
    labels: Tensor | None
    round: Tensor
    shared: Shared = ()
    other: Tensor | None = None


class Loss(NamedTuple):
    """What a player minimises.

    Attributes:
        value: scalar, mean over the batch that was seen.
        terms: detached scalars to report, in nats per datum unless the name says otherwise.
        statistics: detached tensors, of this batch alone, that the player's `update_statistics` learns from.
    """

    value: Tensor
    terms: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """One side of the game.

    Attributes:
        name: unique in the game; `algorithm.<name>` configures it.
        objective: the loss of a batch.
        networks: exactly what this turn updates; all else is frozen meanwhile, gradients still flow through it.
        turn: steps a round, optimizer, schedule, clipping.
        update_statistics: learns what is not learned by gradient (a running baseline, a codebook's counts) and keeps it
            in buffers. Called after every step, on all workers, with the statistics of all slices of the batch, each
            [V, ...] in the order of the logical workers; so it is exact for any number of workers.
    """

    name: str
    objective: Callable[[Batch], Loss]
    networks: tuple[nn.Module, ...]
    turn: TurnConfig
    update_statistics: Callable[[Mapping[str, Tensor]], None] | None = None


class AlgorithmConfig(Config):
    """What every method's section has; a method adds its own fields and a `Literal` name.

    Attributes:
        name: the method.
        two_sources: whether the method learns from `data.other` besides.
    """

    name: str
    two_sources: ClassVar[bool] = False

    def objection(self, values: Values) -> str | None:
        """Why the method cannot model data with such values, as `path: reason`, if so."""
        return None

    def shortage(self, data: int) -> str | None:
        """Why the method cannot learn from so few training data, as `path: reason`, if so."""
        return None


class Algorithm(nn.Module, ABC):
    """A method of training a generative model.

    Args:
        config: the method's section.
        spec: what a datum is.
    """

    Config: ClassVar[type[AlgorithmConfig]]

    def __init__(self, config: Any, spec: DataSpec) -> None:  # noqa: ANN401  of the method's own type
        super().__init__()
        self.config, self.spec = config, spec

    @property
    def example(self) -> Tensor:
        """A datum that is all zeros, [1, C, H, W], in the model's precision and on its device, to try things out on."""
        return next(self.parameters(), self.spec.mean).new_zeros(1, *self.spec.shape)

    @abstractmethod
    def players(self) -> tuple[Player, ...]:
        """The players, in order of play."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draws from the model, [n, C, H, W]."""

    def simultaneous(self) -> "Callable[[Batch], tuple[Loss, ...]] | None":
        """The losses of all players, in their order, where they step at once from one batch; None: they take turns.

        Each player's gradient is that of its own loss, whatever else its networks are used for.
        """
        return None

    def shared(self) -> Shared:
        """What all slices of a batch share (a sample of the noise that moments are taken from), without gradient.

        Drawn at the beginning of a round, by noise that is seeded alike on all workers. Most methods share nothing.
        """
        return ()

    def fit_before_training(self, batches: Iterable[Tensor]) -> None:
        """Fit to training data what training begins from, and keep it in buffers; most methods begin from nothing.

        Args:
            batches: training data, [B, C, H, W] each, as evaluation sees them.
        """

    def fit_after_training(self, batches: Iterable[Tensor]) -> None:
        """Fit to training data what training does not learn (a mixture on the codes, say), and keep it in buffers.

        Called before the model is looked at, so the result must depend on the weights, the data and the noise alone,
        and not on what an earlier call has found. Most methods have nothing to fit.

        Args:
            batches: training data, [B, C, H, W] each, as evaluation sees them.
        """


class TranslatingModel(Algorithm):
    """A method that turns data of a second source into what it models, and back."""

    @abstractmethod
    def translate(self, other: Tensor) -> Tensor:
        """Data of the second source [B, C, H, W] as data of the modelled kind, [B, C, H, W]."""

    @abstractmethod
    def translate_back(self, x: Tensor) -> Tensor:
        """Data of the modelled kind [B, C, H, W] as data of the second source, [B, C, H, W]."""


class DecodingModel(Algorithm):
    """A method that makes data of codes: x = g(z), z ~ p(z)."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z), event shape [D]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """What codes [..., D] stand for, [..., C, H, W]: g(z), or the mean of p(x|z)."""

    def sample(self, n: int) -> Tensor:
        """Draws x = g(z), z ~ p(z), [n, C, H, W]."""
        return self.decode(self.prior().sample((n,))).detach()


class CodedModel(DecodingModel):
    """A method whose codes begin with c, one of K and numbers, which is read off the data again; the rest is noise."""

    @abstractmethod
    def recognise(self, x: Tensor) -> ProductDistribution:
        """Q(c|x) for data [B, C, H, W], batch shape [B]; its first part is over K categories, as one-hot vectors."""


class EncodingModel(DecodingModel):
    """A method that also finds codes of data."""

    @abstractmethod
    def encode(self, x: Tensor, draws: int = 1) -> Tensor:
        """Codes of data [B, C, H, W], [draws, B, D]."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """What comes back from one code of each datum, [B, C, H, W]."""
        return self.decode(self.encode(x)[0]).detach()


class JointDensity(nn.Module, ABC):
    """p(x,z) = p(z) p(x|z), with a q(z|x) or without: all that an estimator of log p(x) asks of a model."""

    @property
    @abstractmethod
    def example(self) -> Tensor:
        """A datum [1, ...] in the model's precision and on its device, to try things out on."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z), event shape [D]."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z), event shape that of a datum, for codes [..., D]."""

    @abstractmethod
    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        """q(z|x) for data [B, ...]; draws are [*sample_shape, B, D].

        Raises:
            UserError: there is none.
        """

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x,z) in nats, [..., B], for data [B, ...] and codes [..., B, D]."""
        return self.likelihood(z).log_prob(x) + self.prior().log_prob(z)


class LatentVariableModel(EncodingModel, JointDensity):
    """A method whose model is p(z) p(x|z), so that it can have a likelihood."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z), event shape [C, H, W], for codes [..., D]."""

    @abstractmethod
    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        """q(z|x) for data [B, C, H, W]; draws are [*sample_shape, B, D]."""

    def sample(self, n: int) -> Tensor:
        """Draws x ~ p(x|z), z ~ p(z), [n, C, H, W]."""
        return self.likelihood(self.prior().sample((n,))).sample()

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], [..., C, H, W], for codes [..., D]."""
        return self.likelihood(z).mean

    def encode(self, x: Tensor, draws: int = 1) -> Tensor:
        """Codes z ~ q(z|x), [draws, B, D]."""
        return self.posterior(x).sample((draws,))


class AdversarialModel(LatentVariableModel):
    """A method whose KL term is not a formula but what an adversary has learned."""

    @abstractmethod
    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x) for data [B, C, H, W]; draws are [*sample_shape, B, D]."""

    @abstractmethod
    def log_ratio(self, x: Tensor, q: ImplicitPosterior, z: Tensor, shared: Shared) -> Tensor:
        """The adversary's log q(z|x) - log p(z) for codes [..., B, D], [..., B]; wrong by as much as it is."""

    def contrast(self, q: ImplicitPosterior, shared: Shared) -> Distribution:
        """R(z|x), which the adversary tells q(z|x) from, event shape [D]: the prior, unless the contrast adapts."""
        return self.prior()


def told_apart(first: Tensor, second: Tensor) -> Loss:
    """A classifier's cross-entropy, -E[log sigmoid(first)] - E[log(1 - sigmoid(second))], and its accuracy.

    Args:
        first: its logits of a sample that it should call 1.
        second: of one that it should call 0.

    Source: Goodfellow et al. 2014, equation 1.
    """
    value = -(logsigmoid(first) + logsigmoid(-second)).mean()
    accuracy = ((first > 0).float().mean() + (second < 0).float().mean()) / 2
    return Loss(value, {"loss": value.detach(), "accuracy": accuracy})


def warm_up(round_: Tensor, rounds: int) -> Tensor | float:
    """Weight of a term that comes in slowly: from 0 to 1 over the first rounds; 1 throughout where rounds is 0."""
    return ((round_ + 1) / rounds).clamp(max=1.0) if rounds else 1.0
