"""Observation models against torch's and scipy's densities; the noise basis against its own draws."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Beta, Independent, MultivariateNormal, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from avb_service.discretised import DiscretisedLogistic
from avb_service.distributions import (
    BernoulliConfig,
    DataSpec,
    GaussianConfig,
    ImplicitPosterior,
    LogisticConfig,
    NoiseBasisPosterior,
)
from avb_service.maths import fit_gaussian, log_mean_exp, standard_normal, whiten
from avb_service.networks.encoders import NoiseBasis
from avb_service.seeding import generator, seeded

SHAPE = (2, 3, 4)


def spec(values: str = "binary", levels: int = 1) -> DataSpec:
    with seeded("spec"):
        return DataSpec(SHAPE, values, levels, torch.rand(SHAPE))


def outputs(*batch: int, planes: int = 1) -> Tensor:
    with seeded("outputs"):
        return torch.randn(*batch, planes, *SHAPE, dtype=torch.float64)


def test_bernoulli_is_cross_entropy_summed_over_pixels():
    logits = outputs(5, 7) * 4
    x = (torch.rand(7, *SHAPE, generator=generator("cpu", 0)) < 0.5).double()
    p = BernoulliConfig().build(spec())(logits)
    reference = -binary_cross_entropy_with_logits(logits[:, :, 0], x.expand(5, 7, *SHAPE), reduction="none")
    assert (p.batch_shape, p.event_shape) == ((5, 7), SHAPE)
    torch.testing.assert_close(p.log_prob(x), reference.sum((-1, -2, -3)))
    torch.testing.assert_close(p.mean, torch.sigmoid(logits[:, :, 0]))


@pytest.mark.parametrize("noise", ["fixed", "learned", "predicted"])
def test_gaussian_noise(noise):
    model = GaussianConfig(scale=0.3, noise=noise).build(spec("real", 0)).double()
    parameters = outputs(5, planes=model.planes)
    x = torch.randn(5, *SHAPE, dtype=torch.float64, generator=generator("cpu", 0))
    # The configured scale is kept in single precision.
    scale = 0.3 * (np.exp(parameters[:, 1].numpy()) if noise == "predicted" else np.ones((5, *SHAPE)))
    reference = scipy.stats.norm.logpdf(x.numpy(), parameters[:, 0].numpy(), scale).sum((1, 2, 3))
    torch.testing.assert_close(model(parameters).log_prob(x), torch.from_numpy(reference), rtol=1e-6, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == (["log_scale"] if noise == "learned" else [])


def test_a_learned_scale_gets_a_gradient_and_goes_to_the_residuals_scale():
    model = GaussianConfig(scale=0.3, noise="learned").build(spec("real", 0)).double()
    residuals = 2.0 * torch.randn(64, *SHAPE, dtype=torch.float64, generator=generator("cpu", 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (-model(torch.zeros(64, 1, *SHAPE, dtype=torch.float64)).log_prob(residuals).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(model.log_scale.exp().detach(), residuals.square().mean().sqrt(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("levels", [2, 16, 255])
@settings(max_examples=40)
@given(loc=st.floats(-3, 4), log_scale=st.floats(-7, 3))
def test_discretised_logistic_sums_to_one_over_its_levels(levels, loc, log_scale):
    p = DiscretisedLogistic(*torch.tensor([[loc], [log_scale]], dtype=torch.float64), levels)
    grid = torch.arange(levels + 1, dtype=torch.float64) / levels
    assert torch.logsumexp(p.log_prob(grid), 0).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("loc", "log_scale"), [(0.4, -3.0), (-0.2, -1.0), (1.1, -2.0), (0.5, 0.5)])
def test_discretised_logistic_is_the_mass_of_cells(loc, log_scale):
    levels = 16
    p = DiscretisedLogistic(*torch.tensor([[loc], [log_scale]], dtype=torch.float64), levels)
    edges = np.concatenate([[-np.inf], (np.arange(levels) + 0.5) / levels, [np.inf]])
    mass = np.diff(scipy.stats.logistic.cdf(edges, loc, math.exp(log_scale)))
    grid = torch.arange(levels + 1, dtype=torch.float64) / levels
    torch.testing.assert_close(p.log_prob(grid).exp(), torch.from_numpy(mass), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("loc", "log_scale"), [(0.4, -3.0), (-0.2, -1.0), (1.1, -2.0), (0.5, 0.5)])
def test_discretised_logistic_draws_follow_it(loc, log_scale):
    levels, n = 16, 40_000
    p = DiscretisedLogistic(torch.tensor([loc]), torch.tensor([log_scale]), levels)
    with seeded("draws"):
        counts = torch.bincount((p.sample((n,)) * levels).round().long().flatten(), minlength=levels + 1)
    expected = n * p.log_prob(torch.arange(levels + 1) / levels).exp()
    often = expected > 5
    assert counts[~often].sum() <= 20 + 10 * expected[~often].sum()
    chi = ((counts - expected).square() / expected)[often].sum()
    assert chi < scipy.stats.chi2.ppf(1 - 1e-6, int(often.sum()) - 1)


def test_discretised_logistic_has_finite_gradients_in_its_tails():
    loc = torch.tensor([-40.0, 0.5, 40.0], requires_grad=True)
    log_scale = torch.full((3,), -7.0, requires_grad=True)
    for level in (0.0, 0.5, 1.0):
        value = DiscretisedLogistic(loc, log_scale, 16).log_prob(torch.full((3,), level))
        gradients = torch.autograd.grad(value.sum(), (loc, log_scale))
        assert value.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_logistic_model_reads_location_and_scale_planes():
    model = LogisticConfig().build(spec("levels", 16))
    parameters = outputs(5, planes=2)
    x = torch.randint(0, 17, (5, *SHAPE), generator=generator("cpu", 0)) / 16.0
    reference = DiscretisedLogistic(parameters[:, 0], parameters[:, 1] - 2, 16).log_prob(x.double()).sum((-1, -2, -3))
    torch.testing.assert_close(model(parameters).log_prob(x.double()), reference)
    assert model(parameters).sample().shape == (5, *SHAPE)


@pytest.mark.parametrize(
    ("observation", "values", "levels"),
    [
        (BernoulliConfig(), "binary", 1), (GaussianConfig(), "real", 0), (GaussianConfig(noise="learned"), "real", 0),
        (GaussianConfig(noise="predicted"), "levels", 16), (LogisticConfig(), "levels", 255),
    ],
)  # fmt: skip
def test_an_output_at_the_bias_has_the_data_mean(observation, values, levels):
    given_ = spec(values, levels)
    model = observation.build(given_)
    bias = model.bias(given_.mean)
    assert bias.shape == (model.planes, *SHAPE)
    torch.testing.assert_close(model(bias[None]).mean[0], given_.mean.clamp(0.01, 0.99), rtol=0, atol=0.011)


@pytest.mark.parametrize("values", ["binary", "levels", "real"])
def test_each_kind_of_values_has_a_model_and_refuses_the_others(values):
    fitting = {"binary": {"bernoulli"}, "levels": {"gaussian", "discretised_logistic"}, "real": {"gaussian"}}[values]
    for observation in (BernoulliConfig(), GaussianConfig(), LogisticConfig()):
        objection = observation.objection(values)
        assert (objection is None) == (observation.name in fitting)
        assert objection is None or objection.startswith("observation: ")


def noise_basis(bases: int = 5, dim: int = 3) -> NoiseBasisPosterior:
    with seeded("basis"):
        basis = NoiseBasis(bases, (4, 16, dim)).double()
        offset = torch.randn(6, dim, dtype=torch.float64)
        weights = torch.rand(6, bases, dim, dtype=torch.float64) * 3
    return NoiseBasisPosterior(offset, weights, basis)


@torch.no_grad()
def test_noise_basis_moments_are_those_of_its_draws():
    q, n = noise_basis(), 200_000
    with seeded("moments"):
        mean, covariance = q.moments(*q.basis.moments(n))
    with seeded("draws"):
        z = q.rsample((n,))
    assert z.shape == (n, 6, 3)
    centred = z - z.mean(0)
    products = torch.einsum("sbi,sbj->sbij", centred, centred)
    # Both sides are estimates from n draws each.
    assert ((mean - z.mean(0)).abs() < 6 * (2 / n) ** 0.5 * z.std(0)).all()
    assert ((covariance - products.mean(0)).abs() < 6 * (2 / n) ** 0.5 * products.std(0) + 1e-12).all()
    correlation = covariance[:, 0, 1] / (covariance[:, 0, 0] * covariance[:, 1, 1]).sqrt()
    assert correlation.abs().min() > 0.02  # so that a diagonal covariance would not pass


@torch.no_grad()
def test_noise_basis_moments_of_a_datum_do_not_depend_on_its_batch():
    q = noise_basis()
    part = NoiseBasisPosterior(q.offset[2:4], q.weights[2:4], q.basis)
    shared = q.basis.moments(32)
    for whole, few in zip(q.moments(*shared), part.moments(*shared), strict=True):
        torch.testing.assert_close(whole[2:4], few)


def test_gradients_flow_through_draws_of_a_noise_basis():
    q = noise_basis()
    q.offset.requires_grad_(True), q.weights.requires_grad_(True)
    q.rsample((2,)).sum().backward()
    torch.testing.assert_close(q.offset.grad, torch.full_like(q.offset, 2.0))
    assert q.weights.grad.abs().min() > 0
    assert all(p.grad is not None for p in q.basis.parameters())


@pytest.mark.parametrize("full", [True, False])
def test_whitening_undoes_a_gaussian(full):
    with seeded("whiten"):
        mean, root = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64)
        eps = torch.randn(7, 4, 3, dtype=torch.float64)
    if full:
        factor = torch.linalg.cholesky(root @ root.mT + torch.eye(3, dtype=torch.float64))
        gaussian = MultivariateNormal(mean, scale_tril=factor)
        z = mean + (factor @ eps[..., None])[..., 0]
    else:
        scale = root.diagonal(dim1=-2, dim2=-1).exp()
        factor = torch.diag_embed(scale)
        gaussian = Independent(Normal(mean, scale), 1)
        z = mean + scale * eps
    u, log_density = whiten(gaussian, z)
    torch.testing.assert_close(u, eps)
    torch.testing.assert_close(log_density, gaussian.log_prob(z))
    # The change of variables that the KL of adaptive contrast rests on: log r(z) = log N(u) - log|L|.
    standard = standard_normal(3, like=z).log_prob(eps) - torch.linalg.slogdet(factor).logabsdet
    torch.testing.assert_close(log_density, standard)


def test_only_gaussians_can_be_whitened():
    with pytest.raises(TypeError, match="Beta"):
        whiten(Beta(torch.ones(2), torch.ones(2)), torch.ones(2))


def test_an_implicit_posterior_passes_on_its_sampler():
    q = ImplicitPosterior(lambda shape: torch.zeros(*shape, 5, 2))
    assert q.rsample().shape == (5, 2)
    assert q.rsample((3, 4)).shape == (3, 4, 5, 2)


# The formulas of floor 0 that these rest on.


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_log_mean_exp_neither_overflows_nor_shifts(values, shift):
    given_ = torch.tensor(values, dtype=torch.float64)
    reference = math.log(math.fsum(math.exp(v - max(values)) for v in values) / len(values)) + max(values)
    assert log_mean_exp(given_).item() == pytest.approx(reference, abs=1e-9)
    assert log_mean_exp(given_ + shift).item() == pytest.approx(reference + shift, abs=1e-9)


def test_a_fitted_gaussian_has_the_moments_of_the_draws():
    with seeded("fit"):
        draws = torch.randn(50, 4, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 2
    fitted = fit_gaussian(draws, inflate=1.5, ridge=0.0)
    for datum in range(4):
        torch.testing.assert_close(fitted.loc[datum], draws[:, datum].mean(0))
        torch.testing.assert_close(fitted.covariance_matrix[datum], 1.5**2 * torch.cov(draws[:, datum].T))


def test_a_gaussian_can_be_fitted_to_draws_that_do_not_vary():
    fitted = fit_gaussian(torch.ones(10, 2, 3))
    assert fitted.log_prob(torch.ones(2, 3)).isfinite().all()


def test_standard_normal_is_standard():
    like = torch.zeros((), dtype=torch.float64)
    p, z = standard_normal(3, like), torch.randn(5, 3, dtype=torch.float64, generator=generator("cpu", 0))
    torch.testing.assert_close(p.log_prob(z), -z.square().sum(-1) / 2 - 1.5 * math.log(2 * math.pi))
    assert p.sample().dtype == torch.float64


def test_a_grid_holds_its_levels_and_nothing_else():
    p = Independent(DiscretisedLogistic(torch.zeros(3), torch.zeros(3), 16), 1)
    assert p.support.is_discrete
    assert p.support.check(torch.tensor([0.0, 5 / 16, 1.0]))
    for other in (1 / 3, -1 / 16, 17 / 16, math.nan):
        assert not p.support.check(torch.tensor([0.0, other, 1.0]))
