"""InfoGAN: codes that can be read off the data again (Chen et al. 2016)."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Independent, Uniform
from torch.nn.functional import logsigmoid

from avb_service.algorithm import AlgorithmConfig, Batch, CodedModel, DataSpec, Loss, Player, told_apart, warm_up
from avb_service.algorithms.gan import GameConfig
from avb_service.discrete import OneOfK, ProductDistribution
from avb_service.maths import standard_normal
from avb_service.networks.augmentation import AugmentationConfig
from avb_service.networks.critics import Critic
from avb_service.networks.generator import Generator
from avb_service.networks.recogniser import UNIFORM_SCALE, Recogniser
from avb_service.networks.trunks import Width
from avb_service.optim import TurnConfig


class InfoGANConfig(GameConfig):
    """Settings of InfoGAN.

    Attributes:
        categories: K, values of the categorical code.
        continuous: how many codes there are that are uniform on [-1, 1].
        noise_dim: size of the noise, which nobody reads off.
        recogniser: widths between the discriminator's features and Q(c|x).
        weight: lambda of the categorical code's information.
        warmup: rounds over which both lambdas rise from 0.
        continuous_weight: lambda of the continuous codes', whose differential entropy is on another scale.
        augmentation: of draws before Q reads their category, which has to be a shape that survives it; None for none.
        adversary: the turn of the discriminator and Q.
    """

    name: Literal["infogan"] = "infogan"
    categories: Annotated[Width, Field(ge=2)] = 10
    continuous: Width = 2
    noise_dim: Width = 16
    recogniser: tuple[Width, ...] = (128,)
    weight: Annotated[float, Field(ge=0)] = 1.0
    warmup: Annotated[int, Field(ge=0)] = 0
    continuous_weight: Annotated[float, Field(ge=0)] = 0.1
    augmentation: AugmentationConfig | None = None
    adversary: TurnConfig = TurnConfig(lr=5e-4, betas=(0.5, 0.999))
    model: TurnConfig = TurnConfig(lr=5e-4, betas=(0.5, 0.999))

    @property
    def latent_dim(self) -> int:
        """Size of (c, z) as the generator sees it."""
        return self.categories + self.continuous + self.noise_dim


class InfoGAN(CodedModel):
    """min_{G,Q} max_D V(D, G) - lambda L_I(G, Q) (eq. 6); Q is a head on D's features, and both train in D's turn."""

    Config: ClassVar[type[AlgorithmConfig]] = InfoGANConfig

    def __init__(self, config: InfoGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.augmentation is not None:
            config.augmentation.check(spec.shape)
        self.generator = Generator(config.latent_dim, spec, config.generator)
        self.discriminator = Critic(config.discriminator, spec.shape)
        width = self.discriminator.head.in_features
        self.recogniser = Recogniser(width, config.recogniser, config.categories, config.continuous)
        # torch's own shrinks the difference between codes at every layer. The paper normalises batches instead.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def players(self) -> tuple[Player, ...]:
        """Discriminator and Q, which share features; then the generator."""
        seers, turns = (self.discriminator, self.recogniser), self.config
        adversary = Player(name="adversary", objective=self.adversary_loss, networks=seers, turn=turns.adversary)
        model = Player(name="model", objective=self.model_loss, networks=(self.generator,), turn=turns.model)
        return adversary, model

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_p(x)[log D(x)] - E_p(c,z)[log(1 - D(G(c,z)))] - lambda L_I + R1."""
        z = self.prior().sample((len(batch.x),))
        h_real, *read = self.features(self.decode(z), batch.x)
        t_real, t_fake = self.discriminator.head(torch.stack([h_real, read[0]]))[..., 0]
        game = told_apart(t_real, t_fake)
        weighted, _ = self.information(z, *read)
        penalty = self.discriminator.penalty(batch.x, self.config.penalty)
        return Loss(game.value - warm_up(batch.round, self.config.warmup) * weighted + penalty, game.terms)

    def model_loss(self, batch: Batch) -> Loss:
        """-E_p(c,z)[log D(G(c,z))] - lambda L_I: the form that does not saturate."""
        z = self.prior().sample((len(batch.x),))
        read = self.features(self.decode(z))
        deception = -logsigmoid(self.discriminator.head(read[0])).mean()
        weighted, terms = self.information(z, *read)
        value = deception - warm_up(batch.round, self.config.warmup) * weighted
        return Loss(value, {"loss": deception.detach(), **terms})

    def features(self, drawn: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """D's features, [B, F], of other images [B, C, H, W], of draws, and of draws as Q reads categories off them."""
        augment = self.config.augmentation
        views = [*others, drawn] if augment is None else [*others, drawn, augment(drawn)]
        h = self.discriminator.features(torch.cat(views)).chunk(len(views))
        return (*h, h[-1]) if augment is None else h

    def information(self, z: Tensor, h: Tensor, h_category: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_I = H(c) + E_p(c,z)[log Q(c|G(c,z))] <= I(c; G(c,z)) (eq. 5), in nats.

        It bounds it for augmented draws too, which know no more of c.

        Args:
            z: codes and noise, [B, D].
            h: features of G(c,z), [B, F], that continuous codes are read off.
            h_category: those that categories are read off, [B, F].

        Returns:
            L_I of each kind of code times its lambda, a scalar with gradient; and what to report, not weighted.
        """
        category, continuous, _ = self.prior().split(z)
        q_category, q_continuous = self.recogniser(h_category).parts[0], self.recogniser(h).parts[1]
        categorical = math.log(self.config.categories) + q_category.log_prob(category).mean()
        differential = self.config.continuous * math.log(2) + q_continuous.log_prob(continuous).mean()
        weighted = self.config.weight * categorical + self.config.continuous_weight * differential
        total = (categorical + differential).detach()
        return weighted, {"information": total, "information_categorical": categorical.detach()}

    def prior(self) -> ProductDistribution:
        """p(c) p(z): one of K, uniform on [-1, 1], N(0, I)."""
        one = self.discriminator.head.weight.new_ones(self.config.continuous)
        return ProductDistribution(
            OneOfK(one.new_zeros(self.config.categories)),
            Independent(Uniform(-one, one, validate_args=False), 1, validate_args=False),
            standard_normal(self.config.noise_dim, like=one),
        )

    def decode(self, z: Tensor) -> Tensor:
        """G(c, z) for codes and noise side by side."""
        (category, continuous, noise), k = self.prior().split(z), self.config.categories
        # All get the noise's variance, 1: a category's numbers have (K - 1) / K^2, too little to matter beside it.
        category, continuous = category * (k / math.sqrt(k - 1)), continuous * (1 / UNIFORM_SCALE)
        return self.generator(torch.cat([category, continuous, noise], -1))

    def recognise(self, x: Tensor) -> ProductDistribution:
        """Q(c|x)."""
        return self.recogniser(self.discriminator.features(x))
