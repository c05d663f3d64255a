"""Least-squares GAN (Mao et al. 2017)."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from avb_service.algorithm import AlgorithmConfig, Batch, Loss
from avb_service.algorithms.gan import GAN, NoiseGameConfig


class LSGANConfig(NoiseGameConfig):
    """Settings of the least-squares GAN: what the critic should say.

    Attributes:
        drawn: a, of draws; with real and wanted (-1, 1, 0) the generator minimises
            Pearson's chi^2 between p_data + p_g and 2 p_g (section 3.2).
        real: b, of data.
        wanted: c, what the generator wants it to say of draws.
    """

    name: Literal["lsgan"] = "lsgan"
    drawn: float = 0.0
    real: float = 1.0
    wanted: float = 1.0

    def problems(self) -> Iterator[str]:
        """Critic and generator must want something."""
        yield from super().problems()
        if self.drawn == self.real:
            yield f"drawn: the critic would say {self.drawn} of draws and of data; expected two different numbers"
        if self.wanted == self.drawn:
            yield f"wanted: {self.wanted} is what the critic says of draws already; expected another number"


class LSGAN(GAN):
    """The critic regresses on b for data and a for draws, the generator on c (eq. 2)."""

    Config: ClassVar[type[AlgorithmConfig]] = LSGANConfig
    config: LSGANConfig

    def adversary_loss(self, batch: Batch) -> Loss:
        """E_p(x)[(D(x) - b)^2] / 2 + E_p(z)[(D(G(z)) - a)^2] / 2 + R1."""
        a, b = self.config.drawn, self.config.real
        real, fake = self.discriminator(batch.x), self.discriminator(self.draw(batch))
        value = ((real - b).square() + (fake - a).square()).mean() / 2
        nearer_b = ((real - b).abs() < (real - a).abs(), (fake - b).abs() < (fake - a).abs())
        accuracy = (nearer_b[0].float().mean() + 1 - nearer_b[1].float().mean()) / 2
        return Loss(value + self.penalty(batch), {"loss": value.detach(), "accuracy": accuracy})

    def model_loss(self, batch: Batch) -> Loss:
        """E_p(z)[(D(G(z)) - c)^2] / 2."""
        value = (self.discriminator(self.draw(batch)) - self.config.wanted).square().mean() / 2
        return Loss(value, {"loss": value.detach()})
