"""Sigmoid belief network (Neal 1992), trained by wake and sleep (Hinton, Dayan, Frey & Neal 1995)."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, Loss, Player
from avb_service.algorithms.sbn_mean_field import SBNConfig, SigmoidBeliefNetwork
from avb_service.discrete import LayeredBits
from avb_service.optim import TurnConfig


class WakeSleepConfig(SBNConfig):
    """Settings of the network that is trained by wake and sleep.

    Attributes:
        wake: the turn of the network, which learns from codes of data.
        sleep: the turn of the encoder, which learns from the network's dreams.
    """

    name: Literal["sbn_wake_sleep"] = "sbn_wake_sleep"
    wake: TurnConfig = TurnConfig()
    sleep: TurnConfig = TurnConfig()


class WakeSleepSBN(SigmoidBeliefNetwork):
    """A game of two: the network learns from codes of data, its encoder from the network's dreams.

    The delta rules (eq. 4 and 7) are the gradients of these two losses; here any optimizer follows them.

    Source: Hinton, Dayan, Frey & Neal 1995, "The wake-sleep algorithm for unsupervised neural networks"; the numbers
    are those of the preprint of April 1995 (Toronto), which may not be those of Science.
    """

    Config: ClassVar[type[AlgorithmConfig]] = WakeSleepConfig

    def __init__(self, config: WakeSleepConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, config.layers[0])
        pairs = zip(config.layers, config.layers[1:], strict=False)
        self.upward = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)

    def players(self) -> tuple[Player, ...]:
        """Wake, then sleep."""
        asleep = (self.encoder, self.upward)
        wake = Player(name="wake", objective=self.wake_loss, networks=(self.network,), turn=self.config.wake)
        return wake, Player(name="sleep", objective=self.sleep_loss, networks=asleep, turn=self.config.sleep)

    def wake_loss(self, batch: Batch) -> Loss:
        """The wake phase (eq. 4): -E_q[log p(x,z)], z ~ q(z|x), ascent of the ELBO in p alone."""
        q = self.posterior(batch.x)
        z = q.sample()
        log_joint = self.log_joint(batch.x, z).mean()
        elbo = (log_joint - q.log_prob(z).mean()).detach()
        return Loss(-log_joint, {"elbo": elbo})

    def sleep_loss(self, batch: Batch) -> Loss:
        """The sleep phase (eq. 7): -E_p[log q(z|x)], (x, z) ~ p; lowers KL(p(z|x) || q(z|x)), not KL(q || p(z|x))."""
        x, z = self.network.dream(len(batch.x))
        log_q = self.posterior(x).log_prob(z).mean()
        return Loss(-log_q, {"log_q": log_q.detach()})

    def posterior(self, x: Tensor) -> LayeredBits:
        """The posterior q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1})."""
        return LayeredBits(self.encoder(x), tuple(self.upward), self.config.layers)
