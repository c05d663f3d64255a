"""VAE with binary codes, trained by the score function (Mnih & Gregor 2014; REINFORCE of Williams 1992)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player, warm_up
from avb_service.discrete import bits
from avb_service.distributions import BernoulliConfig, ObservationConfig, Values
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import LogitsEncoder
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class BernoulliVAEConfig(AlgorithmConfig):
    """Settings of the VAE with binary codes.

    Attributes:
        latent_dim: bits of a code; log p(x) is exact for up to 16.
        baseline: what is taken off log p(x|z) in the score: its running mean, or nothing.
        baseline_decay: of the running mean; the rest is the weight of the newest batch.
        encoder: the network of q(z|x).
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        kl_warmup: rounds over which the weight of the KL rises from 0 to 1; 0 weighs it fully from the first.
        model: the turn of all networks.
    """

    name: Literal["bernoulli_vae"] = "bernoulli_vae"
    latent_dim: Width = 16
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    observation: ObservationConfig = BernoulliConfig()
    baseline: Literal["running", "none"] = "running"
    baseline_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    kl_warmup: Annotated[int, Field(ge=0)] = 0
    model: TurnConfig = TurnConfig()

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)


class BernoulliVAE(LatentVariableModel):
    """max E_q[log p(x|z)] - KL(q(z|x) || p(z)), q a product of bits, p(z) fair coins.

    A draw of bits has no derivative, so the encoder's gradient of the first term is the score function's (eq. 4),
    E_q[(log p(x|z) - c) d log q(z|x)]. Any c that does not depend on z leaves its mean (eq. 8 and 9); here it is the
    running mean of log p(x|z) over earlier batches. The paper's learning signal (eq. 7) is log p(x,z) - log q(z|x):
    here the KL is summed exactly, and leaves it. Of the paper's ways to less variance this is the first alone (section
    2.3.1): there is neither a baseline that depends on x nor a normalisation.

    Source: Mnih & Gregor 2014, "Neural variational inference and learning in belief networks", numbered as in arXiv
    1402.0030 v2.
    """

    Config: ClassVar[type[AlgorithmConfig]] = BernoulliVAEConfig
    baseline: Tensor

    def __init__(self, config: BernoulliVAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder: nn.Module = LogitsEncoder(config.encoder, spec.shape, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)
        self.register_buffer("baseline", torch.zeros(2))  # the running mean, and the weight of what it has seen

    def players(self) -> tuple[Player, ...]:
        """One, with a baseline that counts."""
        return (
            Player(
                name="model",
                objective=self.loss,
                networks=(self.encoder, self.decoder),
                turn=self.config.model,
                update_statistics=self.update_statistics if self.config.baseline == "running" else None,
            ),
        )

    def loss(self, batch: Batch) -> Loss:
        """-ELBO, with the KL warmed up; and a term that is 0 and has the score function's gradient."""
        q = self.posterior(batch.x)
        z = q.sample()
        reconstruction, log_q = self.likelihood(z).log_prob(batch.x), q.log_prob(z)
        signal = reconstruction.detach() - self.centre()
        score = (signal * (log_q - log_q.detach())).mean()
        kl = kl_divergence(q, self.prior()).mean()
        mean = reconstruction.mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - mean - score
        terms = {
            "reconstruction": mean.detach(),
            "kl": kl.detach(),
            "signal_rms": signal.square().mean().sqrt(),
        }
        return Loss(value, terms, {"reconstruction": mean.detach()})

    def centre(self) -> Tensor:
        """c: the running mean of log p(x|z), in nats, without a bias towards where it began; 0 at first."""
        total, weight = self.baseline
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def update_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Count the batch of all workers: both numbers decay, and gain the mean of log p(x|z) and 1."""
        mean = statistics["reconstruction"].mean()
        self.baseline.lerp_(torch.stack([mean, torch.ones_like(mean)]), 1 - self.config.baseline_decay)

    def prior(self) -> Independent:
        """Fair coins."""
        return bits(next(self.decoder.parameters()).new_zeros(self.config.latent_dim))

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> Independent:
        """The posterior q(z|x) = prod_d Bernoulli(z_d; sigmoid(l_d(x)))."""
        return bits(self.encoder(x))
