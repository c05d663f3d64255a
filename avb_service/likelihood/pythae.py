"""Models of pythae as the densities that they are; pythae itself is not imported, so it need not be installed here.

Floor 5.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, TransformedDistribution, constraints
from torch.distributions.transforms import Transform

from avb_service.errors import UserError
from avb_service.likelihood.given import Likelihood, Posterior
from avb_service.maths import standard_normal

GAUSSIAN = (
    "Adversarial_AE", "BetaTCVAE", "BetaVAE", "CIWAE", "DisentangledBetaVAE", "FactorVAE", "INFOVAE_MMD", "IWAE",
    "MIWAE", "PIWAE", "VAE",
)  # fmt: skip
NETWORKS = {"VAE_IAF": "iaf_flow", "VAE_LinNF": "net"}  # of those that have a flow, where it is


class Densities(NamedTuple):
    """What `certify` takes.

    Attributes:
        likelihood: codes [..., D] -> p(x|z).
        prior: p(z), event shape [D].
        posterior: data [B, ...] -> q(z|x).
    """

    likelihood: Likelihood
    prior: Distribution
    posterior: Posterior


def from_pythae(model: Any) -> Densities:  # noqa: ANN401  of pythae
    """The densities of one of pythae's VAEs, however it was trained: `certify(*from_pythae(vae), x=x)`.

    p(x|z) is what `reconstruction_loss` makes it, as in pythae's own `get_nll`: bce is Bernoulli, for data that are 0
    or 1, and mse is N(m(z), I). The posterior is Gaussian, or what a flow makes of one. Of planar and radial flows the
    density is known at their own draws alone, so these posteriors are known by their draws.

    Args:
        model: a VAE, or another whose prior is N(0, I) and whose decoder gives p(x|z), such as IWAE and VAE_IAF.

    Raises:
        UserError: it is another model, or its loss is no log-likelihood.
    """
    name, config = getattr(model, "model_name", type(model).__name__), getattr(model, "model_config", None)
    if name not in (*GAUSSIAN, *NETWORKS) or config is None:
        raise UserError(
            f"given a {name}, expected a model of pythae with prior N(0, I) and p(x|z): "
            f"{', '.join((*GAUSSIAN, *NETWORKS))}; of another, give its densities to `certify` as torch distributions"
        )
    if (loss := getattr(config, "reconstruction_loss", None)) not in ("bce", "mse"):
        raise UserError(f"{name}: its reconstruction_loss is {loss!r}, expected bce (Bernoulli) or mse (Gaussian)")
    prior = standard_normal(model.latent_dim, like=next(model.parameters()))
    return Densities(_Likelihood(model, loss), prior, _Posterior(model, name))


class _Likelihood(nn.Module):
    """What the decoder computes from codes, and the loss makes of it."""

    def __init__(self, model: Any, loss: str) -> None:  # noqa: ANN401  of pythae
        super().__init__()
        self.decoder, self.loss = model.decoder, loss

    def forward(self, z: Tensor) -> Distribution:
        """p(x|z) for codes [..., D]."""
        flat = self.decoder(z.flatten(0, -2))["reconstruction"]
        outputs = flat.unflatten(0, z.shape[:-1])
        p = Bernoulli(probs=outputs) if self.loss == "bce" else Normal(outputs, 1.0)
        return Independent(p, flat.dim() - 1)


class _Posterior(nn.Module):
    """What the encoder computes from data, and flows make of it."""

    def __init__(self, model: Any, name: str) -> None:  # noqa: ANN401  of pythae
        super().__init__()
        self.encoder = model.encoder
        self.network: nn.Module | None = getattr(model, NETWORKS[name]) if name in NETWORKS else None
        self.flow = None if self.network is None else FLOWS[name](self.network)

    def forward(self, x: Tensor) -> Distribution:
        """q(z|x) for data [B, ...]."""
        output = self.encoder(x)
        q = Independent(Normal(output["embedding"], torch.exp(0.5 * output["log_covariance"])), 1)
        return TransformedDistribution(q, [self.flow]) if self.flow else q


class _Flow(Transform, ABC):
    """A flow of pythae, which takes [B, D], as torch has them: any number of dimensions before the last."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: Any) -> None:  # noqa: ANN401  of pythae
        super().__init__()
        self.network = network

    @abstractmethod
    def forward_pass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of z [B, D], and the log-determinant of its Jacobian there, [B]."""

    def _call(self, z: Tensor) -> Tensor:
        return self.forward_pass(z.flatten(0, -2))[0].reshape(z.shape)

    def log_abs_det_jacobian(self, z: Tensor, y: Tensor) -> Tensor:
        """[...], at z [..., D]."""
        return self.forward_pass(z.flatten(0, -2))[1].reshape(z.shape[:-1])


class _Autoregressive(_Flow):
    """Of VAE_IAF; pythae calls the direction in which codes are drawn `inverse`."""

    def forward_pass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Flow`."""
        output = self.network.inverse(z)
        return output["out"], output["log_abs_det_jac"]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.network(y.flatten(0, -2))["out"].reshape(y.shape)


class _Layers(_Flow):
    """Of VAE_LinNF: planar and radial layers, of which nobody knows the inverse."""

    def forward_pass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Flow`."""
        total = z.new_zeros(len(z))
        for layer in self.network:
            output = layer(z)
            z, total = output["out"], total + output["log_abs_det_jac"]
        return z, total


FLOWS: dict[str, type[_Flow]] = {"VAE_IAF": _Autoregressive, "VAE_LinNF": _Layers}
