"""VAE whose prior is a normalising flow (Chen et al. 2017; Rezende & Mohamed 2015)."""

from typing import ClassVar, Literal

from torch.distributions import Distribution

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, Loss, Player, warm_up
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.networks.flow import FlowConfig, FlowPrior, SplineFlowConfig


class FlowVAEConfig(VAEConfig):
    """Settings of the VAE with a flow as its prior.

    Attributes:
        flow: the prior, a map of codes to N(0, I).
    """

    name: Literal["flow_vae"] = "flow_vae"  # type: ignore[assignment]
    flow: FlowConfig = SplineFlowConfig()


class FlowVAE(VAE):
    """max E_q[log p(x|z) + log p(z) - log q(z|x)], log p(z) = log N(f(z); 0, I) + log|det df/dz|.

    The flow is the *prior*, and the posterior stays Gaussian; in `iaf_vae` it is the other way round.
    With a Gaussian prior the bound loses KL(q(z) || p(z)), q(z) = mean_n q(z|x_n); this prior goes where q(z) is.
    The KL has no closed form, and is taken at the code that the reconstruction is made of.

    Source: Chen et al. 2017, "Variational lossy autoencoder", section 3.2, eq. 12 and 13, where f is the way from noise
    to codes, the inverse of this one; Rezende & Mohamed 2015, section 3.
    """

    Config: ClassVar[type[AlgorithmConfig]] = FlowVAEConfig
    config: FlowVAEConfig

    def __init__(self, config: FlowVAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.flow = FlowPrior(config.flow, config.latent_dim)

    def players(self) -> tuple[Player, ...]:
        """One: the prior is learned with the rest, by the same bound."""
        networks = (self.encoder, self.decoder, self.flow)
        return (Player(name="model", objective=self.loss, networks=networks, turn=self.config.model),)

    def loss(self, batch: Batch) -> Loss:
        """-ELBO at one code of each datum, with the KL warmed up."""
        q = self.posterior(batch.x)
        z = q.rsample()
        reconstruction = self.likelihood(z).log_prob(batch.x).mean()
        kl = (q.log_prob(z) - self.prior().log_prob(z)).mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl": kl.detach()})

    def prior(self) -> Distribution:
        """The flow."""
        return self.flow()
