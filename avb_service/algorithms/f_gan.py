"""f-GAN: a generator fitted by any f-divergence (Nowozin, Cseke & Tomioka 2016, algorithm 1)."""

from typing import ClassVar, Literal

from pydantic import field_validator

from avb_service.algorithm import AlgorithmConfig, Batch, Loss
from avb_service.algorithms.gan import GAN, GeneratorLoss, NoiseGameConfig
from avb_service.distributions import DataSpec
from avb_service.divergences import DIVERGENCES
from avb_service.faults import one_of


class FGANConfig(NoiseGameConfig):
    """Settings of the f-GAN.

    Attributes:
        divergence: which; see `avb_service.divergences`.
        generator_loss: saturating minimises the bound of the divergence; non_saturating maximises what the critic says
            of draws (section 3.2), which is no divergence but has a gradient where the bound has none.
    """

    name: Literal["f_gan"] = "f_gan"
    divergence: str = "jensen_shannon"
    generator_loss: GeneratorLoss = "saturating"

    @field_validator("divergence")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, DIVERGENCES)


class FGAN(GAN):
    """min_G max_V E_p(x)[g(V(x))] - E_p(z)[f*(g(V(G(z))))] (eq. 7).

    Algorithm 1 steps both at once on one minibatch; here the critic steps first, as in the GAN's own algorithm.
    """

    Config: ClassVar[type[AlgorithmConfig]] = FGANConfig
    config: FGANConfig

    def __init__(self, config: FGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.divergence = DIVERGENCES[config.divergence]

    def adversary_loss(self, batch: Batch) -> Loss:
        """-E_p(x)[g(V(x))] + E_p(z)[f*(g(V(G(z))))]: above -D_f by what V has not learned (eq. 4; and R1)."""
        real, fake = self.discriminator(batch.x), self.discriminator(self.draw(batch))
        value = (self.divergence.composed(fake) - self.divergence.activation(real)).mean()
        says_real = [self.divergence.activation(v) > self.divergence.at_equality for v in (real, fake)]
        accuracy = (says_real[0].float().mean() + 1 - says_real[1].float().mean()) / 2
        return Loss(value + self.penalty(batch), {"divergence": -value.detach(), "accuracy": accuracy})

    def model_loss(self, batch: Batch) -> Loss:
        """-E_p(z)[f*(g(V(G(z))))], or -E_p(z)[g(V(G(z)))] (section 3.2)."""
        fake = self.discriminator(self.draw(batch))
        saturating = self.config.generator_loss == "saturating"
        said = self.divergence.composed if saturating else self.divergence.activation
        value = -said(fake).mean()
        return Loss(value, {"loss": value.detach()})
