"""Semi-implicit variational inference (Yin & Zhou 2018): an implicit posterior that needs no adversary."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player, warm_up
from avb_service.distributions import BernoulliConfig, ImplicitPosterior, ObservationConfig, Values
from avb_service.maths import Shape, log_mean_exp, standard_normal
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import EncoderConfig, NoiseInputConfig
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class SIVIConfig(AlgorithmConfig):
    """Settings of SIVI.

    Attributes:
        latent_dim: D, numbers in a code.
        encoder: the network of q(psi|x), which takes noise as well.
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        mixing_draws: K, further draws of psi that q(z|x) is estimated from; the bound tightens as K grows.
        kl_warmup: rounds over which the weight of the KL rises from 0 to 1; 0 weighs it fully from the first.
        model: the turn of all networks.
    """

    name: Literal["sivi"] = "sivi"
    latent_dim: Width = 8
    encoder: EncoderConfig = NoiseInputConfig()
    decoder: TrunkConfig = MLPConfig()
    observation: ObservationConfig = BernoulliConfig()
    mixing_draws: Annotated[int, Field(ge=0)] = 32
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    model: TurnConfig = TurnConfig()

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)


class SIVI(LatentVariableModel):
    """q(z|x) = E_q(psi|x)[q(z|psi)]: psi = (m, log s) is what a network makes of x and noise, q(z|psi) = N(m, s^2).

    L_K = E[log p(x|z) + log p(z) - log 1/(K+1) sum_k q(z|psi_k)], psi_0, ..., psi_K ~ q(psi|x), z ~ q(z|psi_0),
    is a lower bound of log p(x). It rises with K, to the ELBO of q(z|x).

    Source: Yin & Zhou 2018, "Semi-Implicit Variational Inference", section 3 (the surrogate ELBO).
    """

    Config: ClassVar[type[AlgorithmConfig]] = SIVIConfig

    def __init__(self, config: SIVIConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = config.encoder.build(spec.shape, 2 * config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)

    def players(self) -> tuple[Player, ...]:
        """One."""
        return (
            Player(name="model", objective=self.loss, networks=(self.encoder, self.decoder), turn=self.config.model),
        )

    def loss(self, batch: Batch) -> Loss:
        """-L_K, with the KL warmed up."""
        reconstruction, kl = (term.mean() for term in self.terms(batch.x, self.config.mixing_draws))
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl_semi_implicit": kl.detach()})

    def terms(self, x: Tensor, mixing_draws: int) -> tuple[Tensor, Tensor]:
        """The parts of L_K: log p(x|z), and what stands for log q(z|x) - log p(z), [B] each.

        Their difference is, on average, a lower bound of log p(x), in nats per datum.

        Args:
            x: data, [B, C, H, W].
            mixing_draws: K.
        """
        psi = self.encoder(x).rsample((mixing_draws + 1,))
        z = gaussian(psi[0]).rsample()
        log_q = log_mean_exp(gaussian(psi).log_prob(z))
        return self.likelihood(z).log_prob(x), log_q - self.prior().log_prob(z)

    def prior(self) -> Distribution:
        """N(0, I)."""
        return standard_normal(self.config.latent_dim, like=next(self.parameters()))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """q(z|x), sampled as psi ~ q(psi|x), z ~ q(z|psi)."""
        mixing = self.encoder(x)

        def draw(sample_shape: Shape) -> Tensor:
            return gaussian(mixing.rsample(sample_shape)).rsample()

        return ImplicitPosterior(draw)


def gaussian(psi: Tensor) -> Independent:
    """q(z|psi) = N(m, diag s^2) for psi = (m, log s), [..., 2 D]; event shape [D]."""
    mean, log_scale = psi.chunk(2, -1)
    return Independent(Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)
