"""One-hot codes and their relaxation, where their law is known."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, OneHotCategorical, kl_divergence
from torch.nn.functional import gumbel_softmax

from avb_service.algorithm import Batch
from avb_service.algorithms.gumbel_vae import GumbelVAE, GumbelVAEConfig
from avb_service.discrete import OneHots
from avb_service.distributions import DataSpec
from avb_service.errors import ConfigError, UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, surgery
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import generator, seeded

SPEC = DataSpec((1, 1, 6), "binary", 1, torch.full((1, 1, 6), 0.5))
SMALL = MLPConfig(hidden=(8,), activation="tanh")


def model(variables: int = 2, categories: int = 3, **settings: object) -> GumbelVAE:
    with seeded("model"):
        config = GumbelVAEConfig(variables=variables, categories=categories, encoder=SMALL, decoder=SMALL, **settings)
        made = GumbelVAE(config, SPEC).double()
        for p in made.parameters():
            p.data = torch.randn_like(p)
    return made


def data(n: int) -> Tensor:
    return (torch.rand(n, 1, 1, 6, generator=generator("cpu", "data")) < 0.5).double()


def logits(*shape: int) -> Tensor:
    return 1.5 * torch.randn(shape, dtype=torch.float64, generator=generator("cpu", "logits"))


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_the_largest_of_a_relaxed_draw_follows_the_probabilities(tau):
    """At any temperature: the Gumbel-max trick."""
    of, n = logits(5), 40_000
    with seeded("draws"):
        chosen = gumbel_softmax(of.expand(n, 5), tau).argmax(-1)
    counts, expected = torch.bincount(chosen, minlength=5), n * of.softmax(-1)
    assert ((counts - expected).square() / expected).sum() < scipy.stats.chi2.ppf(1 - 1e-5, 4)


def test_one_hot_draws_follow_the_probabilities():
    of, n = logits(3, 4, 5), 20_000
    with seeded("draws"):
        z = OneHots(of).sample((n,))
    assert z.shape == (n, 3, 20)
    assert (z.unflatten(-1, (4, 5)).sum(-1) == 1).all()
    p = OneHots(of).mean
    assert ((z.mean(0) - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    torch.testing.assert_close(p, of.softmax(-1).flatten(-2))


def test_cold_draws_are_one_hot_and_hot_ones_uniform():
    of = logits(2000, 5)
    with seeded("draws"):
        cold, hot = gumbel_softmax(of, 1e-3), gumbel_softmax(of, 1e4)
    # two Gumbel variables are closer than 0.01, which a temperature of 0.001 tells apart, in a percent of all draws
    assert (cold.amax(-1) > 0.99).double().mean() > 0.97
    torch.testing.assert_close(hot, torch.full_like(hot, 0.2), rtol=0, atol=2e-3)


def test_a_straight_through_draw_is_one_hot_and_has_the_gradient_of_the_relaxed_one():
    of, direction = logits(7, 5).requires_grad_(), logits(7, 5)
    gradients = []
    for hard in (True, False):
        with seeded("draws"):
            z = gumbel_softmax(of, 0.7, hard=hard)
        gradients.append(torch.autograd.grad((z * direction).sum(), of)[0])
        torch.testing.assert_close(z.sum(-1), torch.ones(7, dtype=torch.float64))
        assert bool(((z - z.round()).abs() < 1e-12).all()) == hard
    torch.testing.assert_close(*gradients)


def test_the_divergence_from_uniform_is_log_k_less_the_entropy():
    q, p = OneHots(logits(7, 4, 5)), OneHots(torch.zeros(4, 5, dtype=torch.float64))
    entropy = Independent(Categorical(logits=logits(7, 4, 5)), 1).entropy()
    torch.testing.assert_close(q.entropy(), entropy)
    torch.testing.assert_close(kl_divergence(q, p), 4 * math.log(5) - entropy)
    other = logits(4, 5).flip(0)
    torchs = kl_divergence(
        Independent(OneHotCategorical(logits=logits(7, 4, 5)), 1),
        Independent(OneHotCategorical(logits=other), 1).expand((7,)),
    )
    torch.testing.assert_close(kl_divergence(q, OneHots(other)), torchs)


def test_one_hot_codes_are_torchs_laid_flat():
    of = logits(3, 2, 4)
    q, torchs = OneHots(of), Independent(OneHotCategorical(logits=of), 1)
    codes = q.enumerate_support()
    assert (q.batch_shape, q.event_shape, codes.shape) == ((3,), (8,), (16, 3, 8))
    torch.testing.assert_close(q.log_prob(codes), torchs.log_prob(codes.unflatten(-1, (2, 4))))
    torch.testing.assert_close(q.log_prob(codes).exp().sum(0), torch.ones(3, dtype=torch.float64))
    assert q.support.is_discrete


def test_the_temperature_falls_by_the_same_factor_each_round():
    config = GumbelVAEConfig(temperature=2.0, temperature_min=0.5, anneal=100)
    taus = [config.temperature_at(torch.tensor(float(round_))).item() for round_ in (0, 25, 50, 100, 5000)]
    assert taus == pytest.approx([2.0, 2**0.5, 1.0, 0.5, 0.5])
    assert GumbelVAEConfig(anneal=0).temperature_at(torch.tensor(0.0)) == 0.5


def test_the_relaxed_loss_tends_to_minus_the_elbo_as_the_temperature_falls():
    """Where a code is one-hot, nothing is relaxed."""
    x = data(4).repeat(500, 1, 1, 1)
    differences = []
    for tau in (100.0, 1e-3):
        made = model(temperature=tau, temperature_min=tau)
        elbo = Evaluator(made, LikelihoodConfig(elbo_draws=2000)).score("elbo", x[:4]).value
        with seeded("loss"):
            loss = made.loss(Batch(x, None, torch.tensor(0.0)))
        differences.append(abs(loss.value.item() + elbo))
    assert differences[1] < 0.15 < differences[0]  # 2000 draws of a term that varies by about 2 nats: 0.05


def test_what_applies_to_categorical_codes_and_what_refuses():
    made, x = model(), data(4)
    evaluator = Evaluator(made, LikelihoodConfig(importance_draws=2000, elbo_draws=200))
    found = {estimate.name: estimate for estimate in evaluator.evaluate(x, "certified")}
    assert set(found) == {"iwae_2000", "elbo", "enumeration"}
    total = torch.zeros(4, dtype=torch.float64)
    for choice in itertools.product(torch.eye(3, dtype=torch.float64), repeat=2):
        total += made.likelihood(torch.cat(choice)[None]).log_prob(x).exp().detach() / 9
    np.testing.assert_allclose(found["enumeration"].per_datum, total.log(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["iwae_2000"].per_datum, total.log(), rtol=0, atol=0.3)
    for name in ("ais", "iwae_mixture", "quadrature", "ppca", "elbo_corrected", "elbo_ceiling"):
        with pytest.raises(UserError, match="use .*(enumeration|iwae|elbo)"):
            evaluator.score(name, x)
    with pytest.raises(UserError, match=r"has 10\^80 = 1000"):
        Evaluator(model(80, 10), LikelihoodConfig()).score("enumeration", x)
    assert surgery(made, x, 50, 0).kl == pytest.approx(kl_divergence(made.posterior(x), made.prior()).mean().item())


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        GumbelVAEConfig.parse({"variables": 0, "categories": 1, "temperature": 0.0})
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="temperature_min: 0.9 is above algorithm.temperature 0.5"):
        GumbelVAEConfig.parse({"temperature": 0.5, "temperature_min": 0.9})
    assert GumbelVAEConfig().objection("real").startswith("observation: bernoulli needs binary data")
