"""Adversarial Variational Bayes (Mescheder, Nowozin & Geiger 2017, algorithm 1)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from avb_service.algorithm import (
    AdversarialModel,
    AlgorithmConfig,
    Batch,
    DataSpec,
    Loss,
    Player,
    TurnConfig,
    warm_up,
)
from avb_service.distributions import BernoulliConfig, ImplicitPosterior, ObservationConfig, Values, whiten
from avb_service.maths import standard_normal
from avb_service.networks.adversaries import AdversaryConfig, InnerProductConfig
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import EncoderConfig, NoiseInputConfig
from avb_service.networks.trunks import MLPConfig, TrunkConfig


class AVBConfig(AlgorithmConfig):
    """Settings of AVB."""

    name: Literal["avb"] = "avb"
    latent_dim: Annotated[int, Field(ge=1)] = 8
    encoder: EncoderConfig = NoiseInputConfig()
    decoder: TrunkConfig = MLPConfig()
    discriminator: AdversaryConfig = InnerProductConfig()
    observation: ObservationConfig = BernoulliConfig()
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    adversary: TurnConfig = TurnConfig(lr=1e-4, betas=(0.5, 0.999))
    model: TurnConfig = TurnConfig(lr=5e-5, betas=(0.5, 0.999))

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)


class AVB(AdversarialModel):
    """A game between an adversary T, which learns log q(z|x) - log r(z|x), and the model, which it serves.

    r is the contrast: the prior here, a Gaussian with q's moments in adaptive contrast.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AVBConfig
    quadratic = True  # log p(z) = -|z|^2 / 2 + const is known, so T need not learn it

    def __init__(self, config: AVBConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = config.encoder.build(spec.shape, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)
        self.adversary = config.discriminator.build(spec.shape, config.latent_dim, self.quadratic)

    def players(self) -> tuple[Player, ...]:
        """The adversary first, so that the model plays against one that has seen the present q."""
        return (
            Player(
                name="adversary", objective=self.adversary_loss, networks=(self.adversary,), turn=self.config.adversary
            ),
            Player(
                name="model", objective=self.model_loss, networks=(self.encoder, self.decoder), turn=self.config.model
            ),
        )

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_q[log sigmoid(T(x,z))] - E_r[log(1 - sigmoid(T(x,z)))] (eq. 3.3)."""
        q = self.posterior(batch.x)
        u = whiten(self.contrast(q, batch.generator), q.rsample())
        t_q, t_r = self.adversary(batch.x)(torch.stack([u, torch.randn_like(u)]))
        value = -(logsigmoid(t_q) + logsigmoid(-t_r)).mean()
        accuracy = ((t_q > 0).float().mean() + (t_r < 0).float().mean()) / 2
        return Loss(value, {"loss": value.detach(), "accuracy": accuracy})

    def model_loss(self, batch: Batch) -> Loss:
        """-E_q[log p(x|z)] + KL(q(z|x) || p(z)), the KL as the adversary sees it (eqs. 3.7 and 3.8)."""
        q = self.posterior(batch.x)
        z = q.rsample()
        reconstruction = self.likelihood(z).log_prob(batch.x).mean()
        kl = self.log_ratio(batch.x, q, z, batch.generator).mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl": kl.detach()})

    def log_ratio(self, x: Tensor, q: ImplicitPosterior, z: Tensor, generator: torch.Generator) -> Tensor:
        """Log q(z|x) - log p(z) = T(x,z) + log r(z|x) - log p(z), [..., B] (eq. 3.10)."""
        r = self.contrast(q, generator)
        return self.adversary(x)(whiten(r, z)) + r.log_prob(z) - self.prior().log_prob(z)

    def contrast(self, q: ImplicitPosterior, generator: torch.Generator) -> Distribution:
        """r(z|x), which the adversary tells q from."""
        return self.prior()

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=next(self.decoder.parameters()))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x), sampled as z = z_phi(x, eps)."""
        return self.encoder(x)
