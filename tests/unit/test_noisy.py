"""A generator's likelihood under a noise that the caller names, where it is known in closed form."""

import math

import numpy as np
import pytest
import torch
from known_adversary import BINARY
from linear_gaussian import PCA, SPEC, data
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from avb_service.algorithm import Algorithm, AlgorithmConfig, DecodingModel, Player
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.errors import UserError
from avb_service.figures import bounds
from avb_service.likelihood import Evaluator, LikelihoodConfig, NoisyModel
from avb_service.networks.trunks import MLPConfig
from avb_service.records import LikelihoodRecord

NOISE, SMALL = 0.7, MLPConfig(hidden=(4,))
CONFIG = LikelihoodConfig.parse({"importance_draws": 64, "certificate": {"real": 20}})


class Generator(DecodingModel):
    """g(z) = W z + mu: with noise, probabilistic PCA."""

    def __init__(self) -> None:
        super().__init__(AlgorithmConfig(name="generator"), SPEC)
        self.linear = PCA(2, noise=NOISE)

    def players(self) -> tuple[Player, ...]:
        return ()

    def prior(self) -> Distribution:
        return self.linear.prior()

    def decode(self, z: Tensor) -> Tensor:
        return self.linear.likelihood(z).mean


class Sampler(Algorithm):
    """Neither codes nor a likelihood."""

    def players(self) -> tuple[Player, ...]:
        return ()

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 1, 1, 6)


GENERATOR = Generator()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return data(GENERATOR.linear, 40)


@pytest.mark.parametrize("name", ["ais", "ais_prior", "iwae_mixture"])
def test_annealing_finds_the_likelihood_that_the_noise_makes(name, x):
    estimate = Evaluator(NoisyModel(GENERATOR, NOISE), CONFIG).score(name, x)
    exact = GENERATOR.linear.exact(x)
    assert estimate.kind == "lower_bound"
    assert -0.1 < (torch.from_numpy(estimate.per_datum) - exact).mean() < 0.03, "chains from the prior are loosest"


def test_what_applies_is_found_and_names_the_noise_everywhere(x):
    estimates = Evaluator(NoisyModel(GENERATOR, NOISE), CONFIG).evaluate(x, "standard")
    assert {each.name for each in estimates} == {
        "ais.noise_0.7",
        "iwae_mixture_128.noise_0.7",
        "quadrature.noise_0.7",
        "ppca.noise_0.7",
    }
    by_name = {each.name: each for each in estimates}
    assert "test/log_likelihood.ais.noise_0.7.lower_bound" in by_name["ais.noise_0.7"].metrics("test")
    np.testing.assert_allclose(by_name["ppca.noise_0.7"].per_datum, GENERATOR.linear.exact(x), rtol=0, atol=1e-6)
    shown = [text.get_text() for text in bounds(estimates).axes[0].texts]
    assert {"AIS, noise 0.7", "IWAE, mixture, 128 draws, noise 0.7"} <= set(shown)


def test_estimates_under_different_noise_are_not_compared(x):
    one, other = (
        LikelihoodRecord({}, (Evaluator(NoisyModel(GENERATOR, noise), CONFIG).score("iwae_mixture", x),))
        for noise in (0.7, 0.8)
    )
    with pytest.raises(UserError, match="no exact value or lower bound in common"):
        one.against(other)


def test_a_generator_gets_its_certificate_for_which_nothing_is_annealed_twice(x):
    scored: list[str] = []
    x = x[: CONFIG.certificate.real]
    evaluator = Evaluator(
        NoisyModel(GENERATOR, NOISE), CONFIG, progress=lambda name: scored.append(name) or (lambda done, total: None)
    )
    certificate = evaluator.assess(x, "certified").certificate
    assert certificate.passed, certificate.reason
    assert len(scored) == len(set(scored))
    assert certificate == evaluator.certify(x), "the same by itself"


@pytest.mark.parametrize("name", ["iwae", "elbo", "elbo_adversarial", "elbo_ceiling", "elbo_corrected"])
def test_what_asks_for_a_posterior_is_refused_with_what_does_not(name, x):
    message = r"generator has no posterior q\(z\|x\) under this noise: use ais, ais_prior or iwae_mixture"
    with pytest.raises(UserError, match=message):
        Evaluator(NoisyModel(GENERATOR, NOISE), CONFIG).score(name, x)


def test_what_does_not_fit_the_prior_is_refused_with_what_asks_for_no_posterior(x):
    wide, bits = Generator(), Generator()
    wide.linear = PCA(3, noise=NOISE)
    bits.prior = lambda: Independent(Bernoulli(torch.full((40,), 0.5)), 1)  # type: ignore[method-assign]
    for generator, name, message in (
        (wide, "quadrature", "at most 2 latent dimensions, this model has 3: use ais$"),
        (wide, "enumeration", "finitely many codes.*: use ais$"),
        (bits, "ais", "need continuous codes.*: use parzen$"),
        (bits, "iwae_mixture", "need continuous codes.*: use parzen$"),
    ):
        with pytest.raises(UserError, match=message):
            Evaluator(NoisyModel(generator, NOISE), CONFIG).score(name, x)


def test_without_a_noise_the_refusal_says_that_one_can_be_named(x):
    with pytest.raises(UserError, match=r"generator defines no p\(x\|z\).*name the noise.*--noise 0.1.*use parzen"):
        Evaluator(GENERATOR, CONFIG).score("ais", x)
    with pytest.raises(UserError, match=r"sampler defines no p\(x\|z\), so it has no log-likelihood: use parzen"):
        Evaluator(Sampler(AlgorithmConfig(name="sampler"), SPEC), CONFIG).evaluate(x)


def test_a_noise_that_means_nothing_is_refused():
    with pytest.raises(UserError, match=r"vae has a p\(x\|z\) of its own; leave the noise out"):
        NoisyModel(VAE(VAEConfig(encoder=SMALL, decoder=SMALL), BINARY), 0.1)
    with pytest.raises(UserError, match="sampler makes no data of codes"):
        NoisyModel(Sampler(AlgorithmConfig(name="sampler"), SPEC), 0.1)
    for noise in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(UserError, match=f"a noise of {noise}, expected a positive standard deviation"):
            NoisyModel(GENERATOR, noise)
