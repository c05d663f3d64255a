"""AVB for any log joint: Bayesian inference with an implicit posterior (Mescheder et al. 2017, sections 3 and 4)."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, Loss, Shared, warm_up
from avb_service.algorithms.avb_ac import AVBAC, ContrastConfig
from avb_service.bayes import BAYESIAN_MODELS, BayesianModel
from avb_service.distributions import ImplicitPosterior, Values
from avb_service.errors import DataError
from avb_service.kinds import OneOf
from avb_service.maths import whiten


class AVBJointConfig(ContrastConfig):
    """Settings of inference in a Bayesian model.

    Attributes:
        joint: the model, ours (`avb_service/bayes.py`) or of an installed package.
        kl_warmup: rounds over which the weight of its log joint rises from 0 to 1, which begins with a q that is wide.
        model: the turn of the encoder.
    """

    name: Literal["avb_joint"] = "avb_joint"
    joint: Annotated[str, OneOf(BAYESIAN_MODELS)] = "eight_schools"

    @property
    def latent_dim(self) -> int:
        """As many as the model has unknowns."""
        return BAYESIAN_MODELS[self.joint].dim

    def objection(self, values: Values) -> str | None:
        """Observations are real-valued."""
        return None if values == "real" else f"joint: {self.joint} models real-valued observations, given {values} data"

    def generative(self, spec: DataSpec) -> BayesianModel:
        """The Bayesian model; nothing in it is learned."""
        joint = BAYESIAN_MODELS[self.joint]
        if tuple(spec.shape) != joint.shape:
            raise DataError(
                f"algorithm.joint: {self.joint} models observations of shape {list(joint.shape)}, given "
                f"{list(spec.shape)}; set data.name"
            )
        return joint()


class AVBJoint(AVBAC):
    """min E_q[log q(z|x) - log p(x,z)], where log q(z|x) = T(x,u) + log r(z|x) is what the adversary learns (eq. 4.2).

    The encoder alone is trained; the model is given, and only its log joint is asked for. At the optimum q(z|x) is the
    posterior, and what is minimised is -log p(x), the evidence.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AVBJointConfig
    decoder: BayesianModel

    def bound(self, batch: Batch, z: Tensor, log_q: Tensor) -> Loss:
        """E_q[log q(z|x) - beta log p(x,z)], z = z_phi(x, eps); beta warms up (Rezende & Mohamed 2015, section 6)."""
        entropy, log_joint = -log_q.mean(), self.log_joint(batch.x, z).mean()
        value = -entropy - warm_up(batch.round, self.config.kl_warmup) * log_joint
        return Loss(value, {"log_joint": log_joint.detach(), "entropy_adversarial": entropy.detach()})

    def log_ratio(self, x: Tensor, q: ImplicitPosterior, z: Tensor, shared: Shared) -> Tensor:
        """Log q(z|x) - log p(z), as the adversary sees it, [..., B] for codes [..., B, D]."""
        return super().log_ratio(x, q, z, shared) - self.prior().log_prob(z)

    def standardise(self, q: ImplicitPosterior, z: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """The whitened code u = L^-1 (z - m), and log r(z|x): no prior is asked for."""
        return whiten(self.contrast(q, shared), z)

    def fit_before_training(self, batches: Iterable[Tensor]) -> None:
        """Let the Bayesian model prepare itself for the first observation: whiten its unknowns, say."""
        self.decoder.prepare(next(iter(batches))[:1])

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x,z), the Bayesian model's own."""
        return self.decoder.log_joint(x, z)

    def prior(self) -> Distribution:
        """The Bayesian model's."""
        return self.decoder.prior()
