"""Bounds that are tighter than the ELBO of a Gaussian posterior, on a model whose log p(x) is known."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from affine_model import affine, data, evidence, factorised_gap, learn_posterior, losses
from torch import Tensor

from avb_service.algorithm import Batch, LatentVariableModel, warm_up
from avb_service.algorithms.iaf_vae import IAFVAE
from avb_service.algorithms.iwae import IWAE
from avb_service.algorithms.vae import VAE
from avb_service.maths import log_mean_exp
from avb_service.seeding import seeded

REPEATS = 100_000


def gap(model: LatentVariableModel, x: Tensor, repeats: int = 40) -> tuple[float, float]:
    """By how much a bound is below log p(x), mean over data and draws, and its standard error by the draws."""
    terms = list(losses(model, x, repeats))
    bounds = torch.tensor([t["bound"] if "bound" in t else t["reconstruction"] - t["kl"] for t in terms])
    return evidence(model, x).mean().item() - bounds.mean().item(), bounds.std().item() / math.sqrt(repeats)


def assert_tightens(gaps: list[tuple[float, float]]) -> None:
    """Each gap is smaller than the one before, beyond doubt, and none is below 0."""
    for (before, error), (after, other) in pairwise(gaps):
        assert after < before - 3 * math.hypot(error, other), gaps
    for value, error in gaps:
        assert value > -3 * error, gaps


def test_importance_weights_tighten_the_bound_from_the_elbo_to_log_p():
    x = data(affine(VAE, 3), 200)
    gaps = [gap(affine(IWAE, 3, samples=k), x) for k in (1, 2, 8, 32, 512)]
    (one, error), (last, _) = gaps[0], gaps[-1]
    assert one == pytest.approx(factorised_gap(affine(VAE, 3)), abs=3 * error), "L_1 is the ELBO"
    assert last < 0.2 * one
    assert_tightens(gaps)


def plain(model: IWAE, batch: Batch) -> Tensor:
    """-L_K, to be differentiated as it is written (eq. 8 of Burda et al. 2016)."""
    q, weight = model.posterior(batch.x), warm_up(batch.round, model.config.kl_warmup)
    z = q.rsample((model.config.samples,))
    log_ratio = model.prior().log_prob(z) - q.log_prob(z)
    return -log_mean_exp(model.likelihood(z).log_prob(batch.x) + weight * log_ratio).mean()


def slopes(model: IWAE, objective: Callable[[Batch], Tensor], batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """By what the encoder gives of each datum, [B, 2 D], and by the decoder's weights; of the mean over the batch."""
    given: list[Tensor] = []
    watch = model.encoder.head.register_forward_hook(lambda module, inputs, output: given.append(output))
    with seeded("slopes", seed):
        value = objective(batch)
    watch.remove()
    of_encoder, of_decoder = torch.autograd.grad(value, (given[0], next(model.decoder.parameters())))
    return len(batch.x) * of_encoder, of_decoder


@pytest.mark.parametrize("round_", [0, 9], ids=["a quarter of the KL", "all of it"])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_the_doubly_reparameterised_gradient_has_the_mean_of_the_plain_one_and_less_noise(samples, round_):
    """Of the encoder, by many draws for one datum; the decoder's is the very same under the same draws."""
    model = affine(IWAE, wider=1.5, samples=samples, kl_warmup=4)
    x = data(model, 3)[2:].expand(REPEATS, -1, -1, -1)
    batch = Batch(x, None, torch.tensor(round_, dtype=torch.float64))
    one, of_decoder = slopes(model, lambda batch: plain(model, batch), batch, 0)
    _, same_draws = slopes(model, lambda batch: model.loss(batch).value, batch, 0)
    other, _ = slopes(model, lambda batch: model.loss(batch).value, batch, 1)
    torch.testing.assert_close(of_decoder, same_draws)
    error = ((one.var(0) + other.var(0)) / REPEATS).sqrt()
    assert (one.mean(0) - other.mean(0)).abs().lt(4 * error).all()
    assert other.mean(0).abs().gt(10 * error).any(), "there is a gradient to be right about"
    assert other.var(0).sum() < 0.95 * one.var(0).sum()


def learned_gap(x: Tensor, method: type[VAE], **settings: object) -> tuple[float, float]:
    """The gap of a posterior that has learned for a while."""
    model = affine(method, 3, **settings)
    learn_posterior(model)
    return gap(model, x)


def test_a_flow_closes_the_gap_that_a_factorised_gaussian_leaves_and_a_longer_one_sooner():
    """One step is enough for any Gaussian posterior, whose factor is triangular; each learns for as long."""
    x, left = data(affine(VAE, 3), 200), factorised_gap(affine(VAE, 3))
    gaps = [gap(affine(VAE, 3), x)]
    assert gaps[0][0] == pytest.approx(left, abs=3 * gaps[0][1])
    gaps += [learned_gap(x, IAFVAE, flow={"name": "affine", "transforms": n, "hidden": [16]}) for n in (1, 2)]
    assert_tightens(gaps)
    assert gaps[-1][0] < 0.05 * left
    spline, error = learned_gap(x, IAFVAE, flow={"name": "spline", "transforms": 1, "hidden": [16]})
    assert -3 * error < spline < 0.5 * left


def test_the_density_of_a_flow_is_that_of_its_draws_and_is_one():
    """By the inverse for codes that are given, and by the draws themselves; what it weighs is 1."""
    with torch.no_grad():
        model = affine(IAFVAE, 2, flow={"name": "affine", "transforms": 3, "hidden": [16]})
        with seeded("bent"):
            for parameter in model.encoder.transform.parameters():  # which begins as the identity
                parameter.add_(0.1 * torch.randn_like(parameter))
        q = model.posterior(data(model, 3))
        with seeded("draws"):
            z, log_q = q.rsample_and_log_prob((1000,))
        torch.testing.assert_close(q.log_prob(z), log_q)
        assert z.abs().max() < 10
        side = torch.linspace(-12, 12, 401, dtype=torch.float64)
        mass = q.log_prob(torch.cartesian_prod(side, side)[:, None]).exp().sum(0) * (side[1] - side[0]) ** 2
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)
