"""What a package calls in its own tests lets ours pass, and names what does not hold of one that is broken."""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from avb_service import testing
from avb_service.algorithm import AlgorithmConfig
from avb_service.algorithms import METHODS
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.data.sources import SOURCES, Pool, Source
from avb_service.data.splits import hold
from avb_service.distributions import BernoulliConfig, GaussianConfig, GaussianObservation, LogisticConfig
from avb_service.likelihood import ESTIMATORS
from avb_service.likelihood.elbo import elbo
from avb_service.likelihood.scoring import Scorer
from avb_service.networks.trunks import TRUNKS, MLPConfig


@pytest.mark.parametrize("name", TRUNKS.own)
def test_our_trunks_pass(name):
    testing.check_trunk(TRUNKS[name]())


@pytest.mark.parametrize(
    ("observation", "values"),
    [
        (BernoulliConfig(), "binary"),
        (GaussianConfig(), "real"),
        (GaussianConfig(noise="learned"), "levels"),
        (GaussianConfig(noise="predicted"), "real"),
    ],
)
def test_our_observation_models_pass(observation, values):
    testing.check_observation(observation, values)


@pytest.mark.parametrize("name", ["onehot-8", "binary-8", "gaussians25", "digits", "eight_schools"])
def test_our_sources_pass(name):
    testing.check_source(name)


@pytest.mark.parametrize("name", ["ppca", "iwae", "iwae_mixture", "elbo"])
def test_our_estimators_pass(name):
    testing.check_estimator(name)


def test_a_method_of_ours_passes_as_a_whole():
    testing.check_method("vae_digits", {"algorithm.encoder.hidden": [12], "algorithm.decoder.hidden": [12]})


class Mixing(MLPConfig):
    name: Literal["mixing"] = "mixing"

    def features(self, shape):
        class Centred(nn.Module):
            def forward(self, x):
                return x - x.mean(0)

        module, width = super().features(shape)
        return nn.Sequential(module, Centred()), width


class Normalised(MLPConfig):
    name: Literal["normalised"] = "normalised"

    def features(self, shape):
        module, width = super().features(shape)
        return nn.Sequential(module, nn.BatchNorm1d(width)), width


class Idle(MLPConfig):
    name: Literal["idle"] = "idle"

    def features(self, shape):
        module, width = super().features(shape)
        module.spare = nn.Parameter(torch.zeros(3))
        return nn.Sequential(*list(module)), width

    def generator(self, inputs, planes, shape, bias):
        module = super().generator(inputs, planes, shape, bias)
        module[0].register_parameter("spare", nn.Parameter(torch.zeros(3)))
        return module


class Narrow(MLPConfig):
    name: Literal["narrow"] = "narrow"

    def features(self, shape):
        module, width = super().features(shape)
        return module, width + 1


@pytest.mark.parametrize(
    ("trunk", "said"),
    [
        (Mixing(), "depend on the others of its batch"),
        (Normalised(), "keep statistics of a batch"),
        (Idle(), r"the parameters \['0.spare'\] have no influence"),
        (Narrow(), r"given \(5, 300\), expected \(5, 301\)"),
    ],
)
def test_a_trunk_that_breaks_a_promise_is_told_which(trunk, said):
    with pytest.raises(AssertionError, match=said):
        testing.check_trunk(trunk)


class Biased(GaussianConfig):
    name: Literal["biased"] = "biased"

    def build(self, spec):
        class Shifted(Independent):
            @property
            def mean(self):
                return super().mean + 0.02

        class Module(GaussianObservation):
            def forward(self, parameters):
                return Shifted(Normal(parameters.select(-4, 0), 0.1), 3)

        return Module(self)


def test_an_observation_model_with_a_mean_that_is_not_its_draws_or_for_other_data_is_told(monkeypatch):
    with pytest.raises(AssertionError, match=r"the mean of p\(x\|z\) is \d+\.\d standard errors from that of draws"):
        testing.check_observation(Biased(), "real")
    with pytest.raises(AssertionError, match="needs levels of grey"):
        testing.check_observation(LogisticConfig(), "real")


def use(monkeypatch, table, name, thing):
    monkeypatch.setattr(table, "own", {**table.own, name: thing})


def test_a_source_that_is_another_each_time_or_says_what_it_is_not_is_told(monkeypatch):
    def noise(config):
        return Pool(hold(np.random.default_rng().random((50, 1, 1, 4)), None, 0, config.resident_gib), 0)

    def twins(config):
        return Pool(hold(np.zeros((50, 1, 1, 4)), None, 0, config.resident_gib), 0)

    use(monkeypatch, SOURCES, "noise", Source("noise", "real", noise))
    with pytest.raises(AssertionError, match="two readings differ"):
        testing.check_source("noise")
    use(monkeypatch, SOURCES, "twins", Source("twins", "real", twins))
    with pytest.raises(AssertionError, match="data of test are in train as well"):
        testing.check_source("twins")
    use(monkeypatch, SOURCES, "bits", Source("bits", "real", SOURCES["binary-8"].load))
    with pytest.raises(AssertionError, match="says real, and holds binary data"):
        testing.check_source("bits")


def test_an_estimator_that_is_not_what_it_says_is_told(monkeypatch):
    def lifted(model, config) -> Scorer:
        scorer = elbo(model, config.elbo_draws)
        return type(scorer)(
            **{**vars(scorer), "score": lambda x: {name: c + 50 for name, c in scorer.score(x).items()}}
        )

    use(monkeypatch, ESTIMATORS, "lifted", lifted)
    with pytest.raises(AssertionError, match=r"lifted says that it is lower bound, and is \+\d+\.\d+ nats from log p"):
        testing.check_estimator("lifted")


class CountingConfig(VAEConfig):
    name: Literal["counting"] = "counting"


class Counting(VAE):
    """Weighs its loss by how often it was asked, which no checkpoint knows of."""

    Config: ClassVar[type[AlgorithmConfig]] = CountingConfig
    asked = 0

    def loss(self, batch):
        self.asked += 1
        found = super().loss(batch)
        return found._replace(value=found.value * (1 + self.asked))


class Forgetful(VAE):
    """Draws around a place that it has learned, and keeps in no buffer."""

    Config: ClassVar[type[AlgorithmConfig]] = CountingConfig
    place = 0.0

    def players(self):
        (player,) = super().players()
        return (dataclasses.replace(player, update_statistics=self.learn),)

    def learn(self, statistics):
        self.place += 0.1

    def sample(self, n):
        return super().sample(n) + self.place


@pytest.mark.parametrize(
    ("broken", "said"),
    [(Counting, "is not the same to the bit"), (Forgetful, "draws is not the same to the bit")],
)
def test_a_method_that_breaks_a_promise_is_told_which(monkeypatch, broken, said):
    use(monkeypatch, METHODS, "counting", broken)
    with pytest.raises(AssertionError, match=said):
        testing.check_method("vae_digits", {"algorithm.name": "counting"})


class Telling(VAE):
    Config: ClassVar[type[AlgorithmConfig]] = CountingConfig

    def loss(self, batch):
        raise AssertionError(f"on {torch.get_num_threads()} threads")


def test_a_method_is_tried_on_one_thread_and_the_callers_number_comes_back(monkeypatch):
    use(monkeypatch, METHODS, "counting", Telling)
    torch.set_num_threads(2)
    try:
        with pytest.raises(AssertionError, match="on 1 threads"):
            testing.check_method("vae_digits", {"algorithm.name": "counting"})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
