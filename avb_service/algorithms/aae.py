"""Adversarial autoencoder (Makhzani et al. 2016)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player, told_apart
from avb_service.distributions import BernoulliConfig, ImplicitPosterior, ObservationConfig, Values
from avb_service.maths import standard_normal
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import EncoderConfig, NoiseInputConfig
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width, layers
from avb_service.optim import TurnConfig


class AAEConfig(AlgorithmConfig):
    """Settings of the adversarial autoencoder: AVB's networks but for the adversary, and the turns of its players.

    Attributes:
        latent_dim: D, numbers in a code.
        encoder: the network of q(z|x), which takes noise as well.
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        discriminator: widths of the network that sees codes.
        adversary: the turn of the discriminator.
        generator: the turn in which the encoder deceives it.
        reconstruction: the turn of encoder and decoder.
    """

    name: Literal["aae"] = "aae"
    latent_dim: Width = 8
    encoder: EncoderConfig = NoiseInputConfig()
    decoder: TrunkConfig = MLPConfig()
    discriminator: Annotated[tuple[Width, ...], Field(min_length=1)] = (512, 512)
    observation: ObservationConfig = BernoulliConfig()
    adversary: TurnConfig = TurnConfig(lr=1e-3, betas=(0.5, 0.999))
    generator: TurnConfig = TurnConfig(lr=1e-3, betas=(0.5, 0.999))
    reconstruction: TurnConfig = TurnConfig(lr=1e-3)

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)


class AAE(LatentVariableModel):
    """Reconstruct, while the codes of all data together, q(z) = E_data q(z|x), come to look like p(z) (section 2).

    It has AVB's p(z) p(x|z), and so a likelihood. But q(z|x) is not held to the posterior, datum by datum: no bound on
    log p(x) is maximised. The paper reconstructs first and plays all turns on one minibatch; here reconstruction comes
    last, and each turn has a batch of its own.

    Source: Makhzani et al. 2016, "Adversarial autoencoders"; the sections are those of arXiv 1511.05644. It is eq. 4 of
    Tolstikhin et al. 2018, "Wasserstein auto-encoders", with the penalty of a GAN.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AAEConfig

    def __init__(self, config: AAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = config.encoder.build(spec.shape, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)
        widths = (config.latent_dim, *config.discriminator)
        self.discriminator = nn.Sequential(*layers(widths, "leaky_relu"), nn.Linear(widths[-1], 1))

    def players(self) -> tuple[Player, ...]:
        """Regularisation (adversary, then generator), then reconstruction; the encoder plays two turns."""
        turns = self.config
        return (
            Player(
                name="adversary", objective=self.adversary_loss, networks=(self.discriminator,), turn=turns.adversary
            ),
            Player(name="generator", objective=self.generator_loss, networks=(self.encoder,), turn=turns.generator),
            Player(
                name="reconstruction",
                objective=self.reconstruction_loss,
                networks=(self.encoder, self.decoder),
                turn=turns.reconstruction,
            ),
        )

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_p(z)[log D(z)] - E_q(z)[log(1 - D(z))]: section 1.1's game (Goodfellow et al. 2014, eq. 1), of codes."""
        z_q = self.posterior(batch.x).rsample()
        z_p = self.prior().sample((len(z_q),))
        d_q, d_p = self.discriminator(torch.stack([z_q, z_p]))
        return told_apart(d_p, d_q)

    def generator_loss(self, batch: Batch) -> Loss:
        """-E_q(z)[log D(z)]: the encoder is a generator of codes (section 2); the form that does not saturate."""
        value = -logsigmoid(self.discriminator(self.posterior(batch.x).rsample())).mean()
        return Loss(value, {"loss": value.detach()})

    def reconstruction_loss(self, batch: Batch) -> Loss:
        """-E_q[log p(x|z)]."""
        reconstruction = self.likelihood(self.posterior(batch.x).rsample()).log_prob(batch.x).mean()
        return Loss(-reconstruction, {"reconstruction": reconstruction.detach()})

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=next(self.decoder.parameters()))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x), sampled as z = z_phi(x, eps): section 2's universal approximator posterior."""
        return self.encoder(x)
