"""Diagnoses of adversaries whose T is known to be right, or known to be wrong."""

import math

import pytest
import torch
from known_adversary import BASIS, BINARY, INPUT, SMALL, Always, Constant, Known, Optimal, gaussian, one_hot
from linear_gaussian import PCA
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, kl_divergence

from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.algorithms.avb_ac import AVBAC, AVBACConfig
from avb_service.errors import DataError, UserError
from avb_service.likelihood import adversary as module
from avb_service.likelihood.adversary import codes_seen, diagnose
from avb_service.optim import TurnConfig
from avb_service.records import NATS, Diagnosis, Estimate, Key, Kind, excess, verdict

N = 50
Q = gaussian(N, 3, "q")
EYE = torch.eye(3, dtype=torch.float64)
KL = kl_divergence(Q, MultivariateNormal(torch.zeros(3, dtype=torch.float64), EYE)).mean().item()
SEEN = 10**6


def plain(t: torch.nn.Module, q: MultivariateNormal = Q) -> AVB:
    """AVB with a known posterior, and a T of choice."""
    model = AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY).double()
    model.encoder, model.discriminator = Constant(Known(q, q.loc, q.covariance_matrix)), t
    return model


def adaptive(t: torch.nn.Module) -> AVBAC:
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    model.encoder, model.discriminator = Constant(Known(Q, Q.loc, Q.covariance_matrix)), t
    return model


def contrast_factor(model: AVBAC) -> Tensor:
    return torch.linalg.cholesky(Q.covariance_matrix + model.config.jitter * EYE)


def test_nothing_speaks_against_an_optimal_adversary():
    found = diagnose(plain(Optimal(Q, torch.zeros_like(Q.loc), EYE)), one_hot(N), SEEN, draws=1024)
    assert found.kl == pytest.approx(KL, abs=0.05)
    assert found.kl_floor == pytest.approx(KL, abs=0.05)
    assert found.floor_violation < 3 * found.floor_stderr + 0.01
    assert found.unverifiable < 0.02
    assert found.unverifiable == pytest.approx(found.out_of_reach, abs=0.001), "T is what it ought to be"
    assert found.log_normaliser == pytest.approx(0.0, abs=0.2)


def test_nothing_speaks_against_an_optimal_adversary_with_adaptive_contrast():
    model = adaptive(torch.nn.Identity())
    model.discriminator = Optimal(Q, Q.loc, contrast_factor(model))
    found = diagnose(model, one_hot(N), SEEN, draws=1024)
    assert found.kl == pytest.approx(KL, abs=0.05)
    assert found.floor_violation < 3 * found.floor_stderr + 0.01
    assert found.out_of_reach == 0
    assert found.log_normaliser == pytest.approx(0.0, abs=0.01)


def test_an_adversary_that_tells_nothing_apart_violates_the_floor_by_all_of_the_kl():
    found = diagnose(plain(Always(0.0)), one_hot(N), SEEN)
    assert found.kl == 0
    assert found.floor_violation == pytest.approx(KL, abs=0.03)
    assert found.floor_violation > 5 * found.floor_stderr
    assert found.log_normaliser == pytest.approx(0.0, abs=1e-9), "it is calibrated all the same"


def test_adaptive_contrast_does_without_an_adversary_where_q_is_gaussian():
    found = diagnose(adaptive(Always(0.0)), one_hot(N), SEEN)
    assert found.floor_violation == pytest.approx(0.0, abs=0.02)
    assert found.kl == pytest.approx(KL, abs=0.1)


@pytest.mark.parametrize("build", [plain, adaptive])
def test_an_adversary_that_claims_too_much_is_not_normalised_and_not_verifiable(build):
    found = diagnose(build(Always(7.0)), one_hot(N), 1000)
    assert found.log_normaliser == pytest.approx(7.0, abs=1e-9)
    assert found.unverifiable == 1, "e^7 > 1000"
    assert diagnose(build(Always(7.0)), one_hot(N), 2000).unverifiable == 0
    assert found.floor_violation == 0


def test_a_posterior_far_from_the_prior_is_out_of_reach_of_any_adversary_against_the_prior():
    far = MultivariateNormal(Q.loc + 8, scale_tril=0.1 * Q.scale_tril)
    assert diagnose(plain(Always(0.0), far), one_hot(N), SEEN).out_of_reach == 1
    assert diagnose(plain(Always(0.0)), one_hot(N), SEEN).out_of_reach < 0.01


def test_parts_give_what_the_whole_gives(monkeypatch):
    def looked_at(codes: int):
        monkeypatch.setattr(module, "CODES", codes)
        sizes.clear()
        model = AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY).double()
        real = model.posterior
        model.posterior = lambda x: (sizes.append(len(x)), real(x))[1]  # type: ignore[method-assign]
        return diagnose(model, one_hot(N), SEEN, draws=64)

    sizes: list[int] = []
    looked_at(64 * 20)
    assert sizes == [20, 20, 10]
    looked_at(2**16)
    assert sizes == [50]


def test_it_is_repeatable_and_leaves_no_trace():
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).train()
    x = one_hot(8).float()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = diagnose(model, x, SEEN, draws=16)
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert diagnose(model, x, SEEN, draws=16) == first
    assert diagnose(model, x, SEEN, draws=16, seed=1) != first


def test_metrics_have_names():
    assert set(diagnose(plain(Always(0.0)), one_hot(N), SEEN).metrics("validation")) == {
        f"validation/adversary.{name}"
        for name in (
            "kl",
            "kl_floor",
            "floor_violation",
            "floor_stderr",
            "unverifiable",
            "out_of_reach",
            "log_normaliser",
        )
    }


def failed(found: Diagnosis) -> set[str]:
    return {check.name for check in found.checks() if not check.passed}


def test_what_is_wrong_with_an_adversary_is_called_so_and_what_is_not_is_not():
    model = adaptive(torch.nn.Identity())
    model.discriminator = Optimal(Q, Q.loc, contrast_factor(model))
    assert failed(diagnose(model, one_hot(N), SEEN, draws=512)) == set()
    assert failed(diagnose(plain(Always(0.0)), one_hot(N), SEEN)) == {"floor_violation"}
    found = diagnose(plain(Always(7.0)), one_hot(N), 1000)
    assert failed(found) == {"unverifiable", "log_normaliser"}
    assert verdict(found.checks()) == "its ELBO is not to be believed"
    assert failed(diagnose(plain(Always(-7.0)), one_hot(N), 1000)) == {"floor_violation"}, "what is rare was not drawn"


def test_where_codes_have_many_dimensions_more_are_drawn():
    assert diagnose(plain(Always(0.0)), one_hot(N), SEEN, draws=2) == diagnose(
        plain(Always(0.0)), one_hot(N), SEEN, draws=8
    )


def test_codes_seen_are_those_of_all_steps():
    section = {**SMALL, "encoder": INPUT, "adversary": TurnConfig(steps=3)}
    assert codes_seen(AVB(AVBConfig(**section), BINARY), 100, 16) == 100 * 3 * 16


class OtherPrior(AVB):
    def prior(self) -> Distribution:
        return Independent(Bernoulli(torch.full((3,), 0.5)), 1)


def test_what_cannot_be_diagnosed_says_why():
    with pytest.raises(UserError, match=r"PCA has no adversary T\(x,z\)"):
        diagnose(PCA(2), one_hot(2), SEEN)
    with pytest.raises(UserError, match=r"prior N\(0, I\), this one is Bernoulli"):
        diagnose(OtherPrior(AVBConfig(**SMALL, encoder=INPUT), BINARY), one_hot(2), SEEN)
    with pytest.raises(DataError, match="given 0 data"):
        diagnose(plain(Always(0.0)), one_hot(N)[:0], SEEN)


# Against a lower bound.


def estimate(name: str, kind: Kind, values: ArrayLike) -> Estimate:
    return Estimate.of(Key(name), kind, {NATS: values})


def test_an_elbo_above_a_lower_bound_is_not_a_bound():
    ais = estimate("ais", "lower_bound", torch.tensor([-80.0, -120.0, -95.0, -101.0]))
    above = estimate("elbo_adversarial", "estimate", ais.per_datum + [1.0, 1.2, 0.8, 1.1])
    found = excess(above, ais)
    assert found.difference == pytest.approx(1.025)
    assert found.stderr < 0.1, "data are paired: unpaired it is 8"
    assert found.not_a_bound and not found.check().passed
    assert found.metrics("test") == {
        "test/adversary.excess": found.difference,
        "test/adversary.excess.stderr": found.stderr,
        "test/adversary.not_a_bound": 1.0,
    }


@pytest.mark.parametrize("offsets", [[-1.0, -1.2, -0.8, -1.1], [1.0, -1.2, 0.8, -0.4]])
def test_an_elbo_below_it_or_within_chance_is_not_flagged(offsets):
    ais = estimate("ais", "lower_bound", torch.tensor([-80.0, -120.0, -95.0, -101.0]))
    found = excess(estimate("elbo_adversarial", "estimate", ais.per_datum + offsets), ais)
    assert not found.not_a_bound and found.check().passed
    assert found.metrics("test")["test/adversary.not_a_bound"] == 0.0


def test_what_it_is_held_against_is_a_lower_bound_on_the_same_data():
    values = torch.tensor([-80.0, -120.0])
    elbo = estimate("elbo_adversarial", "estimate", values)
    with pytest.raises(UserError, match="elbo_ceiling is an upper bound: use ais"):
        excess(elbo, estimate("elbo_ceiling", "upper_bound", values))
    with pytest.raises(DataError, match="on 2 data and ais on 1"):
        excess(elbo, estimate("ais", "lower_bound", values[:1]))
    assert math.isfinite(excess(elbo, estimate("quadrature", "exact", values)).difference)
