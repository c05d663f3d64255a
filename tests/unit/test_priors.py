"""Priors that are no Gaussian: mixtures fitted to codes and flows, and annealing from what they are like."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from avb_service.errors import DivergenceError
from avb_service.figures import latents
from avb_service.likelihood.ais import ais
from avb_service.likelihood.anneal import AnnealConfig
from avb_service.likelihood.bdmc import bdmc
from avb_service.likelihood.proposals import PilotConfig, from_prior, refined
from avb_service.networks.flow import AffineFlowConfig, FlowPrior, SplineFlowConfig
from avb_service.networks.mixture import Mixture, MixtureConfig
from avb_service.seeding import seeded
from tests.unit.linear_gaussian import PCA, data, run, scored

SPLINE = SplineFlowConfig(transforms=2, bins=4, hidden=(16,))
AFFINE = AffineFlowConfig(transforms=2, hidden=(16,))
RECIPE = AnnealConfig(temperatures=30, chains=8)


def mixture() -> Mixture:
    """Two components of a plane, four standard deviations apart, of unlike shape and weight."""
    prior = Mixture(MixtureConfig(components=2), 2).double()
    prior.weights.copy_(torch.tensor([0.3, 0.7]))
    prior.means.copy_(torch.tensor([[-2.0, 1.0], [2.0, 0.0]]))
    prior.factors.copy_(torch.tensor([[[0.6, 0.0], [0.5, 0.4]], [[0.9, 0.0], [-0.3, 1.2]]]))
    return prior


def flow(config: SplineFlowConfig | AffineFlowConfig, spread: float = 0.5) -> nn.Module:
    """A flow whose weights are far enough from their start to bend the plane."""
    with seeded("flow"):
        prior = FlowPrior(config, 2).double()
        with torch.no_grad():
            for p in prior.parameters():
                p.add_(spread * torch.randn_like(p) / math.sqrt(p.shape[-1]))
    return prior


PRIORS = {"mixture": mixture, "spline": lambda: flow(SPLINE), "affine": lambda: flow(AFFINE, 0.2)}


@pytest.fixture(params=PRIORS)
def prior(request):
    return PRIORS[request.param]()


def grid(width: float, cells: int) -> tuple[torch.Tensor, float]:
    side = torch.linspace(-width, width, cells, dtype=torch.float64)
    return torch.cartesian_prod(side, side), (side[1] - side[0]).item() ** 2


class Linear(PCA):
    """A linear decoder with a prior of one's own, so that log p(x) is an integral over a plane."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__(2)
        self.p = prior

    def prior(self):
        return self.p()

    def log_evidence(self, x):
        z, cell = grid(10, 201)
        with torch.no_grad():
            return torch.logsumexp(self.log_joint(x, z[:, None]), 0) + math.log(cell)


def test_a_density_is_one_in_all(prior):
    z, cell = grid(12, 241)
    with torch.no_grad():
        assert prior().log_prob(z).exp().sum() * cell == pytest.approx(1, abs=2e-3)  # splines have corners


def test_draws_follow_the_density(prior):
    """The mean of a bounded function over draws is its integral."""
    z, cell = grid(12, 241)
    with seeded("draws"), torch.no_grad():
        draws = torch.tanh(prior().sample((20_000,)))
        weights = prior().log_prob(z).exp()[:, None] * cell
    expected = (weights * torch.tanh(z)).sum(0)
    stderr = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() < 4 * stderr + 1e-3).all()


def test_a_flow_counts_its_volume():
    prior = flow(SPLINE)
    z = torch.randn(5, 2, dtype=torch.float64)
    for point in z:
        jacobian = torch.autograd.functional.jacobian(lambda v: prior.transform()(v), point)
        u = prior.transform()(point)
        expected = -0.5 * u.square().sum() - math.log(2 * math.pi) + jacobian.det().abs().log()
        assert prior().log_prob(point).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("config", [SPLINE, AFFINE])
def test_a_flow_begins_as_the_gaussian(config):
    z = torch.randn(100, 2)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(FlowPrior(config, 2)().log_prob(z), expected)


def test_annealing_finds_the_evidence(prior):
    """A lower bound that is nearly tight, and one on the other side for data of the model's own."""
    model = Linear(prior)
    x = data(model, 6)
    exact = model.log_evidence(x)
    start = refined(model, PilotConfig(temperatures=30))
    found = run(lambda m: ais(m, start, RECIPE), model, x)
    assert found.value == pytest.approx(exact.mean().item(), abs=0.15)  # 8 chains are off by 0.1 a datum
    both = scored(bdmc(model, start, RECIPE), torch.arange(6))
    assert both["gap"].mean() == pytest.approx(0, abs=0.15)


def test_chains_that_start_from_the_prior_start_where_it_is():
    prior = mixture()
    prior.means.add_(100)
    r = from_prior(Linear(prior))(torch.zeros(3, 1, 1, 6))
    assert r.batch_shape == (3,)
    torch.testing.assert_close(r.mean[0], prior().mean, atol=0.2, rtol=0)
    torch.testing.assert_close(r.variance[0], prior().variance, atol=0, rtol=0.1)


def test_a_mixture_is_fitted_to_codes():
    truth, fitted = mixture(), Mixture(MixtureConfig(components=2), 2).double()
    with seeded("codes"):
        codes = truth().sample((4000,))
        fitted.fit(codes)
    order = fitted.means[:, 0].argsort()
    torch.testing.assert_close(fitted.means[order], truth.means, atol=0.1, rtol=0)
    torch.testing.assert_close(fitted.weights[order], truth.weights, atol=0.03, rtol=0)
    covariance = truth.factors @ truth.factors.mT
    torch.testing.assert_close(fitted().component_distribution.covariance_matrix[order], covariance, atol=0.15, rtol=0)
    again = Mixture(MixtureConfig(components=2), 2).double()
    with seeded("codes"):
        truth().sample((4000,))
        again.fit(codes)
    assert all(torch.equal(one, other) for one, other in zip(fitted.buffers(), again.buffers(), strict=True))


def test_no_component_is_narrower_than_the_noise_on_codes():
    fitted = Mixture(MixtureConfig(components=3), 2)
    fitted.fit(torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).repeat(4, 1), noise=0.5)
    deviations = torch.linalg.eigvalsh(fitted().component_distribution.covariance_matrix).sqrt()
    assert (deviations > 0.5 - 1e-4).all() and (deviations < 0.6).all()


def test_codes_that_are_not_finite_are_divergence():
    with pytest.raises(DivergenceError, match="the codes are not finite"):
        Mixture(MixtureConfig(components=2), 2).fit(torch.tensor([[0.0, math.nan]] * 4))


def test_components_are_drawn_as_ellipses():
    model = Linear(mixture())
    figure = latents(model, data(model, 30))
    ellipses = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_angle")]
    assert len(ellipses) == 2
    for ellipse, centre, factor in zip(ellipses, model.p.means, model.p.factors, strict=True):
        assert ellipse.get_center() == pytest.approx(centre.tolist())
        # a point at the end of the long axis is 1 standard deviation off
        angle, half = math.radians(ellipse.get_angle()), ellipse.get_width() / 2
        end = centre + half * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        gaussian = MultivariateNormal(centre, scale_tril=factor)
        fall = gaussian.log_prob(centre) - gaussian.log_prob(end)
        assert fall.item() == pytest.approx(0.5, abs=1e-6)
        assert ellipse.get_width() >= ellipse.get_height()
