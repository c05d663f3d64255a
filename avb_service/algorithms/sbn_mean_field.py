"""Sigmoid belief network (Neal 1992), trained by mean field (Saul, Jaakkola & Jordan 1996)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.distributions import Distribution, Independent

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, LatentVariableModel, Loss, Player
from avb_service.discrete import LayeredBits, bits
from avb_service.distributions import Values
from avb_service.networks.belief import BeliefNetwork
from avb_service.networks.encoders import LogitsEncoder
from avb_service.networks.trunks import MLPConfig, TrunkConfig, Width
from avb_service.optim import TurnConfig


class SBNConfig(AlgorithmConfig):
    """Settings of a belief network, however it is trained.

    Attributes:
        layers: sizes of the hidden layers, the one next to the data first; log p(x) is exact for up to 16 units.
        encoder: the network of q(z|x).
    """

    layers: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 32)
    encoder: TrunkConfig = MLPConfig()

    @property
    def latent_dim(self) -> int:
        """D, hidden units of all layers."""
        return sum(self.layers)

    def objection(self, values: Values) -> str | None:
        """All units are binary, the visible ones too."""
        if values != "binary":
            return f"layers: a sigmoid belief network needs binary data, given {values}; set data.binarisation"
        return None


class SigmoidBeliefNetwork(LatentVariableModel):
    """p(x|z_1) p(z_1|z_2) ... p(z_L), all units bits; the code is [z_1, ..., z_L]."""

    def __init__(self, config: SBNConfig, spec: DataSpec, outputs: int) -> None:
        super().__init__(config, spec)
        self.encoder = LogitsEncoder(config.encoder, spec.shape, outputs)
        self.network = BeliefNetwork(config.layers, spec)

    def prior(self) -> LayeredBits:
        """p(z_1, ..., z_L)."""
        return self.network.prior()

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z_1)."""
        return self.network.likelihood(z)


class MeanFieldConfig(SBNConfig):
    """Settings of the network that is trained by mean field.

    Attributes:
        model: the turn of all networks.
    """

    name: Literal["sbn_mean_field"] = "sbn_mean_field"
    model: TurnConfig = TurnConfig()


class MeanFieldSBN(SigmoidBeliefNetwork):
    """max of a bound (eq. 66) on E_q[log p(x,z)] + H(q) (eq. 65), q a product of bits with means mu(x) (eq. 64).

    There the means of each datum iterate eq. 67; here they come from an encoder that climbs the same bound.

    Source: Saul, Jaakkola & Jordan 1996, "Mean field theory for sigmoid belief networks", section 3. The numbers are
    those of Jordan, Ghahramani, Jaakkola & Saul 1999, "An introduction to variational methods for graphical models".
    """

    Config: ClassVar[type[AlgorithmConfig]] = MeanFieldConfig

    def __init__(self, config: MeanFieldConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, config.latent_dim)

    def players(self) -> tuple[Player, ...]:
        """One."""
        return (
            Player(name="model", objective=self.loss, networks=(self.encoder, self.network), turn=self.config.model),
        )

    def loss(self, batch: Batch) -> Loss:
        """The bound with its sign turned; it has no noise."""
        q = self.posterior(batch.x)
        log_joint, entropy = self.network.expected_log_joint(batch.x, q.base_dist.logits).mean(), q.entropy().mean()
        terms = {"bound": (log_joint + entropy).detach(), "entropy": entropy.detach()}
        return Loss(-log_joint - entropy, terms)

    def posterior(self, x: Tensor) -> Independent:
        """The posterior q(z|x) = prod_i Bernoulli(z_i; mu_i(x)), over the units of all layers."""
        return bits(self.encoder(x))
