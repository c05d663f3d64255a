"""Adversarially learned inference, or bidirectional GAN (Dumoulin et al. 2017; Donahue et al. 2017)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.nn.functional import logsigmoid

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, EncodingModel, Loss, Player, told_apart
from avb_service.distributions import Values
from avb_service.maths import standard_normal
from avb_service.networks.critics import PairCritic
from avb_service.networks.encoders import GaussianEncoder
from avb_service.networks.generator import Generator
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class ALIConfig(AlgorithmConfig):
    """Settings of adversarially learned inference.

    Attributes:
        latent_dim: D, numbers in a code.
        encoder: of q(z|x), a factorised Gaussian.
        decoder: of x = g(z).
        noise: standard deviation of the Gaussian noise that p(x|z) puts on g(z); 0 is the bidirectional GAN's function.
        discriminator: what the discriminator makes of x before it sees z.
        joint: widths of what it makes of both.
        adversary: its turn.
        model: the turn of encoder and decoder.
    """

    name: Literal["ali"] = "ali"
    latent_dim: Width = 8
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    noise: Annotated[float, Field(ge=0)] = 0.0
    discriminator: TrunkConfig = MLPConfig(hidden=(300,), activation="leaky_relu")
    joint: Annotated[tuple[Width, ...], Field(min_length=1)] = (300, 300)
    adversary: TurnConfig = TurnConfig(lr=2e-4, betas=(0.5, 0.999))
    model: TurnConfig = TurnConfig(lr=2e-4, betas=(0.5, 0.999))

    def objection(self, values: Values) -> str | None:
        """Binary data: what is drawn 0 or 1 has no gradient, and what is not is told from the data at a glance."""
        if values == "binary":
            return "decoder: ali makes data by gradient, and binary data let none through; set data.binarisation: none"
        return None


class ALI(EncodingModel):
    """The joints q(x) q(z|x) and p(z) p(x|z) are brought together by a discriminator that sees pairs (section 2).

    Where it can no longer tell them apart, q(z|x) is the posterior of p(z) p(x|z). Algorithm 1 steps all networks at
    once; here the discriminator steps first, and the others on a batch of their own. Equations are Dumoulin et al.'s.
    """

    Config: ClassVar[type[AlgorithmConfig]] = ALIConfig

    def __init__(self, config: ALIConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = GaussianEncoder(config.encoder, spec.shape, config.latent_dim)
        self.decoder = Generator(config.latent_dim, spec, config.decoder)
        self.discriminator = PairCritic(config.discriminator, spec.shape, config.latent_dim, config.joint)

    def players(self) -> tuple[Player, ...]:
        """The discriminator first; then encoder and decoder, which want the same."""
        adversary = Player(
            name="adversary", objective=self.adversary_loss, networks=(self.discriminator,), turn=self.config.adversary
        )
        model = Player(
            name="model", objective=self.model_loss, networks=(self.encoder, self.decoder), turn=self.config.model
        )
        return adversary, model

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_q[log D(x, z)] - E_p[log(1 - D(x, z))] (eq. 1)."""
        return told_apart(*self.tell(batch.x))

    def model_loss(self, batch: Batch) -> Loss:
        """-E_q[log(1 - D(x, z))] - E_p[log D(x, z)]: the form that does not saturate (eq. 4)."""
        t_q, t_p = self.tell(batch.x)
        value = -(logsigmoid(-t_q) + logsigmoid(t_p)).mean()
        return Loss(value, {"loss": value.detach()})

    def tell(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds, [B] each: of data with codes from q(z|x), and of draws with the codes that they were made of."""
        z_q, z_p = self.posterior(x).rsample(), self.prior().sample((len(x),))
        t = self.discriminator(torch.cat([x, self.draw(z_p)]), torch.cat([z_q, z_p]))
        return t[: len(x)], t[len(x) :]

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=self.encoder.head.weight)

    def posterior(self, x: Tensor) -> Independent:
        """q(z|x) = N(m(x), diag s(x)^2)."""
        return self.encoder(x)

    def encode(self, x: Tensor, draws: int = 1) -> Tensor:
        """Codes z ~ q(z|x), [draws, B, D]."""
        return self.posterior(x).sample((draws,))

    def decode(self, z: Tensor) -> Tensor:
        """g(z), the mean of p(x|z)."""
        return self.decoder(z)

    def draw(self, z: Tensor) -> Tensor:
        """Draws x ~ p(x|z), through which gradients flow, [..., C, H, W]."""
        x = self.decoder(z)
        return x + self.config.noise * torch.randn_like(x) if self.config.noise else x

    def sample(self, n: int) -> Tensor:
        """Draws x ~ p(x|z), z ~ p(z), [n, C, H, W]."""
        return self.draw(self.prior().sample((n,))).detach()
