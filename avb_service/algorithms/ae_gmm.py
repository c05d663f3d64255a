"""A deterministic autoencoder, and a mixture of Gaussians fitted to its codes (Ghosh et al. 2020)."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player
from avb_service.distributions import BernoulliConfig, ImplicitPosterior, ObservationConfig, Values
from avb_service.networks.decoder import Decoder
from avb_service.networks.mixture import Mixture, MixtureConfig
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class AutoencoderMixtureConfig(AlgorithmConfig):
    """Settings of the autoencoder with a mixture on its codes.

    Attributes:
        latent_dim: D, numbers in a code.
        encoder: the network of f(x).
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        mixture: what is fitted to the codes.
        code_penalty: weight of |z|^2 / 2, without which codes drift apart and the decoder is made for nothing between.
        code_noise: standard deviation of noise on the codes in training, so that the decoder knows their surroundings.
        model: the turn of encoder and decoder.
    """

    name: Literal["ae_gmm"] = "ae_gmm"
    latent_dim: Width = 8
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    mixture: MixtureConfig = MixtureConfig()
    observation: ObservationConfig = BernoulliConfig()
    code_penalty: Annotated[float, Field(ge=0)] = 0.1
    code_noise: Annotated[float, Field(ge=0)] = 0.5
    model: TurnConfig = TurnConfig()

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)

    def shortage(self, data: int) -> str | None:
        """Every component begins with a code of its own."""
        if (k := self.mixture.components) > data:
            return f"mixture.components: {k} components for {data} training data; give at most {data}"
        return None


class AutoencoderMixture(LatentVariableModel):
    """max log p(x|f(x)) - c |f(x)|^2 / 2, and afterwards p(z) = argmax over mixtures of sum_n log p(f(x_n)).

    The two together are a model p(z) p(x|z), with the likelihood that goes with it; f(x) is all that is known of the
    posterior, so the code is given as a point mass.

    The paper puts a regulariser of the decoder (section 3.1) in the place of a VAE's noise on codes; here the noise
    stays, of one scale for all data (eq. 10), and the decoder has no other.

    Source: Ghosh et al. 2020, "From variational to deterministic autoencoders" (as published at ICLR), eq. 11, whose
    beta is c, and section 4 (ex-post density estimation).
    """

    Config: ClassVar[type[AlgorithmConfig]] = AutoencoderMixtureConfig

    def __init__(self, config: AutoencoderMixtureConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        features, width = config.encoder.features(spec.shape)
        self.encoder = nn.Sequential(features, nn.Linear(width, config.latent_dim))
        self.decoder = Decoder(config.latent_dim, spec, config.decoder, config.observation)
        self.mixture = Mixture(config.mixture, config.latent_dim)

    def players(self) -> tuple[Player, ...]:
        """One; the mixture is fitted by `fit_after_training`, and has no part in training."""
        return (
            Player(name="model", objective=self.loss, networks=(self.encoder, self.decoder), turn=self.config.model),
        )

    def loss(self, batch: Batch) -> Loss:
        """-log p(x|f(x) + noise) + c |f(x)|^2 / 2."""
        z = self.encoder(batch.x)
        noisy = z + self.config.code_noise * torch.randn_like(z)
        reconstruction = self.likelihood(noisy).log_prob(batch.x).mean()
        size = z.square().sum(-1).mean() / 2
        value = self.config.code_penalty * size - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "code_size": size.detach()})

    def fit_after_training(self, batches: Iterable[Tensor]) -> None:
        """Fit the mixture to the codes of the training data, and to the noise that the decoder has seen them with."""
        with torch.no_grad():
            self.mixture.fit(torch.cat([self.encoder(x) for x in batches]), self.config.code_noise)

    def prior(self) -> Distribution:
        """The mixture."""
        return self.mixture()

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z)."""
        return self.decoder(z)

    def posterior(self, x: Tensor) -> ImplicitPosterior:
        """All mass on f(x)."""
        z = self.encoder(x)
        return ImplicitPosterior(lambda shape: z.expand(*shape, *z.shape))
