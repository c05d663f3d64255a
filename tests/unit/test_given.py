"""Models that are given by their densities: they have the numbers of our own, and what is wrong with them is named."""

import math

import numpy as np
import pytest
import torch
import zuko
from linear_gaussian import PCA, data
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import Transform

import avb_service
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.display import Display
from avb_service.distributions import DataSpec, ImplicitPosterior
from avb_service.errors import UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, Observed, given_model
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import seeded

QUIET = Display(quiet=True)
FAST = {
    "search": {"temperatures": 20, "chains": 4},
    "pilot": {"temperatures": 20, "chains": 4},
    "ais": {"temperatures": 20, "chains": 4},
    "ais_prior": {"temperatures": 40},
    "certificate": {"simulated": 8, "real": 8},
    "importance_draws": 16,
}
DIM, PIXELS = 3, 12


def normal(dim: int = DIM, dtype: torch.dtype = torch.float32) -> Independent:
    return Independent(Normal(torch.zeros(dim, dtype=dtype), torch.ones(dim, dtype=dtype)), 1)


@pytest.fixture(scope="module")
def own() -> VAE:
    small = MLPConfig(hidden=(8, 7))
    with seeded("given"):
        spec = DataSpec((1, 3, 4), "binary", 1, torch.full((1, 3, 4), 0.5))
        return VAE(VAEConfig(latent_dim=DIM, encoder=small, decoder=small), spec).eval()


@pytest.fixture(scope="module")
def plain(own) -> nn.Sequential:
    """A decoder of torch alone, with our VAE's weights."""
    network = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, PIXELS))
    theirs = [p for p in own.decoder.parameters() if p.dim() in (1, 2)]
    for mine, other in zip(network.parameters(), theirs, strict=True):
        mine.data.copy_(other.data)
    return network


@pytest.fixture(scope="module")
def x(own) -> Tensor:
    return data(own, 12)


def encoded(own: VAE):
    return lambda x: own.posterior(x.reshape(-1, 1, 3, 4))


def test_a_plain_decoder_has_the_numbers_of_the_same_weights_inside_our_vae(own, plain, x):
    ours = Evaluator(own, LikelihoodConfig.parse(FAST))
    found = avb_service.certify(
        plain, normal(), encoded(own), x=x.flatten(1), observation="bernoulli", changes=FAST, display=QUIET
    )
    assert {each.key.estimator for each in found.estimates} >= {"ais", "iwae_mixture", "iwae", "elbo", "elbo_ceiling"}
    for each in found.estimates:
        expected = ours.score(each.key.estimator, x)
        np.testing.assert_allclose(each.per_datum, expected.per_datum, rtol=0, atol=1e-4, err_msg=each.name)
        assert each.kind == expected.kind and each.recipe == expected.recipe
    certificate = ours.certify(x)
    assert [check.name for check in found.certificate.checks] == [check.name for check in certificate.checks]
    assert found.certificate.lower == pytest.approx(certificate.lower, abs=1e-4)


def test_a_function_of_codes_and_a_network_with_an_observation_are_the_same_model(plain, x):
    x = x.flatten(1).numpy()
    by_function = avb_service.certify(
        lambda z: Independent(Bernoulli(logits=plain(z)), 1),
        normal(),
        x=x,
        estimators=["ais"],
        changes=FAST,
        display=QUIET,
    )
    by_network = avb_service.certify(
        plain, normal(), x=x, observation="bernoulli", estimators=["ais"], changes=FAST, display=QUIET
    )
    assert np.array_equal(by_function.estimates[0].per_datum, by_network.estimates[0].per_datum)


def test_exact_values_are_found_where_there_are_some():
    model = PCA(2)
    x = data(model, 20)
    prior = normal(2, torch.float64)
    found = avb_service.certify(
        lambda z: Independent(Normal(z @ model.w.mT + model.mu, model.noise), 1),
        prior,
        x=x.flatten(1),
        budget="quick",
        changes=FAST,
        display=QUIET,
    )
    exact = {each.key.estimator: each for each in found.estimates if each.kind == "exact"}
    assert set(exact) == {"ppca", "quadrature"}
    np.testing.assert_allclose(exact["ppca"].per_datum, model.exact(x), rtol=0, atol=1e-6)
    means = avb_service.certify(
        lambda z: z @ model.w.mT + model.mu,
        prior,
        x=x.flatten(1),
        observation="gaussian",
        scale=model.noise,
        estimators=["ppca"],
        display=QUIET,
    )
    np.testing.assert_allclose(means.estimates[0].per_datum, exact["ppca"].per_datum, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (2, 1, 3, 2)], ids=str)
def test_data_may_have_any_shape(plain, x, shape):
    def likelihood(z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=plain(z).unflatten(-1, shape)), len(shape))

    found = avb_service.certify(
        likelihood, normal(), x=x.reshape(-1, *shape), estimators=["iwae_mixture"], changes=FAST, display=QUIET
    )
    flat = avb_service.certify(
        plain,
        normal(),
        x=x.flatten(1),
        observation="bernoulli",
        estimators=["iwae_mixture"],
        changes=FAST,
        display=QUIET,
    )
    np.testing.assert_allclose(found.estimates[0].per_datum, flat.estimates[0].per_datum, rtol=0, atol=1e-4)
    assert found.record.basis == flat.record.basis, "the same data, whatever their shape"


def test_a_flow_can_be_the_prior(plain, x):
    with seeded("flow"):
        flow = zuko.flows.MAF(DIM, transforms=1, hidden_features=[8])
    found = avb_service.certify(
        plain, flow(), x=x.flatten(1), observation="bernoulli", budget="standard", changes=FAST, display=QUIET
    )
    by_hand = torch.stack([flow().log_prob(z := flow().sample()) for _ in range(3)])
    assert by_hand.isfinite().all() and z.shape == (DIM,)
    assert {each.key.estimator for each in found.estimates} == {"ais", "iwae_mixture"}
    first, second = (each.per_datum for each in found.estimates)
    assert abs((first - second).mean()) < 0.5


@pytest.mark.parametrize("dim", [1, 3])
def test_a_prior_on_a_part_of_the_space_has_its_likelihood(dim):
    prior = Independent(Uniform(torch.zeros(dim), 2 * torch.ones(dim)), 1)

    def likelihood(z: Tensor) -> Distribution:
        return Independent(Normal(2 * z, 0.5), 1)

    with seeded("uniform"):
        x = likelihood(prior.sample((10,))).sample()
    found = avb_service.certify(likelihood, prior, x=x, budget="standard", display=QUIET)
    standard = Normal(0.0, 1.0)
    exact = ((standard.cdf((4 - x) / 0.5) - standard.cdf(-x / 0.5)) / 4).log().sum(-1)
    for each in found.estimates:
        assert -0.05 < each.value - exact.mean() < 0.03, each.name


def test_codes_that_can_be_counted_are_summed(plain):
    prior = Independent(Bernoulli(probs=torch.tensor([0.2, 0.5, 0.9])), 1)

    def likelihood(z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=plain(z)), 1)

    with seeded("bits"):
        x = likelihood(prior.sample((6,))).sample()
    found = avb_service.certify(likelihood, prior, x=x, display=QUIET)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * DIM)
    exact = (likelihood(states[:, None]).log_prob(x) + prior.log_prob(states)[:, None]).logsumexp(0)
    (sum_,) = found.estimates
    assert (sum_.name, sum_.kind, found.certificate) == ("enumeration", "exact", None)
    np.testing.assert_allclose(sum_.per_datum, exact.detach(), rtol=0, atol=1e-5)


def test_counts_and_a_mixture_as_prior(plain):
    parts = MultivariateNormal(torch.tensor([[2.0] * DIM, [-2.0] * DIM]), torch.eye(DIM))
    prior = MixtureSameFamily(Categorical(torch.ones(2)), parts)

    def likelihood(z: Tensor) -> Distribution:
        return Independent(Poisson(plain(z).exp()), 1)

    with seeded("counts"):
        x = likelihood(prior.sample((4,))).sample()
    found = avb_service.certify(likelihood, prior, x=x, budget="standard", changes=FAST, display=QUIET)
    ais, mixture = found.estimates
    assert abs(ais.value - mixture.value) < 0.5 and found.record.basis["measure"] == "probabilities of levels"


def test_what_nothing_is_known_of_but_densities_is_neither_kept_nor_set_beside_training_data(plain, x, tmp_path):
    model, seen = given_model(Observed(plain, "bernoulli"), normal(), None, x.flatten(1))
    with pytest.raises(UserError, match="kept of models of this package alone"):
        Evaluator(model, LikelihoodConfig.parse(FAST), store=tmp_path).score("ais", seen)
    with pytest.raises(UserError, match="parzen sets a model beside its training data.*use ais"):
        Evaluator(model, LikelihoodConfig.parse(FAST)).parzen(seen, seen, seen)
    with_posterior, _ = given_model(Observed(plain, "bernoulli"), normal(), lambda x: normal().expand((len(x),)), seen)
    with pytest.raises(UserError, match="elbo_corrected trains an adversary for a method of this package"):
        Evaluator(with_posterior, LikelihoodConfig.parse(FAST)).require("elbo_corrected")


def test_a_posterior_without_a_density_is_known_by_its_draws(own, plain, x):
    class Planar(Transform):
        """z + tanh(z) / 2, whose inverse nobody has written down."""

        domain = codomain = torch.distributions.constraints.real_vector
        bijective = True

        def _call(self, z: Tensor) -> Tensor:
            return z + z.tanh() / 2

        def log_abs_det_jacobian(self, z: Tensor, y: Tensor) -> Tensor:
            return (1 + (1 - z.tanh().square()) / 2).log().sum(-1)

    def posterior(x: Tensor) -> Distribution:
        return TransformedDistribution(encoded(own)(x), [Planar()])

    given = (plain, normal(), posterior)
    asked = {"x": x.flatten(1), "observation": "bernoulli", "changes": FAST, "display": QUIET}
    found = avb_service.certify(*given, budget="quick", **asked)
    recipe = next(each.recipe for each in found.estimates if each.key.estimator == "iwae")
    assert recipe["start"] == "fitted"
    assert not any(each.key.estimator == "elbo" for each in found.estimates)
    with pytest.raises(UserError, match="elbo needs a posterior with a density"):
        avb_service.certify(*given, estimators=["elbo"], **asked)


def test_a_module_is_left_in_the_mode_that_it_was_in(plain, x):
    network = nn.Sequential(plain, nn.Dropout(0.5))
    network.train()
    network[0].eval()
    found = avb_service.certify(
        network, normal(), x=x.flatten(1), observation="bernoulli", estimators=["ais"], changes=FAST, display=QUIET
    )
    assert network.training and not network[0].training and network[1].training
    without = avb_service.certify(
        plain, normal(), x=x.flatten(1), observation="bernoulli", estimators=["ais"], changes=FAST, display=QUIET
    )
    assert np.array_equal(found.estimates[0].per_datum, without.estimates[0].per_datum)
    assert Normal(0.0, 1.0)._validate_args == Distribution._validate_args


def test_the_result_prints_and_shows_itself(plain, x):
    found = avb_service.certify(
        plain, normal(), x=x.flatten(1), observation="bernoulli", changes=FAST, name="a decoder", display=QUIET
    )
    assert "a decoder on 12 test data of x" in str(found) and "lower bound only" in str(found)
    assert "data:image/png;base64," in found._repr_html_()
    assert found.rows["certificate"]["checks"][0]["value"] == 8


def test_two_that_were_scored_on_the_same_data_are_compared(plain, x):
    other = nn.Sequential(plain, nn.Linear(PIXELS, PIXELS))
    both = [
        avb_service.certify(
            each,
            normal(),
            x=x.flatten(1),
            observation="bernoulli",
            budget="standard",
            changes=FAST,
            name=name,
            display=QUIET,
        )
        for each, name in ((plain, "one"), (other, "another"))
    ]
    compared = avb_service.compare(*both)
    difference = both[0].estimates[0].per_datum - both[1].estimates[0].per_datum
    assert compared.comparison.difference == pytest.approx(difference.mean())
    assert "one is ahead of another" in str(compared) or "one is not ahead of another" in str(compared)
    fewer = avb_service.certify(
        plain, normal(), x=x[:8].flatten(1), observation="bernoulli", estimators=["ais"], changes=FAST, display=QUIET
    )
    with pytest.raises(UserError, match="scored on different data.*data_sha256"):
        avb_service.compare(both[0], fewer)


BITS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
LINEAR = nn.Linear(DIM, 2)
torch.nn.init.constant_(LINEAR.weight, 0.3)
NOT_FINITE = nn.Linear(DIM, 2)
torch.nn.init.constant_(NOT_FINITE.weight, math.nan)


def bits(z: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=LINEAR(z)), 1)


def around(mean: Tensor) -> Distribution:
    return Independent(Normal(mean, 1.0), 1)


def logits(values: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=values), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"likelihood": lambda z: Bernoulli(logits=LINEAR(z))}, r"event shape \[\].*, \[2\].*Independent\(p, 1\)"),
        ({"likelihood": lambda z: logits(z)}, r"event shape \[3\].*expected.*\[2\]"),
        ({"likelihood": lambda z: logits(LINEAR(z.flatten(0, -2)))}, r"batch shape \[6\].*\[2, 3\]"),
        ({"likelihood": LINEAR}, "gives a Tensor.*observation="),
        ({"likelihood": lambda z: (LINEAR(z), 1.0)}, "gives a tuple"),
        ({"likelihood": nn.Linear(4, 2), "observation": "bernoulli"}, r"raised RuntimeError for \[2, 3, 3\]"),
        ({"likelihood": lambda z: logits(NOT_FINITE(z))}, "datum 0 is not a number.*weights"),
        ({"likelihood": lambda z: around(LINEAR(z) + torch.randn(2))}, "other values.*eval()"),
        ({"likelihood": lambda z: around(LINEAR(z - z.flatten(0, -2).mean(0)))}, "other codes of its batch"),
        ({"likelihood": lambda z: around(LINEAR(z).detach())}, "has no gradient by z"),
        ({"likelihood": 3}, "given a int, expected a function"),
        ({"prior": normal(DIM, torch.float64)}, "likelihood: raised RuntimeError.*float64"),
        (
            {"prior": normal(DIM, torch.float64), "likelihood": lambda z: bits(z.float())},
            "codes are float64 on cpu, and the likelihood is of float32 on cpu",
        ),
        ({"prior": Normal(torch.zeros(DIM), 1.0)}, r"batch shape \[3\] and event shape \[\].*Independent\(prior, 1\)"),
        ({"prior": Normal(0.0, 1.0)}, r"batch shape \[\] and event shape \[\], expected \[\] and \[D\]"),
        ({"prior": normal().expand((2,))}, r"batch shape \[2\]"),
        ({"prior": zuko.flows.MAF(DIM)}, r"the module MAF, expected a distribution: call it first, MAF\(\)"),
        ({"prior": torch.zeros(DIM)}, "given a Tensor, expected a torch distribution"),
        ({"posterior": lambda x: Normal(torch.zeros(len(x), DIM), 1.0)}, r"posterior.*\[2, 3\].*Independent\(q, 1\)"),
        ({"posterior": lambda x: (x, x)}, "posterior: gives a tuple"),
        ({"posterior": lambda x: normal(DIM, torch.float64).expand((len(x),))}, "float32 on cpu.*posterior's float64"),
        (
            {"prior": Independent(Uniform(torch.ones(DIM), 9.0), 1), "posterior": lambda x: normal().expand((2,))},
            "that the prior does not have",
        ),
        ({"x": torch.zeros(0, 2)}, r"no data to score, given \[0, 2\]"),
        ({"x": torch.zeros(3)}, r"expected real numbers \[n, \.\.\.\]"),
        ({"x": torch.tensor([[0.0, 1.0], [0.0, math.nan]])}, r"datum 1 holds nan at \[1\], expected finite"),
        ({"x": torch.tensor([[0.0, 1.0], [0.0, 0.5]])}, r"datum 1 holds 0.5 at \[1\], expected Boolean\(\), the sup"),
        ({"x": BITS, "likelihood": lambda z: Independent(Uniform(LINEAR(z) * 0 + 0.5, 2.0), 1)}, "datum 0 holds 0 at"),
        ({"x": np.array([["a", "b"]])}, "expected numbers"),
        ({"observation": "poisson"}, "given 'poisson', expected bernoulli.*or gaussian"),
        ({"observation": "gaussian"}, "scale: given None"),
        ({"observation": "gaussian", "scale": -1.0}, "scale: given -1.0"),
        ({"observation": "bernoulli", "scale": 1.0}, "scale: given 1.0 for bernoulli"),
        ({"scale": 1.0}, "without observation"),
        ({"estimators": ["ais"], "budget": "quick"}, "give either"),
        ({"estimators": ["aiss"]}, "no estimator 'aiss'"),
        ({"estimators": ["iwae"]}, r"no posterior q\(z\|x\) was given"),
        ({"changes": {"ais.temperature": 3}}, "ais.temperature"),
        ({"budget": "cheap"}, "budget"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_scored(given, message, monkeypatch):
    def score(*given):
        raise AssertionError("something was scored")

    monkeypatch.setattr("avb_service.likelihood.evaluate.estimate", score)
    with pytest.raises(UserError, match=message):
        avb_service.certify(
            **{"likelihood": bits, "prior": normal(), "x": BITS, "changes": FAST, "display": QUIET, **given}
        )


def test_global_noise_is_left_as_it_was(x, plain):
    state = torch.get_rng_state()
    given_model(Observed(plain, "bernoulli"), normal(), lambda x: normal().expand((len(x),)), x.flatten(1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_gaussian_posterior_with_correlations_is_taken_as_it_is():
    model = PCA(2, dtype=torch.float32)
    x = data(model, 6)
    found, seen = given_model(
        lambda z: Independent(Normal(z @ model.w.mT + model.mu, model.noise), 1),
        normal(2),
        lambda x: model.exact_posterior(x.float()),
        x.flatten(1),
    )
    assert isinstance(found.posterior(seen), MultivariateNormal) and not isinstance(
        found.posterior(seen), ImplicitPosterior
    )
