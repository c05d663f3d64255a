"""CycleGAN: translation between two sets of images that are not paired (Zhu et al. 2017)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import l1_loss

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, Loss, Player, TranslatingModel
from avb_service.distributions import Values
from avb_service.networks.critics import Critic
from avb_service.networks.history import History
from avb_service.networks.translator import TranslatorConfig
from avb_service.networks.trunks import ConvConfig, TrunkConfig
from avb_service.optim import ScheduleConfig, TurnConfig

DECAYING = TurnConfig(lr=2e-4, betas=(0.5, 0.999), schedule=ScheduleConfig(decay="linear", decay_from=0.5))


class CycleGANConfig(AlgorithmConfig):
    """Settings of CycleGAN.

    Attributes:
        translator: of both directions.
        discriminator: of both domains.
        cycle: lambda, the weight of what is lost on the way there and back.
        cycle_noise: standard deviation of noise on a translation before the way back, so that nothing can be hidden in
            it that cannot be seen; pixels lie between 0 and 1.
        penalty: gamma, of the discriminators' squared slope on data (R1, Mescheder, Geiger & Nowozin 2018).
        history: how many generated images the discriminators are shown besides the present ones.
        sources: how many images of the source are kept, for `sample` to translate.
        adversary: the turn of the discriminators.
        model: the turn of the translators.
    """

    two_sources: ClassVar[bool] = True
    name: Literal["cyclegan"] = "cyclegan"
    translator: TranslatorConfig = TranslatorConfig()
    discriminator: TrunkConfig = ConvConfig(activation="leaky_relu")
    cycle: Annotated[float, Field(ge=0)] = 10.0
    cycle_noise: Annotated[float, Field(ge=0)] = 0.0
    penalty: Annotated[float, Field(ge=0)] = 0.0
    history: Annotated[int, Field(ge=1)] = 50
    sources: Annotated[int, Field(ge=1)] = 512
    adversary: TurnConfig = DECAYING
    model: TurnConfig = DECAYING

    def objection(self, values: Values) -> str | None:
        """Binary data: what is drawn 0 or 1 has no gradient, and what is not is told from the data at a glance."""
        if values == "binary":
            return (
                "translator: cyclegan makes data by gradient, and binary data let none through; set "
                "data.binarisation: none"
            )
        return None


class CycleGAN(TranslatingModel):
    """Two least-squares GANs, G: X -> Y and F: Y -> X, that undo one another (eq. 3, with the squares of section 4).

    X is the data that are modelled and Y the second source, so the model's draws are F(y), and G is the way back.
    """

    Config: ClassVar[type[AlgorithmConfig]] = CycleGANConfig

    def __init__(self, config: CycleGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.forth, self.back = config.translator.build(spec), config.translator.build(spec)
        self.critic = Critic(config.discriminator, spec.shape)
        self.critic_other = Critic(config.discriminator, spec.shape)
        self.made, self.made_other = History(config.history, spec.shape), History(config.history, spec.shape)
        self.sources = History(config.sources, spec.shape)

    def players(self) -> tuple[Player, ...]:
        """Both discriminators, then both translators."""
        adversary = Player(
            name="adversary",
            objective=self.adversary_loss,
            networks=(self.critic, self.critic_other),
            turn=self.config.adversary,
            update_statistics=self.remember,
        )
        model = Player(
            name="model", objective=self.model_loss, networks=(self.forth, self.back), turn=self.config.model
        )
        return adversary, model

    def adversary_loss(self, batch: Batch) -> Loss:
        """Half of E[(D(x) - 1)^2] + E[D(F(y))^2] (section 4), and R1, twice; F(y) is an old image at even odds."""
        x, y = batch.x, self.source(batch)
        made, made_other = self.translate(y), self.translate_back(x)
        value = self._least_squares(self.critic, x, self._mixed(made, self.made))
        value = value + self._least_squares(self.critic_other, y, self._mixed(made_other, self.made_other))
        statistics = {"made": made[:1].detach(), "made_other": made_other[:1].detach(), "sources": y}
        return Loss(value, {"loss": value.detach()}, statistics)

    def model_loss(self, batch: Batch) -> Loss:
        """E[(D(F(y)) - 1)^2] (section 4), twice, + lambda (E|F(G(x)) - x| + E|G(F(y)) - y|) (eq. 2), per pixel."""
        x, y = batch.x, self.source(batch)
        made, made_other = self.translate(y), self.translate_back(x)
        deception = (self.critic(made) - 1).square().mean() + (self.critic_other(made_other) - 1).square().mean()
        cycle = l1_loss(self.translate_back(self._noisy(made)), y) + l1_loss(self.translate(self._noisy(made_other)), x)
        value = deception + self.config.cycle * cycle
        return Loss(value, {"loss": deception.detach(), "cycle": cycle.detach()})

    def remember(self, statistics: Mapping[str, Tensor]) -> None:
        """One image made of each slice of all workers, so that the history reaches far back; all data seen of Y."""
        self.made.push(statistics["made"].flatten(0, 1))
        self.made_other.push(statistics["made_other"].flatten(0, 1))
        self.sources.push(statistics["sources"].flatten(0, 1))

    def _least_squares(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """Mao et al. 2017, as Zhu et al. halve it for the discriminators, and R1."""
        value = ((critic(real) - 1).square().mean() + critic(fake).square().mean()) / 2
        return value + critic.penalty(real, self.config.penalty)

    def _noisy(self, made: Tensor) -> Tensor:
        return made + self.config.cycle_noise * torch.randn_like(made)

    def _mixed(self, made: Tensor, history: History) -> Tensor:
        """Each image, or one of the history in its place, at even odds."""
        old = torch.rand(len(made), 1, 1, 1, device=made.device) < 0.5 * (history.pushed > 0)
        return torch.where(old, history.draw(len(made)), made.detach())

    def source(self, batch: Batch) -> Tensor:
        """The batch's data of Y, [B, C, H, W].

        Raises:
            TypeError: it has none.
        """
        if batch.other is None:
            raise TypeError("CycleGAN translates between two sources, and the batch has one")
        return batch.other

    def translate(self, other: Tensor) -> Tensor:
        """F(y)."""
        return self.forth(other)

    def translate_back(self, x: Tensor) -> Tensor:
        """G(x)."""
        return self.back(x)

    def sample(self, n: int) -> Tensor:
        """F(y) for data y of the source that training saw last, [n, C, H, W]."""
        return self.translate(self.sources.draw(n)).detach()
