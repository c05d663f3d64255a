"""Densities to draw from, and their mixture, against a model whose evidence and posterior are Gaussians."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, data, implicit, mean_field, run, scored, stderr, two_humps, widened
from scipy.stats import multivariate_normal
from sklearn.covariance import oas
from torch import Tensor
from torch.distributions import MultivariateNormal

from avb_service.errors import UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.likelihood.gaussians import by_moments, by_scores, inflation
from avb_service.likelihood.importance import iwae, iwae_mixture
from avb_service.likelihood.proposals import PilotConfig, Proposal, mixed, own, refined
from avb_service.maths import standard_normal
from avb_service.records import NATS
from avb_service.seeding import seeded

LINEAR = {"pixels": 20, "noise": 0.5}


def pca(dim: int, q=mean_field, dtype: torch.dtype = torch.float64) -> PCA:
    """Of data that vary as much whatever the number of latents."""
    model = PCA(dim, q, dtype=dtype, **LINEAR)
    with torch.no_grad():
        model.w /= math.sqrt(dim)
    return model


def given(*made) -> tuple[Proposal, ...]:
    return tuple(Proposal(propose, recipe={"start": "given"}) for propose in made)


def three(model: PCA, refined) -> tuple[Proposal, ...]:
    """A Gaussian beside the exact posterior, q, and the prior."""
    prior = lambda x: model.prior().expand((len(x),))  # noqa: E731
    return given(lambda x: refined(model.exact_posterior(x)), model.posterior, prior)


# Gaussians.


@pytest.mark.parametrize(("draws", "dim"), [(5, 40), (40, 40), (400, 6)])
def test_correlations_are_shrunk_as_by_scikit_learn(draws, dim):
    with seeded("moments", dim):
        mixing = torch.randn(dim, dim, dtype=torch.float64)
        z = torch.randn(draws, 2, dim, dtype=torch.float64) @ mixing
    fitted = by_moments(z)
    scale = z.std(0)
    for datum in range(2):
        white = ((z - z.mean(0)) / scale)[:, datum].numpy()
        shrunk, _ = oas(white, assume_centered=True)
        found = fitted.covariance_matrix[datum] / (scale[datum, :, None] * scale[datum])
        assert np.allclose(found, shrunk, atol=1e-8)
        assert torch.linalg.eigvalsh(fitted.covariance_matrix[datum])[0] > 0


def test_draws_that_agree_make_a_gaussian_all_the_same():
    for draws in (torch.ones(10, 2, 3), torch.ones(10, 2, 1)):
        fitted = by_moments(draws)
        assert torch.allclose(fitted.stddev, torch.full_like(draws[0], 1e-5)), "a point, nearly"
        assert torch.isfinite(fitted.log_prob(fitted.sample() + 1)).all()


@pytest.mark.parametrize(("dim", "draws"), [(1, 2), (5, 20), (64, 40), (256, 60)])
def test_scores_tell_a_gaussian_posterior_from_draws_that_are_elsewhere_and_too_few_for_moments(dim, draws):
    model = pca(dim)
    x, exact = data(model, 3), model.exact_posterior(data(model, 3))
    with seeded("scores"), torch.enable_grad():
        u = (3 + 2 * torch.randn(draws, 3, dim, dtype=torch.float64)).requires_grad_()
        (scores,) = torch.autograd.grad(model.log_joint(x, u).sum(), u)
    fitted = by_scores(u.detach(), scores)
    divergence = torch.distributions.kl_divergence(exact, fitted)
    assert divergence.max() < 0.01


def test_draws_without_a_score_are_left_out_and_where_none_has_one_there_is_no_gaussian():
    model = pca(5)
    x, exact = data(model, 2), model.exact_posterior(data(model, 2))
    with seeded("scores"), torch.enable_grad():
        u = torch.randn(20, 2, 5, dtype=torch.float64).requires_grad_()
        (scores,) = torch.autograd.grad(model.log_joint(x, u).sum(), u)
    scores[3, 0, 1], scores[:, 1] = math.nan, math.inf
    fitted = by_scores(u.detach(), scores)
    assert torch.allclose(fitted.loc[0], exact.loc[0], atol=0.01)
    assert torch.allclose(fitted.covariance_matrix[0], exact.covariance_matrix[0], atol=0.01)
    assert fitted.loc[1].isnan().all(), "so that the datum is named"


@pytest.mark.parametrize("steepness", [1e18, 1e24, 1e30])
@pytest.mark.parametrize("dim", [2, 3])
def test_scores_beyond_all_measure_as_training_that_diverges_has_make_none_and_no_traceback(dim, steepness):
    with seeded("steep"):
        u = torch.randn(2, 20, dim, dtype=torch.float64)
    fitted = by_scores(u, -steepness * u.sum(-1, keepdim=True).expand_as(u) - u)
    assert fitted.scale_tril.isnan().flatten(1).any(1).all(), "so that the datum is named"


def test_scores_of_no_gaussian_at_all_make_one():
    with seeded("noise"):
        u, scores = torch.randn(2, 12, 4, 30)
    fitted = by_scores(u, 100 * scores, inflate=1.3)
    eigenvalues = torch.linalg.eigvalsh(fitted.covariance_matrix)
    assert eigenvalues.min() > 0
    assert eigenvalues.max() <= inflation(1.3, 30) ** 2 + 1e-4, "no direction is wider than the start"


def test_a_fit_is_widened_less_where_latents_are_many():
    assert inflation(1.3, 1) == inflation(1.3, 8) == pytest.approx(1.3)
    for dim in (8, 64, 1024):
        square = inflation(1.3, dim) ** 2
        assert square > 1 and (square**2 / (2 * square - 1)) ** (dim / 2) < math.e**2


# The mixture.


class Uniform(PCA):
    """A model with p(x,z) = 1, which keeps the codes that it is given."""

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        self.seen = z
        return z.new_zeros(z.shape[:-1])


def test_weights_are_one_over_the_density_of_the_mixture():
    model = Uniform(2)
    moments = [([0.0, 1.0], [[1.0, 0.5], [0.5, 2.0]]), ([1.0, -1.0], [[0.3, 0.0], [0.0, 0.1]]), ([0, 0], np.eye(2))]
    proposals = [
        *(
            Proposal(
                lambda x, m=mean, c=covariance: MultivariateNormal(
                    torch.tensor([m], dtype=torch.float64), torch.tensor([c], dtype=torch.float64)
                ),
                recipe={"start": "given"},
            )
            for mean, covariance in moments[:2]
        ),
        Proposal(lambda x: model.prior(), recipe={"start": "prior"}),
    ]
    found = scored(iwae_mixture(model, proposals, 64), data(PCA(2), 1))[NATS]
    shares = np.array([30, 30, 4]) / 64
    each = [multivariate_normal(mean, covariance).pdf(model.seen[:, 0]) for mean, covariance in moments]
    density = shares @ np.stack(each)
    assert model.seen.shape == (64, 1, 2)
    assert found.item() == pytest.approx(math.log(np.mean(1 / density)), abs=1e-10)


@pytest.mark.parametrize("draws", [4, 6, 33, 512])
@pytest.mark.parametrize("parts", [2, 3])
def test_every_part_of_a_mixture_has_its_share_of_the_draws(draws, parts):
    model, counts = PCA(2), []

    class Counted(MultivariateNormal):
        def rsample(self, shape=()):
            counts.append(shape[0])
            return super().rsample(shape)

    normal = lambda x: Counted(torch.zeros(len(x), 2).double(), torch.eye(2).double())  # noqa: E731
    scored(iwae_mixture(model, given(*[normal] * parts), draws), data(model, 1))
    assert sum(counts) == draws and min(counts) >= 1
    assert counts[-1] == max(1, round(draws / 16)) and max(counts[:-1]) - min(counts[:-1]) <= 1


CASES = {
    "narrow and beside it": widened(0.3, shift=1.0),
    "wide": widened(3.0),
    "two humps": two_humps,
    "right": widened(1.0),
}


@pytest.mark.parametrize("q", CASES.values(), ids=CASES)
def test_weights_average_to_the_evidence(q):
    model = PCA(1, q, noise=2.0, pixels=3)
    x = data(model, 1).expand(20_000, -1, -1, -1)
    parts = three(model, widened(1.1))
    ratio = (torch.from_numpy(run(lambda m: iwae_mixture(m, parts, 8), model, x).per_datum) - model.exact(x)).exp()
    assert stderr(ratio) < 0.01
    assert abs(ratio.mean() - 1) < 4 * stderr(ratio)


@pytest.mark.parametrize("q", CASES.values(), ids=CASES)
def test_the_variance_is_that_of_the_best_part_and_little_more(q):
    """Veach & Guibas 1995, theorem 1."""
    model = PCA(2, q, noise=2.0, pixels=3)
    x = data(model, 1).expand(4000, -1, -1, -1)
    parts = three(model, widened(1.1))
    evidence = model.exact(x)
    variance = lambda make: (torch.from_numpy(run(make, model, x).per_datum) - evidence).exp().var().item()  # noqa: E731
    best = min(
        variance(lambda m, k=k, count=count: iwae(m, parts[k], count)) + 1 / count - 1 / 64
        for k, count in enumerate((30, 30, 4))
    )
    assert variance(lambda m: iwae_mixture(m, parts, 64)) < 1.1 * best


@pytest.mark.parametrize("refined", [widened(1.1), widened(0.2, shift=0.2)], ids=["refined", "badly refined"])
@pytest.mark.parametrize("q", CASES.values(), ids=CASES)
def test_a_mixture_is_at_most_log_3_below_its_best_part_and_mostly_above(q, refined):
    """Each part with the draws that it has in the mixture."""
    model = pca(8, q)
    x, parts = data(model, 100), three(model, refined)
    value = run(lambda m: iwae_mixture(m, parts, 256), model, x).value
    below = [
        run(lambda m, part=part, count=count: iwae(m, part, count), model, x).value - value
        for part, count in zip(parts, (120, 120, 16), strict=True)
    ]
    assert max(below) < math.log(3)
    assert sum(each < 0.05 for each in below) >= 2


def test_a_mixture_is_of_what_the_model_has():
    recipe = PilotConfig(temperatures=4, chains=4, rest=1)
    starts = [part.recipe["start"] for part in mixed(pca(3), recipe, 64, 1.2)]
    assert starts == ["refined", "posterior", "prior"]
    assert [part.recipe["start"] for part in mixed(pca(3, implicit), recipe, 64, 1.2)][1] == "fitted"
    told = iwae_mixture(pca(3), mixed(pca(3), recipe, 64, 1.2), 8).recipe
    assert told["start"] == "refined + posterior + prior" and told["draws"] == 8 and told["pilot_chains"] == 4


def test_pilot_chains_go_on_until_their_scores_tell_every_direction():
    recipe = PilotConfig(temperatures=4, chains=10, rest=5)
    assert refined(pca(20), recipe).recipe["pilot_rest"] == 5
    assert refined(pca(200), recipe).recipe["pilot_rest"] == 30


# Against the exact value.

SETTINGS = {
    "search": {"temperatures": 40, "chains": 8, "rest": 10}, "pilot": {"temperatures": 40, "chains": 8, "rest": 10},
    "ais": {"temperatures": 20}, "ais_prior": {"temperatures": 100},
}  # fmt: skip


@pytest.mark.parametrize("q", [mean_field, implicit, widened(0.05, shift=0.2)], ids=["q", "implicit q", "collapsed q"])
@pytest.mark.parametrize("dim", [4, 32])
def test_the_mixture_is_as_good_as_the_best_and_close_to_the_exact_value(dim, q):
    model = pca(dim, q, torch.float32)
    x = data(model, 60)
    evaluator = Evaluator(model, LikelihoodConfig.parse(SETTINGS))
    found = {name: evaluator.score(name, x) for name in ("iwae_mixture", "iwae", "ais", "ais_prior")}
    best, exact = max(each.value for each in found.values()), model.exact(x).mean().item()
    assert found["iwae_mixture"].name == "iwae_mixture_512"
    assert found["iwae_mixture"].value > best - 0.05
    for name in ("iwae_mixture", "ais"):
        assert abs(found[name].value - exact) < 0.05


def test_an_implicit_posterior_has_a_gaussian_with_fewer_draws_than_latents():
    model = pca(64, implicit)
    r = own(model, 20, 1.2)(data(model, 3))
    assert torch.linalg.eigvalsh(r.covariance_matrix).min() > 0
    assert r.sample((5,)).isfinite().all()


def test_the_name_that_it_had_is_answered_with_the_new_one():
    with pytest.raises(UserError, match="iwae_refined is no more: iwae_mixture has taken its place"):
        Evaluator(pca(2), LikelihoodConfig()).score("iwae_refined", data(pca(2), 2))


def test_a_prior_that_is_the_same_for_all_data_is_drawn_anew_for_each():
    model = Uniform(2)
    scored(iwae_mixture(model, given(lambda x: standard_normal(2, x), lambda x: model.prior()), 8), data(PCA(2), 3))
    assert model.seen.shape == (8, 3, 2)
    assert len(set(model.seen[..., 0].flatten().tolist())) == 24
