"""Importance weighted autoencoder (Burda et al. 2016), its gradient doubly reparameterised (Tucker et al. 2019)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch.distributions import Independent, Normal, kl_divergence

from avb_service.algorithm import AlgorithmConfig, Batch, Loss, warm_up
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.maths import log_mean_exp


class IWAEConfig(VAEConfig):
    """Settings of the importance weighted autoencoder.

    Attributes:
        samples: K, codes of a datum that are weighed against one another; 1 is the VAE.
    """

    name: Literal["iwae"] = "iwae"  # type: ignore[assignment]
    samples: Annotated[int, Field(ge=1)] = 5


class IWAE(VAE):
    """max L_K = E[log 1/K sum_k w_k], w_k = p(x,z_k) / q(z_k|x), z_1, ..., z_K ~ q(z|x).

    L_1 is the ELBO of the VAE, and L_K rises with K to log p(x). With v_k = w_k / sum_j w_j, its gradient is

        decoder:  E[sum_k v_k d log w_k],
        encoder:  E[sum_k v_k^2 (d log w_k / d z_k) d z_k].

    The score of q, the slope of log q in its own parameters, is in neither: of a gradient that has it, the encoder's
    share drowns in noise as K grows (Rainforth et al. 2018). Where the KL comes in with a weight b < 1, log w_k is
    log p(x|z_k) + b (log p(z_k) - log q(z_k|x)), and (1 - b) v_k + b v_k^2 takes the place of v_k^2.

    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8; Tucker, Lawson, Gu & Maddison 2019, eq. 8 and 10.
    """

    Config: ClassVar[type[AlgorithmConfig]] = IWAEConfig
    config: IWAEConfig

    def loss(self, batch: Batch) -> Loss:
        """A scalar with the gradient of -L_K; reconstruction and KL are those of the ELBO, over the same codes."""
        q, weight = self.posterior(batch.x), warm_up(batch.round, self.config.kl_warmup)
        z = q.rsample((self.config.samples,))
        log_p = self.likelihood(z).log_prob(batch.x)
        log_w = log_p + weight * (self.prior().log_prob(z) - fixed(q).log_prob(z))
        share = log_w.detach().softmax(0)
        if z.requires_grad:
            z.register_hook(lambda slope: slope * (1 - weight * (1 - share))[..., None])
        terms = {"reconstruction": log_p.mean(), "kl": kl_divergence(q, self.prior()).mean()}
        terms["bound"] = log_mean_exp(log_w).mean()
        return Loss(-(share * log_w).sum(0).mean(), {name: term.detach() for name, term in terms.items()})


def fixed(q: Independent) -> Independent:
    """A factorised Gaussian as it is, through whose parameters no gradient flows."""
    loc, scale = q.base_dist.loc.detach(), q.base_dist.scale.detach()
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
