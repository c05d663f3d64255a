"""Adversarial Variational Bayes (Mescheder, Nowozin & Geiger 2017, algorithm 1)."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from avb_service.algorithm import (
    AdversarialModel,
    AlgorithmConfig,
    Batch,
    DataSpec,
    Loss,
    Player,
    Shared,
    told_apart,
    warm_up,
)
from avb_service.algorithms.inference import InferenceConfig
from avb_service.distributions import BernoulliConfig, ImplicitPosterior, ObservationConfig, Values
from avb_service.maths import standard_normal
from avb_service.networks.decoder import Decoder
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width


class AVBConfig(InferenceConfig):
    """Settings of AVB as an autoencoder.

    Attributes:
        latent_dim: D, numbers in a code.
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
    """

    name: Literal["avb"] = "avb"
    latent_dim: Width = 8
    decoder: TrunkConfig = MLPConfig()
    observation: ObservationConfig = BernoulliConfig()

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)

    def generative(self, spec: DataSpec) -> nn.Module:
        """The module of p(x|z)."""
        return Decoder(self.latent_dim, spec, self.decoder, self.observation)


class AVB(AdversarialModel):
    """A game of an adversary T(x,z), which learns log q(z|x) - log p(z), and the model, which needs it for its KL.

    Algorithm 1 takes the gradients of both from one minibatch, and steps at once: `simultaneous`. Else the adversary
    steps first, as often as its turn says, and every step has a batch of its own.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AVBConfig
    quadratic = True  # -log p(z) = |z|^2 / 2 + const is known, so T need not learn it

    def __init__(self, config: AVBConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = config.encoder.build(spec.shape, config.latent_dim)
        self.decoder = config.generative(spec)
        self.discriminator = config.discriminator.build(spec.shape, config.latent_dim, self.quadratic)

    def players(self) -> tuple[Player, ...]:
        """The adversary first, so that the model plays against one that has seen the present q."""
        adversary = Player(
            name="adversary", objective=self.adversary_loss, networks=(self.discriminator,), turn=self.config.adversary
        )
        model = Player(
            name="model", objective=self.model_loss, networks=(self.encoder, self.decoder), turn=self.config.model
        )
        return adversary, model

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_q[log sigmoid(T(x,z))] - E_p(z)[log(1 - sigmoid(T(x,z)))] (eq. 3.3)."""
        q = self.posterior(batch.x)
        u, _ = self.standardise(q, q.rsample(), batch.shared)
        return told_apart(*self.logits(batch.x, u))

    def model_loss(self, batch: Batch) -> Loss:
        """-E_q[log p(x|z) - T(x,z)], z = z_phi(x, eps) (eq. 3.7)."""
        q = self.posterior(batch.x)
        z = q.rsample()
        u, correction = self.standardise(q, z, batch.shared)
        return self.bound(batch, z, self.discriminator(batch.x)(u) + correction)

    def simultaneous(self) -> Callable[[Batch], tuple[Loss, Loss]] | None:
        """Both losses from the same codes and one pass of every network (algorithm 1), where that is asked for."""

        def losses(batch: Batch) -> tuple[Loss, Loss]:
            q = self.posterior(batch.x)
            z = q.rsample()
            u, correction = self.standardise(q, z, batch.shared)
            t_q, t_p = self.logits(batch.x, u)
            return told_apart(t_q, t_p), self.bound(batch, z, t_q + correction)

        return losses if self.config.simultaneous else None

    def logits(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """T(x,u) of standardised codes, and of as many draws of N(0, I), [B] each."""
        t_q, t_p = self.discriminator(x)(torch.stack([u, self.base().sample((len(u),))]))
        return t_q, t_p

    def bound(self, batch: Batch, z: Tensor, log_ratio: Tensor) -> Loss:
        """The negative ELBO, given log q(z|x) - log p(z)."""
        reconstruction, kl = self.likelihood(z).log_prob(batch.x).mean(), log_ratio.mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl_adversarial": kl.detach()})

    def log_ratio(self, x: Tensor, q: ImplicitPosterior, z: Tensor, shared: Shared) -> Tensor:
        """Log q(z|x) - log p(z), as the adversary sees it, [..., B] (eq. 3.4)."""
        u, correction = self.standardise(q, z, shared)
        return self.discriminator(x)(u) + correction

    def standardise(self, q: ImplicitPosterior, z: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """What the adversary sees of a code, and what that leaves out of the log-ratio: here the code, and nothing."""
        return z, z.new_zeros(())

    def base(self) -> Distribution:
        """N(0, I), which the adversary tells standardised codes from."""
        return standard_normal(self.config.latent_dim, like=next(self.parameters()))

    def prior(self) -> Distribution:
        """N(0, I)."""
        return self.base()

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x), sampled as z = z_phi(x, eps)."""
        return self.encoder(x)
