"""f-divergences: conjugates against a supremum that is searched for, and what equality means."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from avb_service.divergences import DIVERGENCES

V = torch.linspace(-3, 3, 25, dtype=torch.float64)

divergences = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def supremum(f, t: float) -> float:
    """sup_u (u t - f(u)) over u = e^s: a grid finds the neighbourhood, a search the point."""

    def loss(s: float) -> float:
        return (f(number(math.exp(s))) - t * math.exp(s)).item()

    grid = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    start = grid[(f(grid.exp()) - t * grid.exp()).argmin()].item()
    found = minimize_scalar(loss, bounds=(start - 0.02, start + 0.02), method="bounded", options={"xatol": 1e-9})
    return -min(found.fun, loss(start))


@divergences
def test_conjugates_are_the_supremum(divergence):
    """At every t that the activation can give; where u would have to be negative (Pearson below -2) f* continues it."""
    for t in divergence.activation(V).tolist():
        if divergence is DIVERGENCES["pearson"] and t < -2:
            continue
        assert divergence.conjugate(number(t)).item() == pytest.approx(supremum(divergence.f, t), abs=1e-6)


@divergences
def test_the_penalty_is_the_conjugate_of_the_activation(divergence):
    torch.testing.assert_close(
        divergence.composed(V), divergence.conjugate(divergence.activation(V)), rtol=1e-9, atol=1e-9
    )


@divergences
def test_the_penalty_stays_finite_where_the_conjugate_does_not(divergence):
    v = torch.tensor([-60.0, 60.0], requires_grad=True)
    value = divergence.composed(v) - divergence.activation(v)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), v)[0].isfinite().all()


@divergences
def test_the_threshold_is_what_a_perfect_critic_says_where_both_densities_agree(divergence):
    if divergence is DIVERGENCES["total_variation"]:  # f has a corner at 1, with 0 in the middle of its slopes
        assert divergence.at_equality == 0.0
        return
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence.f(one), one)
    assert slope.item() == pytest.approx(divergence.at_equality, abs=1e-12)


@divergences
def test_activations_increase(divergence):
    assert (divergence.activation(V).diff() > 0).all()


@divergences
def test_the_bound_is_tight_at_the_ratio_of_two_gaussians_and_nowhere_above(divergence):
    """D_f(N(0,1) || N(0.5,1.2^2)) by quadrature, with t = f'(p/q), and with that moved either way."""
    x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    p = torch.distributions.Normal(number(0.0), number(1.0)).log_prob(x)
    q = torch.distributions.Normal(number(0.5), number(1.2)).log_prob(x)

    def mean(density: Tensor, values: Tensor) -> float:
        return torch.trapezoid(density.exp() * values, x).item()

    u = (p - q).exp().requires_grad_()
    (t,) = torch.autograd.grad(divergence.f(u).sum(), u)
    truth = mean(q, divergence.f(u.detach()))
    assert mean(p, t) - mean(q, divergence.conjugate(t)) == pytest.approx(truth, abs=1e-7)
    for shift in (0.97, 1.03):
        (s,) = torch.autograd.grad(divergence.f(v := (u.detach() * shift).requires_grad_()).sum(), v)
        assert mean(p, s) - mean(q, divergence.conjugate(s)) < truth + 1e-9
