"""Gaussian variational autoencoder (Kingma & Welling 2014)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player, warm_up
from avb_service.distributions import BernoulliConfig, ObservationConfig, Values
from avb_service.maths import standard_normal
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import GaussianEncoder
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class VAEConfig(AlgorithmConfig):
    """Settings of the Gaussian VAE.

    Attributes:
        latent_dim: D, numbers in a code.
        encoder: the network of q(z|x).
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        kl_warmup: rounds over which the weight of the KL rises from 0 to 1; 0 weighs it fully from the first.
        model: the turn of all networks.
    """

    name: Literal["vae"] = "vae"
    latent_dim: Width = 8
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    observation: ObservationConfig = BernoulliConfig()
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    model: TurnConfig = TurnConfig()

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)


class VAE(LatentVariableModel):
    """max E_q[log p(x|z)] - KL(q(z|x) || p(z)), z = m(x) + s(x) * eps (eq. 10)."""

    Config: ClassVar[type[AlgorithmConfig]] = VAEConfig

    def __init__(self, config: VAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = GaussianEncoder(config.encoder, spec.shape, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)

    def players(self) -> tuple[Player, ...]:
        """One."""
        return (
            Player(name="model", objective=self.loss, networks=(self.encoder, self.decoder), turn=self.config.model),
        )

    def loss(self, batch: Batch) -> Loss:
        """-ELBO, with the KL warmed up."""
        q = self.posterior(batch.x)
        reconstruction = self.likelihood(q.rsample()).log_prob(batch.x).mean()
        kl = kl_divergence(q, self.prior()).mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl": kl.detach()})

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=self.encoder.head.weight)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> Independent:
        """N(m(x), diag s(x)^2)."""
        return self.encoder(x)
