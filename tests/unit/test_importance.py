"""Importance-weighted bounds against a model whose evidence is known."""

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, data, implicit, mean_field, run, stderr, widened

from avb_service.likelihood.elbo import elbo
from avb_service.likelihood.importance import iwae
from avb_service.likelihood.proposals import own


def weighted(model: PCA, x: torch.Tensor, k: int, draws: int = 64, inflate: float = 1.2, **options):
    return run(lambda model: iwae(model, own(model, draws, inflate), k), model, x, **options)


@pytest.mark.parametrize("k", [2, 16])
def test_iwae_under_the_exact_posterior_is_exact(k):
    model = PCA(3)
    x = data(model, 30)
    estimate = weighted(model, x, k)
    assert (estimate.name, estimate.kind) == (f"iwae_{k}", "lower_bound")
    np.testing.assert_allclose(estimate.per_datum, model.exact(x), rtol=0, atol=1e-9)


def test_iwae_of_one_draw_is_the_elbo():
    model = PCA(3, mean_field)
    x = data(model, 4000)
    one, bound = weighted(model, x, 1), run(lambda model: elbo(model, 8), model, x)
    assert one.value == pytest.approx(bound.value, abs=3 * stderr(torch.from_numpy(one.per_datum - bound.per_datum)))
    assert stderr(torch.from_numpy(one.per_datum - bound.per_datum)) < 0.2


def test_iwae_does_not_decrease_in_k():
    model = PCA(3, widened(1.6, 0.3))
    x = data(model, 2000)
    values = [torch.from_numpy(weighted(model, x, k, seed=k).per_datum) for k in (1, 2, 8, 32)]
    for fewer, more in zip(values, values[1:], strict=False):
        difference = more - fewer
        assert difference.mean() > -3 * stderr(difference)
    assert (values[-1] - values[0]).mean() > 10 * stderr(values[-1] - values[0])


PROPOSALS = {"wide": widened(1.6, 0.3), "narrow": widened(0.8, 0.1), "fitted to an implicit one": implicit}


@pytest.mark.parametrize("q", PROPOSALS.values(), ids=PROPOSALS)
@pytest.mark.parametrize("k", [2, 64])
def test_iwae_does_not_exceed_the_evidence(q, k):
    model = PCA(3, q)
    x = data(model, 2000)
    difference = torch.from_numpy(weighted(model, x, k).per_datum) - model.exact(x)
    assert difference.mean() < 3 * stderr(difference)


@pytest.mark.parametrize("q", [PROPOSALS["wide"], implicit], ids=["wide", "fitted"])
def test_importance_weights_are_unbiased(q):
    """E[p^(x)] = p(x). Draws that had also been used to fit the proposal would bias it upwards."""
    model = PCA(3, q)
    x = data(model, 2000)
    ratio = (torch.from_numpy(weighted(model, x, 16, draws=8, inflate=2.0).per_datum) - model.exact(x)).exp()
    assert abs(ratio.mean().item() - 1) < 4 * stderr(ratio)


def test_the_proposal_of_an_implicit_posterior_is_good():
    model = PCA(3, implicit)
    x = data(model, 200)
    estimate = weighted(model, x, 256, draws=256)
    np.testing.assert_allclose(estimate.per_datum, model.exact(x), rtol=0, atol=0.25)
    assert abs((torch.from_numpy(estimate.per_datum) - model.exact(x)).mean()) < 0.02


@pytest.mark.parametrize("mib", [1, 64])
def test_exact_values_do_not_hang_on_how_data_are_cut(mib):
    model = PCA(2)
    x = data(model, 300)
    np.testing.assert_allclose(weighted(model, x, 512, mib=mib).per_datum, model.exact(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [64, 256])
def test_the_own_error_is_how_far_other_draws_move_the_mean(k):
    model = PCA(3, widened(1.3, 0.1))
    x = data(model, 50)
    again = [weighted(model, x, k, seed=seed) for seed in range(100)]
    seen = torch.tensor([each.value for each in again]).std().item()
    claimed = torch.tensor([each.own_error for each in again]).mean().item()
    assert claimed == pytest.approx(seen, rel=0.25)  # a spread over 100 is known within 7 %
    assert again[0].own_error < again[0].stderr / 3, "data differ by more than draws do"
    assert torch.tensor(weighted(model, x, 1).own_error).isnan(), "one draw says nothing of its spread"
