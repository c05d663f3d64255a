"""ELBO surgery where its terms are known."""

import math

import pytest
import torch
from linear_gaussian import PCA, data
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from avb_service.distributions import ImplicitPosterior
from avb_service.errors import DataError
from avb_service.likelihood import elbo_surgery
from avb_service.likelihood.elbo_surgery import surgery


class Chosen(PCA):
    """A posterior with means and scales of one's own choice for each datum, found by its first pixel.

    Args:
        means: [N, D].
        scales: [N, D].
        hidden: whether it shows its density.
    """

    def __init__(self, means: Tensor, scales: Tensor, hidden: bool = False) -> None:
        super().__init__(means.shape[1])
        self.means, self.scales, self.hidden = means.double(), scales.double(), hidden

    def numbered(self) -> Tensor:
        x = torch.zeros(len(self.means), 1, 1, 6, dtype=torch.float64)
        x[:, 0, 0, 0] = torch.arange(len(x))
        return x

    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        rows = x[:, 0, 0, 0].long()
        q = Independent(Normal(self.means[rows], self.scales[rows]), 1)
        return ImplicitPosterior(q.rsample) if self.hidden else q


def uniform(n: int, dim: int, spread: float, scale: float, **options: bool) -> Chosen:
    means = spread * torch.linspace(-1, 1, n)[:, None].expand(n, dim)
    return Chosen(means, torch.full((n, dim), scale), **options)


def test_the_terms_are_those_of_the_elbo():
    model = uniform(40, 2, 1.0, 0.5)
    x = data(model, 40)
    x[:, 0, 0, 0] = torch.arange(40)
    found = surgery(model, x, 200, 0)
    q = model.posterior(x)
    assert found.kl == pytest.approx(kl_divergence(q, model.prior()).mean().item(), abs=1e-9)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)
    # E_q log N(x; W z + mu, s^2) of a Gaussian q
    noise = model.w.square().sum(0) @ q.variance.mT
    squares = (x.flatten(1) - q.mean @ model.w.mT - model.mu).square().sum(1)
    exact = -(squares + noise) / (2 * 0.49) - 6 * math.log(0.7) - 3 * math.log(2 * math.pi)
    assert found.reconstruction == pytest.approx(exact.mean().item(), rel=0.01)


def test_codes_that_do_not_tell_data_apart_hold_no_information():
    model = uniform(30, 2, 0.0, 0.5)
    found = surgery(model, model.numbered(), 3, 0)
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert found.marginal_kl == pytest.approx(found.kl, abs=1e-9)
    assert found.active_units == 0


def test_codes_that_are_far_apart_hold_the_number_of_the_datum():
    model = uniform(30, 2, 300.0, 0.5)
    found = surgery(model, model.numbered(), 3, 0)
    assert found.mutual_information == pytest.approx(math.log(30), abs=1e-6)
    assert found.active_units == 2


@pytest.mark.parametrize("part", [3, 256])
def test_mutual_information_is_what_the_integral_gives(monkeypatch, part):
    monkeypatch.setattr(elbo_surgery, "PART", part)
    means, scales = torch.tensor([-1.0, 0.1, 0.4, 2.0, 2.5]), torch.tensor([0.3, 0.5, 1.0, 0.2, 0.4])
    model = Chosen(means[:, None], scales[:, None])
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    each = Normal(means.double()[:, None], scales.double()[:, None]).log_prob(grid)
    mixed = each.logsumexp(0) - math.log(5)
    exact = (each.exp() * (each - mixed)).sum(1).mean().item() * (grid[1] - grid[0]).item()
    found = surgery(model, model.numbered(), 4000, 0)
    assert found.mutual_information == pytest.approx(exact, abs=0.02)


def test_the_marginal_kl_vanishes_where_the_codes_fill_the_prior():
    """The exact posteriors of the model's own data have the prior as their mean."""
    model = PCA(2)
    few, many = (surgery(model, data(model, n), 4, 0).marginal_kl for n in (20, 1000))
    assert few > 0.2
    assert abs(many) < 0.05


def test_each_dimension_has_its_own_kl_and_those_the_data_move_are_active():
    n = 50
    means = torch.stack([torch.linspace(-2, 2, n), torch.zeros(n), torch.linspace(-0.1, 0.1, n)], 1)
    scales = torch.tensor([0.3, 1.0, 0.9]).expand(n, 3)
    model = Chosen(means, scales)
    found = surgery(model, model.numbered(), 2, 0)
    assert found.kl_per_dimension.sum().item() == pytest.approx(found.kl, abs=1e-9)
    assert found.kl_per_dimension[1].item() == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(found.variance_of_means, means.double().var(0))
    assert found.variance_of_means[2] < 0.01 < found.variance_of_means[0]
    assert found.active_units == 1


def test_an_implicit_posterior_is_replaced_by_the_gaussian_of_its_moments():
    plain, hidden = uniform(40, 2, 1.0, 0.4), uniform(40, 2, 1.0, 0.4, hidden=True)
    x = plain.numbered()
    exact, fitted = surgery(plain, x, 200, 0), surgery(hidden, x, 200, 0)
    assert not exact.fitted and fitted.fitted
    assert fitted.kl == pytest.approx(exact.kl, abs=0.02)
    assert fitted.mutual_information == pytest.approx(exact.mutual_information, abs=0.03)
    assert fitted.active_units == exact.active_units


def test_moments_of_draws_do_not_make_a_dead_unit_active():
    """Means of 32 draws scatter by 1/32 > 0.01 of themselves."""
    model = uniform(400, 2, 0.0, 1.0, hidden=True)
    found = surgery(model, model.numbered(), 1, 0, moment_draws=32)
    assert found.variance_of_means.abs().max() < 0.01
    assert found.active_units == 0


def test_what_is_bounded_for_an_implicit_posterior_is_bounded():
    """Two humps for each datum, told apart by their numbers alone: I = log 2 here."""

    class Humps(Chosen):
        def posterior(self, x: Tensor) -> ImplicitPosterior:
            side = torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]).double()[x[:, 0, 0, 0].long()]

            def draw(shape: torch.Size) -> Tensor:
                pick = torch.randint(2, (*shape, len(x)))
                centre = torch.where(pick == 0, side[:, 0], side[:, 1])
                return (centre + 0.05 * torch.randn(*shape, len(x), dtype=torch.float64))[..., None]

            return ImplicitPosterior(draw)

    model = Humps(torch.zeros(2, 1), torch.ones(2, 1))
    found = surgery(model, model.numbered(), 500, 0)
    # the two Gaussians tell them apart by their widths: N(0, 1) and N(0, 9) at 1 and at 3
    energies = ((0.5, 1 / 18 + math.log(3)), (0.5 + math.log(3), 4.5))
    told = [math.log(2 / (1 + math.exp(own - other))) for own, other in energies]
    assert found.mutual_information == pytest.approx(sum(told) / 2, abs=0.02)
    assert found.mutual_information < math.log(2) - 0.1
    entropy = math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.05**2)
    squares = (1 + 9) / 2 + 0.05**2
    exact = -entropy + 0.5 * squares + 0.5 * math.log(2 * math.pi)
    assert found.kl < exact


class Correlated(PCA):
    def posterior(self, x: Tensor) -> MultivariateNormal:
        factor = torch.tensor([[0.5, 0.0], [0.4, 0.3]], dtype=torch.float64)
        return MultivariateNormal(x[:, 0, 0, :2], scale_tril=factor.expand(len(x), 2, 2))


def test_correlated_codes_have_more_kl_than_their_coordinates():
    model = Correlated(2)
    found = surgery(model, data(model, 40), 2, 0)
    assert found.kl_per_dimension.sum() < found.kl - 0.1


def test_metrics_have_names():
    model = uniform(30, 2, 1.0, 0.5)
    named = surgery(model, model.numbered(), 2, 0).metrics("test")
    assert set(named) == {
        "test/surgery.reconstruction",
        "test/surgery.mutual_information",
        "test/surgery.marginal_kl",
        "test/surgery.kl",
        "test/surgery.active_units",
        "test/surgery.kl_dimension_00",
        "test/surgery.kl_dimension_01",
    }
    hidden = uniform(30, 2, 1.0, 0.5, hidden=True)
    fitted = surgery(hidden, hidden.numbered(), 2, 0).metrics("test")
    assert {name.replace(".gaussian_fit", "") for name in fitted} == set(named)
    assert all(name.startswith("test/surgery.gaussian_fit.") for name in fitted)


def test_one_datum_cannot_be_compared():
    with pytest.raises(DataError, match="compares data with one another, given 1"):
        surgery(PCA(2), torch.zeros(1, 1, 1, 6, dtype=torch.float64), 2, 0)


def test_it_is_repeatable_and_leaves_the_model_alone():
    model = uniform(30, 2, 1.0, 0.5).train()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = surgery(model, model.numbered(), 2, 0)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert surgery(model, model.numbered(), 2, 0).metrics("t") == first.metrics("t")
    assert surgery(model, model.numbered(), 2, 1).mutual_information != first.mutual_information
