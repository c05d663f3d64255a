"""Losses of methods that encode, written out by hand under the same draws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from avb_service.algorithm import Algorithm, Batch, DataSpec, LatentVariableModel, Loss
from avb_service.algorithms.aae import AAE
from avb_service.algorithms.ae_gmm import AutoencoderMixture
from avb_service.algorithms.ali import ALI
from avb_service.algorithms.flow_vae import FlowVAE
from avb_service.algorithms.iaf_vae import IAFVAE
from avb_service.algorithms.iwae import IWAE
from avb_service.distributions import Values

X = torch.bernoulli(torch.full((20, 1, 2, 3), 0.4), generator=torch.Generator().manual_seed(0)).double()


def build(method: type[Algorithm], values: Values = "binary", **settings: object) -> Algorithm:
    torch.manual_seed(0)
    name = method.Config.model_fields["name"].default
    spec = DataSpec((1, 2, 3), values, int(values == "binary"), torch.full((1, 2, 3), 0.4))
    return method(method.Config.parse({"name": name, "latent_dim": 2, **settings}), spec).double()


def value(objective: Callable[[Batch], Loss], round_: int = 0) -> Tensor:
    torch.manual_seed(1)
    return objective(Batch(X, None, torch.tensor(round_))).value


def reconstruction(model: LatentVariableModel, z: Tensor) -> Tensor:
    """E[log p(x|z)] of binary pixels."""
    p = model.decode(z)
    return (X * p.log() + (1 - X) * (1 - p).log()).sum((1, 2, 3)).mean()


def test_the_losses_of_adversarially_learned_inference():
    """Eq. 1 and 4 of Dumoulin et al. 2017; D sees q's pairs as true, and draws have their noise."""
    model = build(ALI, "real", noise=0.5)
    torch.manual_seed(1)
    z_q, z_p = model.posterior(X).rsample(), model.prior().sample((20,))
    x_p = model.decoder(z_p) + 0.5 * torch.randn(X.shape, dtype=X.dtype)
    d_q, d_p = torch.sigmoid(model.discriminator(X, z_q)), torch.sigmoid(model.discriminator(x_p, z_p))
    assert_close(value(model.adversary_loss), -(d_q.log() + (1 - d_p).log()).mean())
    assert_close(value(model.model_loss), -((1 - d_q).log() + d_p.log()).mean())


def test_the_losses_of_the_adversarial_autoencoder():
    """Sections 1.1 and 2 of Makhzani et al. 2016; D sees the prior's codes as true."""
    model = build(AAE)
    torch.manual_seed(1)
    z_q, z_p = model.posterior(X).rsample(), model.prior().sample((20,))
    d_q, d_p = (torch.sigmoid(model.discriminator(z)) for z in (z_q, z_p))
    assert_close(value(model.adversary_loss), -(d_p.log() + (1 - d_q).log()).mean())
    assert_close(value(model.generator_loss), -d_q.log().mean())
    assert_close(value(model.reconstruction_loss), -reconstruction(model, z_q))


def test_the_loss_of_the_autoencoder_with_a_mixture():
    """Eq. 11 of Ghosh et al. 2020: the decoder sees the noise, and the penalty does not."""
    model = build(AutoencoderMixture, code_penalty=0.3, code_noise=0.5)
    torch.manual_seed(1)
    z = model.encoder(X)
    noisy = z + 0.5 * torch.randn(z.shape, dtype=z.dtype)
    assert_close(value(model.loss), 0.3 * (z**2).sum(-1).mean() / 2 - reconstruction(model, noisy))


@pytest.mark.parametrize(("round_", "weight"), [(0, 0.25), (1, 0.5), (9, 1.0)])
def test_the_loss_of_the_vae_with_a_flow(round_, weight):
    """Eq. 12 of Chen et al. 2017, log p(z) = log N(f(z); 0, I) + log|det df/dz|; the KL comes in over four rounds."""
    model = build(FlowVAE, kl_warmup=4)
    with torch.no_grad():
        for p in model.flow.parameters():  # which begins as the identity, and has no volume to be counted
            p.add_(0.3 * torch.randn_like(p))
    torch.manual_seed(1)
    q = model.posterior(X).base_dist
    z = model.posterior(X).rsample()
    u, log_det = model.flow.transform().call_and_ladj(z)
    log_q, log_p = Normal(q.loc, q.scale).log_prob(z).sum(-1), Normal(0, 1).log_prob(u).sum(-1) + log_det
    assert_close(value(model.loss, round_), weight * (log_q - log_p).mean() - reconstruction(model, z))


@pytest.mark.parametrize(("round_", "weight"), [(0, 0.25), (9, 1.0)])
def test_the_loss_of_the_importance_weighted_autoencoder(round_, weight):
    """Its value is sum_k v_k log w_k, v_k = w_k / sum_j w_j; the bound that is reported is log 1/K sum_k w_k."""
    model = build(IWAE, kl_warmup=4, samples=3)
    torch.manual_seed(1)
    q = model.posterior(X).base_dist
    z = model.posterior(X).rsample((3,))
    p = model.decode(z)
    log_likelihood = (X * p.log() + (1 - X) * (1 - p).log()).sum((-1, -2, -3))
    log_ratio = Normal(0, 1).log_prob(z).sum(-1) - Normal(q.loc, q.scale).log_prob(z).sum(-1)
    w = (log_likelihood + weight * log_ratio).exp()
    assert_close(value(model.loss, round_), -(w / w.sum(0) * w.log()).sum(0).mean())
    torch.manual_seed(1)
    terms = model.loss(Batch(X, None, torch.tensor(round_))).terms
    assert_close(terms["bound"], w.mean(0).log().mean().detach())
    assert_close(terms["reconstruction"], log_likelihood.mean().detach())


def test_the_loss_of_the_vae_with_a_flow_as_its_posterior():
    """Eq. 10 and 11 of Kingma et al. 2016: z_t = mu_t + sigma_t z_t-1, log q falls by sum log sigma_t at each step."""
    model = build(IAFVAE, kl_warmup=4, flow={"name": "affine", "transforms": 2})
    with torch.no_grad():
        for p in model.encoder.transform.parameters():
            p.add_(0.3 * torch.randn_like(p))
    torch.manual_seed(1)
    h = model.encoder.features(X)
    mean, log_scale = model.encoder.head(h).chunk(2, -1)
    z = z_0 = Normal(mean, log_scale.exp()).rsample()
    log_q = Normal(mean, log_scale.exp()).log_prob(z_0).sum(-1)
    for step in model.encoder.transform.transforms:
        shift, scale = step.hyper(torch.cat([z, h], -1)).unflatten(-1, (2, 2)).unbind(-1)
        scale = scale / (1 + (scale / math.log(1e3)).abs())  # between a thousandth and a thousand
        z, log_q = shift + scale.exp() * z, log_q - scale.sum(-1)
    kl = log_q - Normal(0, 1).log_prob(z).sum(-1)
    assert_close(value(model.loss), 0.25 * kl.mean() - reconstruction(model, z))
