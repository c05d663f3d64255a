"""Unknowns under constraints, in their own units: declared, transformed with their Jacobians, whitened."""

import math
import re

import pytest
import torch
from torch.distributions import Dirichlet, Gamma, LogNormal, MultivariateNormal, Normal, constraints

from avb_service.bayes import ConstrainedModel, Unknown
from avb_service.errors import UserError
from avb_service.pathfinder import pathfinder

YEARS = torch.arange(1900.0, 2000.0, dtype=torch.float64)


class Regression(ConstrainedModel):
    """A line through numbers that depend on the year, with flat priors and a known scale of 5."""

    shape = (1, 1, 100)
    declared = {"intercept": Unknown(), "slope": Unknown()}

    def log_density(self, x, intercept, slope):
        return Normal(intercept[..., None] + slope[..., None] * YEARS, 5.0).log_prob(x.flatten(1)).sum(-1)


class Shares(ConstrainedModel):
    """A simplex, a positive number and two free ones, with densities that are known."""

    shape = (1, 1, 1)
    declared = {
        "shares": Unknown(constraints.simplex, (3,)),
        "scale": Unknown(constraints.positive),
        "effects": Unknown(shape=(2,)),
    }

    def log_density(self, x, shares, scale, effects):
        log_p = Dirichlet(torch.tensor([2.0, 3.0, 4.0])).log_prob(shares) + LogNormal(1.0, 0.5).log_prob(scale)
        return log_p + Normal(0.0, 2.0).log_prob(effects).sum(-1)


def test_unknowns_on_any_scale_are_whitened_to_their_posterior():
    model = Regression().double()
    x = (3.0 + 0.5 * YEARS + 5 * torch.randn(100, generator=torch.Generator().manual_seed(0))).view(1, 1, 1, -1)
    model.prepare(x)
    design = torch.stack([torch.ones_like(YEARS), YEARS], -1)
    covariance = 25 * (design.mT @ design).inverse()
    mean = covariance @ design.mT @ x.flatten() / 25
    expected = MultivariateNormal(mean, covariance)
    z = torch.randn(50, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    white = Normal(0.0, 1.0).log_prob(z).sum(-1)
    evidence = model.log_joint(x, z) - white  # log p(x), whatever z, where the posterior is N(0, I)
    torch.testing.assert_close(evidence, evidence[:1].expand_as(evidence), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        model.natural(torch.zeros(1, 1, 2, dtype=torch.float64))[0, 0], mean, atol=1e-4, rtol=1e-6
    )
    natural = model.natural(z)[:, 0]
    scale = model.factor.diagonal().log().sum()
    torch.testing.assert_close(expected.log_prob(natural), white[:, 0] - scale, atol=1e-4, rtol=0)


def test_a_density_keeps_its_mass_under_the_transforms():
    """The mean of p(z) / q(z) over draws of a wide q is 1 where the Jacobians are right."""
    model = Shares().double()
    q = Normal(torch.zeros(5, dtype=torch.float64), 2.0)
    torch.manual_seed(0)
    z = q.sample((200_000, 1))
    weights = (model.log_joint(torch.zeros(1, 1, 1, 1, dtype=torch.float64), z) - q.log_prob(z).sum(-1)).exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=4 * weights.std().item() / math.sqrt(len(z)))
    assert (model.dim, model.unknowns) == (
        5,
        ("shares[1]", "shares[2]", "shares[3]", "scale", "effects[1]", "effects[2]"),
    )


def test_a_gaussian_is_found_where_a_funnel_rises_without_bound():
    def funnel(v):
        return Normal(0.0, 3.0).log_prob(v[..., 0]) + Normal(0.0, (v[..., :1] / 2).exp()).log_prob(v[..., 1:]).sum(-1)

    mean, factor = pathfinder(funnel, torch.zeros(9, dtype=torch.float64))
    assert mean.isfinite().all() and (factor.diagonal() > 0).all()


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (lambda v: v.square().sum(-1), "no mode was found.*It may be unbounded"),
        (lambda v: -v[..., 0].square(), "no mode was found.*flat in some direction"),
        (lambda v: v.sum(-1).log(), r"the log joint is -inf at the start.*\[0.0, 0.0\]"),
    ],
)
def test_a_density_without_a_mode_is_refused_with_its_values(density, message):
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        pathfinder(density, torch.zeros(2, dtype=torch.float64))


def test_a_constraint_without_a_transform_is_named():
    with pytest.raises(UserError, match="for which torch.distributions has no transform"):
        type("Counts", (ConstrainedModel,), {"declared": {"n": Unknown(constraints.nonnegative_integer)}})


def test_a_positive_number_has_the_posterior_of_its_conjugate():
    class Rate(ConstrainedModel):
        shape, declared = (1, 1, 1), {"rate": Unknown(constraints.positive)}

        def log_density(self, x, rate):
            return Gamma(400.0, 100.0).log_prob(rate)

    model = Rate().double()
    model.prepare(torch.zeros(1, 1, 1, 1))
    rate = model.natural(torch.randn(100_000, 1, 1, dtype=torch.float64)).flatten()
    assert rate.mean().item() == pytest.approx(4.0, rel=0.01) and rate.std().item() == pytest.approx(0.2, rel=0.05)
