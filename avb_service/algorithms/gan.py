"""Generative adversarial network (Goodfellow et al. 2014, algorithm 1)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, DecodingModel, Loss, Player, told_apart
from avb_service.distributions import Values
from avb_service.maths import standard_normal
from avb_service.networks.critics import Critic
from avb_service.networks.generator import Generator
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig

GeneratorLoss = Literal["non_saturating", "saturating"]


class GameConfig(AlgorithmConfig):
    """What the games of a generator and a critic share.

    Attributes:
        generator: the network that makes data of codes.
        discriminator: the critic's network.
        penalty: gamma, of the critic's squared slope on data (R1, Mescheder, Geiger & Nowozin 2018).
        adversary: the critic's turn; its steps are the k of algorithm 1.
        model: the generator's turn.
    """

    generator: TrunkConfig = MLPConfig()
    discriminator: TrunkConfig = MLPConfig(activation="leaky_relu")
    penalty: Annotated[float, Field(ge=0)] = 0.0
    adversary: TurnConfig = TurnConfig(lr=2e-4, betas=(0.5, 0.999))
    model: TurnConfig = TurnConfig(lr=2e-4, betas=(0.5, 0.999))

    def objection(self, values: Values) -> str | None:
        """Binary data: what is drawn 0 or 1 has no gradient, and what is not is told from the data at a glance."""
        if values == "binary":
            return (
                f"generator: {self.name} makes data by gradient, and binary data let none through; set "
                "data.binarisation: none"
            )
        return None


class NoiseGameConfig(GameConfig):
    """What the games share whose codes are noise and nothing else.

    Attributes:
        latent_dim: size of the noise, N(0, I).
    """

    latent_dim: Width = 16


class GANConfig(NoiseGameConfig):
    """Settings of the GAN.

    Attributes:
        generator_loss: saturating: the value of the game itself; non_saturating: the same fixed point with a gradient
            that does not vanish while the discriminator is sure.
    """

    name: Literal["gan"] = "gan"
    generator_loss: GeneratorLoss = "non_saturating"


class GAN(DecodingModel):
    """min_G max_D E_p(x)[log D(x)] + E_p(z)[log(1 - D(G(z)))], D = sigmoid of the critic (eq. 1)."""

    Config: ClassVar[type[AlgorithmConfig]] = GANConfig

    def __init__(self, config: NoiseGameConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.generator = Generator(config.latent_dim, spec, config.generator)
        self.discriminator = Critic(config.discriminator, spec.shape)

    def players(self) -> tuple[Player, ...]:
        """The discriminator first, so that the generator plays against one that has seen its present draws."""
        adversary = Player(
            name="adversary", objective=self.adversary_loss, networks=(self.discriminator,), turn=self.config.adversary
        )
        model = Player(name="model", objective=self.model_loss, networks=(self.generator,), turn=self.config.model)
        return adversary, model

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_p(x)[log D(x)] - E_p(z)[log(1 - D(G(z)))] + R1."""
        real, fake = self.discriminator(batch.x), self.discriminator(self.draw(batch))
        loss = told_apart(real, fake)
        return Loss(loss.value + self.penalty(batch), loss.terms)

    def model_loss(self, batch: Batch) -> Loss:
        """E_p(z)[log(1 - D(G(z)))], or -E_p(z)[log D(G(z))] (section 3)."""
        fake = self.discriminator(self.draw(batch))
        saturating = self.config.generator_loss == "saturating"
        value = logsigmoid(-fake).mean() if saturating else -logsigmoid(fake).mean()
        return Loss(value, {"loss": value.detach()})

    def penalty(self, batch: Batch) -> Tensor:
        """R1 of the critic on the batch's data."""
        return self.discriminator.penalty(batch.x, self.config.penalty)

    def draw(self, batch: Batch) -> Tensor:
        """As many draws as the batch has data, through which gradients reach the generator, [B, C, H, W]."""
        return self.generator(self.prior().sample((len(batch.x),)))

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=self.discriminator.head.weight)

    def decode(self, z: Tensor) -> Tensor:
        """G(z)."""
        return self.generator(z)
