"""Vector-quantised autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017), and a prior learned on its codes."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player
from avb_service.distributions import BernoulliConfig, ObservationConfig, Values
from avb_service.networks.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveOneHots, Delta
from avb_service.networks.decoder import Decoder
from avb_service.networks.quantizer import AnyCodebookConfig, AveragedCodebookConfig, perplexity
from avb_service.networks.trunks import MLPConfig, TrunkConfig
from avb_service.optim import TurnConfig


class VQVAEConfig(AlgorithmConfig):
    """Settings of the VQ-VAE.

    Attributes:
        positions: choices that make up a code; log p(x) is exact where K^positions is at most 2^16.
        codebook: the vectors, K of dimension d, and how they are learned.
        beta: weight of the commitment loss.
        autoregressive: the network of the prior.
        encoder: the network of z_e(x).
        decoder: the network of p(x|z).
        observation: the distribution of x around what the decoder says.
        model: the turn of encoder, codebook and decoder.
        prior: the turn of the prior.
    """

    name: Literal["vq_vae"] = "vq_vae"
    positions: Annotated[int, Field(ge=2)] = 4
    codebook: AnyCodebookConfig = AveragedCodebookConfig()
    beta: Annotated[float, Field(ge=0)] = 0.25
    encoder: TrunkConfig = MLPConfig()
    decoder: TrunkConfig = MLPConfig()
    autoregressive: AutoregressiveConfig = AutoregressiveConfig()
    observation: ObservationConfig = BernoulliConfig()
    model: TurnConfig = TurnConfig()
    prior: TurnConfig = TurnConfig()

    @property
    def latent_dim(self) -> int:
        """D = positions * K."""
        return self.positions * self.codebook.size

    def objection(self, values: Values) -> str | None:
        """The observation model's."""
        return self.observation.objection(values)

    def shortage(self, data: int) -> str | None:
        """A vector for every datum quantises nothing."""
        if (k := self.codebook.size) > data:
            return f"codebook.size: {k} vectors for {data} training data, of which most would never be chosen; lower it"
        return None


class VQVAE(LatentVariableModel):
    """max log p(x|z_q(x)) - |sg[z_e(x)] - e|^2 - beta |z_e(x) - sg[e]|^2 (eq. 3), and max log p(z), z the code of x.

    The encoder's outputs are z_e(x), [positions, d]; of each, the code z holds k = argmin_j |z_e(x) - e_j| (eq. 1), and
    the decoder sees z_q(x) = e_k (eq. 2). The prior is learned beside the autoencoder, on detached codes. Together they
    are a model p(z) p(x|z) of discrete codes, each as `positions` one-hot vectors one after the other.
    """

    Config: ClassVar[type[AlgorithmConfig]] = VQVAEConfig

    def __init__(self, config: VQVAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        width = config.positions * config.codebook.dim
        features, last = config.encoder.features(spec.shape)
        shape = (config.positions, config.codebook.dim)
        self.encoder = nn.Sequential(features, nn.Linear(last, width), nn.Unflatten(-1, shape))
        self.quantizer = config.codebook.build()
        self.decoder = Decoder(width, spec, config.decoder, config.observation)
        self.autoregressive = Autoregressive(config.autoregressive, config.positions, config.codebook.size)

    def players(self) -> tuple[Player, ...]:
        """The autoencoder, whose codebook counts the codes of all workers; and the prior of those codes."""
        networks = (self.encoder, self.quantizer, self.decoder)
        model = Player(
            name="model",
            objective=self.loss,
            networks=networks,
            turn=self.config.model,
            update_statistics=self.quantizer.update_statistics,
        )
        prior = Player(name="prior", objective=self.prior_loss, networks=(self.autoregressive,), turn=self.config.prior)
        return model, prior

    def loss(self, batch: Batch) -> Loss:
        """Eq. 3 with its sign turned; the decoder's gradient goes straight through from z_q to z_e (section 3.2)."""
        z_e = self.encoder(batch.x)
        chosen = self.quantizer(z_e)
        z_q = self.quantizer.lookup(chosen)
        straight = z_e + (z_q - z_e).detach()
        reconstruction = self.decoder(straight.flatten(-2)).log_prob(batch.x).mean()
        commitment = (z_e - z_q.detach()).square().sum((-2, -1)).mean()
        value = self.quantizer.distance(z_e, z_q).sum(-1).mean() + self.config.beta * commitment - reconstruction
        terms = {"reconstruction": reconstruction.detach(), "commitment": commitment.detach()}
        terms["perplexity"] = perplexity(chosen)
        return Loss(value, terms, self.quantizer.statistics(z_e, chosen))

    def prior_loss(self, batch: Batch) -> Loss:
        """-log p(z), z the code of x."""
        with torch.no_grad():
            code = self.posterior(batch.x).code
        value = -self.prior().log_prob(code).mean()
        return Loss(value, {"cross_entropy": value.detach()})

    def prior(self) -> AutoregressiveOneHots:
        """p(z) = prod_i p(z_i | z_1 .. z_{i-1})."""
        return self.autoregressive()

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z) = p(x|z_q), z_q the vectors (eq. 2) of one-hot codes z [..., positions K]."""
        chosen = z.unflatten(-1, (self.config.positions, -1))
        return self.decoder(self.quantizer.lookup(chosen).flatten(-2))

    def posterior(self, x: Tensor) -> Delta:
        """q(z=k|x) = 1 for the vector e_k that is nearest to z_e(x), 0 for the others (eq. 1)."""
        code = self.quantizer(self.encoder(x)).flatten(-2)
        return Delta(code, self.config.positions)
