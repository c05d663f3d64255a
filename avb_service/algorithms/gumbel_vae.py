"""VAE with categorical codes and Gumbel-softmax (Jang, Gu & Poole 2017; Maddison et al. 2017: Concrete)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.nn.functional import gumbel_softmax

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player, warm_up
from avb_service.discrete import OneHots
from avb_service.distributions import BernoulliConfig, ObservationConfig, Values
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import LogitsEncoder
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig

Temperature = Annotated[float, Field(gt=0)]


class GumbelVAEConfig(AlgorithmConfig):
    """Settings of the VAE with categorical codes.

    Attributes:
        variables: V, choices that make up a code.
        categories: K, of each; log p(x) is exact where K^V is at most 2^16.
        temperature: of the relaxation in the first round.
        temperature_min: what it falls to, by the same factor each round.
        anneal: rounds that this takes; 0 trains at the lowest temperature throughout.
        straight_through: whether the decoder sees one-hot codes in training, with the gradient of relaxed ones.
        encoder: the network of q(z|x).
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        kl_warmup: rounds over which the weight of the KL rises from 0 to 1; 0 weighs it fully from the first.
        model: the turn of all networks.
    """

    name: Literal["gumbel_vae"] = "gumbel_vae"
    variables: Width = 4
    categories: Annotated[Width, Field(ge=2)] = 16
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    observation: ObservationConfig = BernoulliConfig()
    temperature: Temperature = 1.0
    temperature_min: Temperature = 0.5
    anneal: Annotated[int, Field(ge=0)] = 2000
    straight_through: bool = False
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    model: TurnConfig = TurnConfig()

    def problems(self) -> Iterator[str]:
        """Temperatures fall."""
        yield from super().problems()
        if self.temperature_min > self.temperature:
            yield (
                f"temperature_min: {self.temperature_min} is above algorithm.temperature {self.temperature}, from "
                "which it is annealed; lower it"
            )

    @property
    def latent_dim(self) -> int:
        """D = V K."""
        return self.variables * self.categories

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)

    def temperature_at(self, round_: Tensor) -> Tensor:
        """The temperature tau, exponential from the first to the lowest; a pure function of the round."""
        share = (round_ / self.anneal).clamp(max=1.0) if self.anneal else torch.ones_like(round_)
        return self.temperature * (self.temperature_min / self.temperature) ** share


class GumbelVAE(LatentVariableModel):
    """max E_q[log p(x|z)] - KL(q(z|x) || p(z)), q a product of categorical variables, p(z) uniform.

    In training z is softmax((log pi + g) / tau) with Gumbel noise g (Jang et al. 2017, eq. 2; one-hot by section 2.2),
    while the KL is that of the categorical variables, as in their section 4.2, but for a prior that is not learned. All
    that is evaluated is of one-hot codes: there is no relaxation left in log p(x).
    """

    Config: ClassVar[type[AlgorithmConfig]] = GumbelVAEConfig

    def __init__(self, config: GumbelVAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = LogitsEncoder(config.encoder, spec.shape, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)

    def players(self) -> tuple[Player, ...]:
        """One."""
        return (
            Player(name="model", objective=self.loss, networks=(self.encoder, self.decoder), turn=self.config.model),
        )

    def loss(self, batch: Batch) -> Loss:
        """-ELBO with a relaxed code in the first term, and KL(q || p) = -H(q) + V log K."""
        q, tau = self.posterior(batch.x), self.config.temperature_at(batch.round)
        z = gumbel_softmax(q.log_probs, tau, hard=self.config.straight_through).flatten(-2)
        reconstruction = self.likelihood(z).log_prob(batch.x).mean()
        kl = kl_divergence(q, self.prior()).mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        terms = {
            "reconstruction_relaxed": reconstruction.detach(),
            "kl": kl.detach(),
            "temperature": tau,
        }
        return Loss(value, terms)

    def prior(self) -> OneHots:
        """Uniform."""
        like = next(self.decoder.parameters())
        return OneHots(like.new_zeros(self.config.variables, self.config.categories))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z), for one-hot or relaxed codes [..., V K]."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> OneHots:
        """The posterior q(z|x) = prod_v Categorical(z_v; softmax(l_v(x)))."""
        return OneHots(self.encoder(x).unflatten(-1, (self.config.variables, self.config.categories)))
