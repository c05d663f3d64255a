"""A fresh adversary finds the KL that a known density has."""

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, data, implicit_humps, mean_field, run, two_humps
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from avb_service.errors import ConfigError, UserError
from avb_service.likelihood.corrected import Correction, CorrectionConfig, elbo_corrected
from avb_service.likelihood.elbo import elbo, elbo_ceiling
from avb_service.networks.adversaries import FlatConfig
from avb_service.networks.trunks import MLPConfig
from avb_service.records import Key
from avb_service.seeding import seeded

NETWORK = FlatConfig(trunk=MLPConfig(hidden=(32,), activation="leaky_relu"), hidden=(64,))
SMALL = CorrectionConfig(rounds=1200, batch_size=64, discriminator=NETWORK)


def corrected(model: PCA, x: Tensor, config: CorrectionConfig = SMALL, seed: int = 0):
    return run(lambda model: elbo_corrected(model, config), model, x, seed)


def test_the_kl_of_a_posterior_with_two_humps_is_found():
    model, x = PCA(2, implicit_humps), data(PCA(2), 60)
    estimate = corrected(model, x)
    exact = run(lambda model: elbo(model, 2048), PCA(2, two_humps), x).diagnostics["kl"]
    floor = run(lambda model: elbo_ceiling(model, 512), model, x).diagnostics["kl_floor"]
    assert (estimate.name, estimate.kind) == ("elbo_corrected", "estimate")
    assert exact - floor > 0.5, "moments alone do not give it"
    assert estimate.diagnostics["kl"] == pytest.approx(exact, abs=0.06)
    assert abs(estimate.diagnostics["log_normaliser"]) < 0.05
    assert abs(estimate.diagnostics["drift"]) < 0.05
    columns = estimate.columns
    np.testing.assert_allclose(columns["nats"], columns["reconstruction"] - columns["kl"], rtol=1e-7)


def test_an_adversary_that_was_not_trained_finds_what_the_moments_give():
    model, x = PCA(2, implicit_humps), data(PCA(2), 60)
    estimate = corrected(model, x, SMALL.model_copy(update={"rounds": 1}))
    floor = run(lambda model: elbo_ceiling(model, 512), model, x).diagnostics["kl_floor"]
    assert estimate.diagnostics["kl"] == pytest.approx(floor, abs=0.05)


def test_a_gaussian_posterior_leaves_nothing_to_correct():
    model = PCA(3, mean_field)
    x = data(model, 60)
    estimate = corrected(model, x, SMALL.model_copy(update={"rounds": 200}))
    exact = run(lambda model: elbo(model, 2), model, x).diagnostics["kl"]
    assert estimate.diagnostics["kl"] == pytest.approx(exact, abs=0.05)


def test_the_model_stays_as_it_is_and_the_numbers_repeat():
    model, x = PCA(2, implicit_humps), data(PCA(2), 20)
    config = SMALL.model_copy(update={"rounds": 20})
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = corrected(model, x, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert np.array_equal(corrected(model, x, config).per_datum, first.per_datum)
    assert not np.array_equal(corrected(model, x, config, seed=1).per_datum, first.per_datum)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


def test_one_adversary_learns_all_of_a_test_set():
    assert elbo_corrected(PCA(2, implicit_humps), SMALL).block >= 1000


def test_the_game_owns_its_adversary_and_nothing_else():
    with seeded("game"), torch.no_grad():
        model = PCA(2, implicit_humps)
        game = Correction(model, data(model, 10), SMALL)
    (player,) = game.players()
    assert {id(p) for p in game.parameters()} == {id(p) for p in player.networks[0].parameters()}
    assert not {id(p) for p in game.parameters()} & {id(p) for p in model.parameters()}


class Bits(PCA):
    def prior(self) -> Distribution:
        return Independent(Bernoulli(torch.full((2,), 0.3, dtype=torch.float64)), 1)


def test_discrete_codes_are_refused():
    with pytest.raises(UserError, match="elbo_corrected needs continuous codes, those of Bits are discrete: use iwae"):
        elbo_corrected(Bits(2), SMALL)


def test_there_is_no_gradient_penalty_to_be_set():
    with pytest.raises(ConfigError, match="penalty: unknown key"):
        CorrectionConfig.parse({"gradient_penalty": 1.0})


def test_it_is_refused_among_data_parallel_workers(monkeypatch):
    """Its training would wait in the engine's collectives for workers that score other data."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="elbo_corrected trains an adversary of its own.*when it is trained"):
        elbo_corrected(PCA(2, implicit_humps), SMALL)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert elbo_corrected(PCA(2, implicit_humps), SMALL).key == Key("elbo_corrected")
