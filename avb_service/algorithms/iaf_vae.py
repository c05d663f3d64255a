"""VAE whose posterior is an inverse autoregressive flow (Kingma et al. 2016)."""

from typing import ClassVar, Literal

from torch import Tensor

from avb_service.algorithm import AlgorithmConfig, Batch, DataSpec, Loss, warm_up
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.networks.flow import AffineFlowConfig, Flow, FlowConfig, FlowPosterior


class IAFVAEConfig(VAEConfig):
    """Settings of the VAE with a flow as its posterior.

    Attributes:
        flow: the map of a Gaussian draw to a code, given the encoder's features.
    """

    name: Literal["iaf_vae"] = "iaf_vae"  # type: ignore[assignment]
    flow: FlowConfig = AffineFlowConfig()


class IAFVAE(VAE):
    """max E_q[log p(x|z) + log p(z) - log q(z|x)], log q(z|x) = log N(z_0; m(x), s(x)^2) - log|det df/dz_0|.

    z = f(z_0; h(x)), z_0 = m(x) + s(x) * eps: the flow is the *posterior*, and bends where log p(x,z) does; the prior
    stays N(0, I). In `flow_vae` the flow is the prior, and the posterior stays Gaussian. f is a chain of autoregressive
    maps, in turn from the first number of a code to the last and back. Each computes all numbers of a draw at once.

    Source: Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow", eq. 10 and 11.
    """

    Config: ClassVar[type[AlgorithmConfig]] = IAFVAEConfig
    config: IAFVAEConfig

    def __init__(self, config: IAFVAEConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.encoder = FlowPosterior(config.encoder, spec.shape, config.latent_dim, config.flow)

    def loss(self, batch: Batch) -> Loss:
        """-ELBO at one code of each datum, with the KL warmed up."""
        z, log_q = self.posterior(batch.x).rsample_and_log_prob()
        reconstruction = self.likelihood(z).log_prob(batch.x).mean()
        kl = (log_q - self.prior().log_prob(z)).mean()
        value = warm_up(batch.round, self.config.kl_warmup) * kl - reconstruction
        return Loss(value, {"reconstruction": reconstruction.detach(), "kl": kl.detach()})

    def posterior(self, x: Tensor) -> Flow:
        """q(z|x), the flow."""
        return self.encoder(x)
