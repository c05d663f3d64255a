"""Values without sampling error, against closed forms and sums by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, SPEC, data, run
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    Normal,
    OneHotCategorical,
)

from avb_service.algorithm import DataSpec
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.discrete import arrangements
from avb_service.distributions import GaussianConfig
from avb_service.errors import UserError
from avb_service.likelihood import exact
from avb_service.likelihood.exact import enumeration, ppca, quadrature
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import seeded

# Quadrature.


@pytest.mark.parametrize("dim", [1, 2])
def test_quadrature_of_a_linear_gaussian_model_is_its_closed_form(dim):
    model = PCA(dim)
    x = data(model, 20)
    estimate = run(quadrature, model, x)
    assert estimate.kind == "exact"
    np.testing.assert_allclose(estimate.per_datum, model.exact(x), rtol=0, atol=1e-5)
    assert estimate.diagnostics["doubling"] < 1e-5
    assert estimate.diagnostics["shift"] < 1e-5


def test_quadrature_in_single_precision_agrees():
    model = PCA(2)
    x = data(model, 20)
    expected = model.exact(x)
    model.w.data, model.mu = model.w.data.float(), model.mu.float()
    estimate = run(quadrature, model, x.float())
    assert estimate.kind == "exact"
    np.testing.assert_allclose(estimate.per_datum, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dim", "noise"), [(1, 0.01), (1, 1e-4), (2, 0.05), (2, 0.01)])
def test_quadrature_refines_its_grid_until_a_narrow_posterior_is_resolved(dim, noise):
    model = PCA(dim, noise=noise)
    x = data(model, 20)
    estimate = run(quadrature, model, x)
    assert estimate.kind == "exact"
    assert estimate.diagnostics["cells"] > 2 * exact.COARSE[dim]
    np.testing.assert_allclose(estimate.per_datum, model.exact(x), rtol=0, atol=1e-5)


def test_quadrature_that_does_not_settle_is_no_exact_value():
    model = PCA(2, noise=1e-4)
    estimate = run(quadrature, model, data(model, 20))
    assert estimate.kind == "estimate"
    assert min(estimate.diagnostics["doubling"], estimate.diagnostics["shift"]) > 1e-5, "either tells"


def test_quadrature_of_a_posterior_that_leaves_the_box_is_no_exact_value():
    model = PCA(1)
    far = model.likelihood(torch.full((5, 1), 60.0, dtype=torch.float64)).mean.detach()
    assert model.exact_posterior(far).loc.min() > 8
    estimate = run(quadrature, model, far)
    assert estimate.kind == "estimate"
    assert estimate.diagnostics["outside"] > 0.1


class Parabola(PCA):
    """p(x|z) = N(z^2 + 0.01 z, s^2) in each pixel: two narrow peaks, of which neither is to be lost."""

    def __init__(self) -> None:
        super().__init__(1, noise=0.002)

    def likelihood(self, z: Tensor) -> Distribution:
        mean = (z.square() + 0.01 * z)[..., None, None, :].expand(*z.shape[:-1], *SPEC.shape)
        return Independent(Normal(mean, self.noise), 3)


def test_quadrature_finds_both_of_two_narrow_peaks():
    model = Parabola()
    x = torch.tensor([0.37, 1.01, 2.6], dtype=torch.float64)[:, None, None, None].expand(-1, *SPEC.shape)
    estimate = run(quadrature, model, x)
    step = 2e-6
    z = torch.arange(-4, 4, step, dtype=torch.float64)
    squares = (x[:, 0, 0, :1] - z.square() - 0.01 * z).square() * 6  # all pixels are alike
    log_joint = -squares / (2 * model.noise**2) - z.square() / 2
    constant = -6 * math.log(model.noise) - 3.5 * math.log(2 * math.pi)
    expected = log_joint.logsumexp(1) + math.log(step) + constant
    assert estimate.kind == "exact"
    np.testing.assert_allclose(estimate.per_datum, expected, rtol=0, atol=1e-5)


class Tent(PCA):
    """p(x|z) = Laplace(z, b) with a width far below the grid's: the points beside the peak tell nothing of it."""

    def __init__(self) -> None:
        super().__init__(1, noise=2.0**-13)

    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Laplace(z[..., None, None, :].expand(*z.shape[:-1], *SPEC.shape), self.noise), 3)


def test_quadrature_keeps_both_sides_of_a_peak_that_is_on_a_point_of_the_grid():
    model = Tent()
    x = torch.tensor([0.25, 0.255], dtype=torch.float64)[:, None, None, None].expand(-1, *SPEC.shape)
    step = 1e-7
    z = x[:, 0, 0, :1] + torch.arange(-1e-3, 1e-3, step, dtype=torch.float64)
    tents = -6 * ((x[:, 0, 0, :1] - z).abs() / model.noise + math.log(2 * model.noise))
    expected = (tents - z.square() / 2).logsumexp(1) + math.log(step) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(run(quadrature, model, x).per_datum, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("worst", ["doubling", "shift", "outside"])
def test_an_exact_value_passes_every_check(worst):
    columns = {name: torch.full((4,), 1e-7) for name in ("nats", "doubling", "shift", "outside")}
    kind = quadrature(PCA(1)).kind
    assert kind(columns) == "exact"
    assert kind({**columns, worst: torch.tensor([0.0, 0.0, 0.0, 1e-4])}) == "estimate"


@pytest.mark.parametrize("mib", [1, 64])
def test_quadrature_does_not_hang_on_how_data_are_cut(mib):
    model = PCA(2)
    x = data(model, 100)
    np.testing.assert_allclose(run(quadrature, model, x, mib=mib).per_datum, model.exact(x), rtol=0, atol=1e-5)


class Bits(PCA):
    """Binary codes under the linear decoder."""

    def prior(self) -> Distribution:
        return Independent(Bernoulli(torch.full((self.w.shape[1],), 0.3, dtype=torch.float64)), 1)


class Mixture(PCA):
    def prior(self) -> Distribution:
        each = Independent(Normal(torch.zeros(2, 2, dtype=torch.float64), 1.0), 1)
        return MixtureSameFamily(Categorical(torch.ones(2, dtype=torch.float64)), each)


def test_quadrature_names_what_is_in_the_way():
    with pytest.raises(UserError, match="at most 2 latent dimensions, this model has 3: use ais or iwae"):
        quadrature(PCA(3))
    with pytest.raises(UserError, match=r"factorised Gaussian prior, this one is Bernoulli.*use enumeration, iwae or"):
        quadrature(Bits(2))
    with pytest.raises(UserError, match=r"factorised Gaussian prior, this one is MixtureSameFamily.*use ais or iwae"):
        quadrature(Mixture(2))


# Closed form.


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_closed_form_of_a_linear_decoder(dim):
    model = PCA(dim)
    x = data(model, 20)
    estimate = run(ppca, model, x)
    assert (estimate.name, estimate.kind) == ("ppca", "exact")
    np.testing.assert_allclose(estimate.per_datum, model.exact(x), rtol=0, atol=1e-9)


def test_closed_form_in_single_precision_agrees():
    model = PCA(2)
    x = data(model, 20)
    expected = model.exact(x)
    model.w.data, model.mu = model.w.data.float(), model.mu.float()
    np.testing.assert_allclose(run(ppca, model, x.float()).per_datum, expected, rtol=0, atol=1e-4)


class FactorAnalysis(PCA):
    """A scale of its own for each pixel."""

    def likelihood(self, z: Tensor) -> Distribution:
        scale = torch.linspace(0.3, 1.2, 6, dtype=torch.float64)
        return Independent(Normal((z @ self.w.mT + self.mu)[..., None, None, :], scale), 3)


def test_closed_form_of_factor_analysis_is_what_quadrature_finds():
    model = FactorAnalysis(2)
    x = data(model, 20)
    np.testing.assert_allclose(run(ppca, model, x).per_datum, run(quadrature, model, x).per_datum, rtol=0, atol=1e-6)


class BendsFarOut(PCA):
    """Linear but where a unit of it is switched off, five standard deviations away."""

    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Normal(((z + 5).relu() @ self.w.mT)[..., None, None, :], self.noise), 3)


class Heteroscedastic(PCA):
    def likelihood(self, z: Tensor) -> Distribution:
        scale = (0.1 * z.sum(-1)).exp()[..., None, None, None]
        return Independent(Normal((z @ self.w.mT)[..., None, None, :], scale), 3)


class WithoutNoise(PCA):
    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=(z @ self.w.mT)[..., None, None, :]), 3)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (BendsFarOut(2), "mean is not affine in z"), (Heteroscedastic(2), "noise scale depends on z"),
        (WithoutNoise(2), "observation model is not Gaussian"), (Mixture(2), "prior is MixtureSameFamily"),
        (Bits(2), "prior is Bernoulli.*use enumeration, iwae or elbo"),
    ],
)  # fmt: skip
def test_closed_form_says_why_a_decoder_is_not_linear(model, reason):
    with pytest.raises(UserError, match=rf"ppca needs p\(x\|z\) = N\(W z \+ mu, .*{reason}"):
        ppca(model)


def test_a_network_is_not_taken_for_linear():
    config = VAEConfig(
        latent_dim=2, encoder=MLPConfig(hidden=(8,)), decoder=MLPConfig(hidden=(8,)), observation=GaussianConfig()
    )
    with seeded("vae"):
        model = VAE(config, DataSpec((1, 1, 4), "real", 0, torch.zeros(1, 1, 4)))
    with pytest.raises(UserError, match="not affine in z.*use ais or iwae"):
        ppca(model)


# Enumeration.


class BinaryCodes(PCA):
    """Bits that are not alike, and binary data."""

    def prior(self) -> Distribution:
        odds = torch.linspace(0.1, 0.7, self.w.shape[1], dtype=torch.float64)
        return Independent(Bernoulli(odds), 1)

    def likelihood(self, z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=(z @ self.w.mT + self.mu)[..., None, None, :]), 3)


class OneHotCodes(BinaryCodes):
    """Two parts, each one of three."""

    def prior(self) -> Distribution:
        odds = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], dtype=torch.float64)
        return Independent(OneHotCategorical(odds), 1)

    def likelihood(self, z: Tensor) -> Distribution:
        return super().likelihood(z.flatten(-2))


class OneOfMany(BinaryCodes):
    """A single part, whose own support is the product."""

    def prior(self) -> Distribution:
        return OneHotCategorical(torch.linspace(0.1, 0.3, 5, dtype=torch.float64))


EVERY_X = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize(("model", "states"), [(BinaryCodes(5), 32), (OneHotCodes(6), 9), (OneOfMany(5), 5)])
def test_enumeration_loses_no_state(model, states, monkeypatch):
    monkeypatch.setattr(exact, "ROWS", 4)  # several parts
    estimate = run(enumeration, model, EVERY_X)
    assert (estimate.name, estimate.kind) == ("enumeration", "exact")
    assert torch.from_numpy(estimate.per_datum).exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    assert len(arrangements(*exact._parts(model)).unique(dim=0)) == states


def test_enumeration_is_the_sum_by_hand():
    model = BinaryCodes(3)
    odds = torch.linspace(0.1, 0.7, 3).tolist()
    x = EVERY_X[[0, 7, 63]]
    total = torch.zeros(3, dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=3):
        weight = math.prod(p if bit else 1 - p for p, bit in zip(odds, bits, strict=True))
        code = torch.tensor(bits, dtype=torch.float64)
        total += weight * model.likelihood(code[None]).log_prob(x).exp().detach()
    np.testing.assert_allclose(run(enumeration, model, x).per_datum, total.log(), rtol=0, atol=1e-6)


def test_enumeration_takes_two_to_the_sixteen_states_and_no_more():
    assert len(arrangements(*exact._parts(BinaryCodes(16)))) == 2**16
    with pytest.raises(UserError, match=r"at most 2\^16 = 65536 codes, this prior has 2\^17 = 131072: use iwae"):
        enumeration(BinaryCodes(17))
    with pytest.raises(UserError, match="finitely many codes, this one is Normal.*use ais or iwae"):
        enumeration(PCA(2))
