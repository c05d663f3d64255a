"""Annealing against a model whose evidence and posterior are Gaussians, and estimation that is interrupted."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, data, stderr, widened
from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import DataSpec
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.errors import ConfigError, DataError, UserError
from avb_service.likelihood import scoring as module
from avb_service.likelihood.ais import ais
from avb_service.likelihood.anneal import (
    STRIDES,
    AnnealConfig,
    Path,
    State,
    anneal,
    integrate,
    pilot_chains,
    temperatures,
    transition,
    tuned_steps,
)
from avb_service.likelihood.bdmc import bdmc
from avb_service.likelihood.certify import CertificateConfig, certify
from avb_service.likelihood.importance import iwae
from avb_service.likelihood.proposals import PilotConfig, Proposal, from_prior, refined
from avb_service.likelihood.scoring import Scorer, Task, estimate, serially
from avb_service.networks.trunks import MLPConfig
from avb_service.records import Estimate, Key
from avb_service.seeding import seeded

PIXELS, DIM = 20, 5


def pca(dtype: torch.dtype = torch.float32, dim: int = DIM) -> PCA:
    """In the precision in which models are trained."""
    return PCA(dim, noise=0.5, pixels=PIXELS, dtype=dtype)


def narrow(model: PCA) -> Proposal:
    """A proposal that misses most of the posterior, as a collapsed encoder does."""
    return Proposal(lambda x: widened(0.1, shift=0.3)(model.exact_posterior(x)))


def run(model: PCA, make, x: Tensor, **options) -> Estimate:
    return estimate(Task(model, make, x, seed=0, memory_mib=64), **options)


def path_of(model: PCA, x: Tensor, proposal) -> Path:
    return Path(model, x, proposal(x))


# Estimates.


def test_chains_from_the_exact_posterior_are_exact_each():
    model = pca()
    x = data(model, 20)
    exact = model.exact(x)

    def make(model: PCA) -> Scorer:
        def score(part: Tensor) -> dict[str, Tensor]:
            path = path_of(model, part, model.posterior)
            betas = temperatures(20, "linear", part)
            weights = anneal(path, path.draw(4), betas, torch.full((20, len(part)), 0.5), 5).log_weights
            return {"nats": weights.mean(0), "worst": (weights - exact).abs().amax(0)}

        return Scorer(Key("each"), "exact", 4, score)

    assert run(model, make, x).columns["worst"].max() < 1e-4


def bracketed(model: PCA, start: Proposal, recipe: AnnealConfig, schedule: str, n: int) -> tuple[Estimate, Tensor]:
    """Both bounds on data that the model drew, and what is between them: log p(x) of the same data."""
    simulated: list[Tensor] = []

    def propose(part: Tensor) -> Distribution:
        simulated.append(part)
        return start(part)

    seen = Proposal(propose, start.rows)
    result = run(model, lambda model: bdmc(model, seen, recipe, schedule), torch.arange(n))
    return result, model.exact(torch.cat(simulated))


def test_the_start_from_the_prior_brackets_the_truth_and_the_gap_falls_with_temperatures():
    model, gaps = pca(), []
    for count in (10, 40, 160):
        result, exact = bracketed(model, from_prior(model), AnnealConfig(temperatures=count), "sigmoid", 50)
        below, above = exact - torch.from_numpy(result.per_datum), torch.from_numpy(result.columns["upper"]) - exact
        for side in (below, above):
            assert side.mean() > -3 * stderr(side)
        gaps.append(result.diagnostics["gap"])
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert max(below.mean(), above.mean()) < gaps[-1], "the truth is inside"


def test_the_bounds_of_bdmc_stand_on_both_sides_of_the_exact_value():
    model = pca()
    recipe = AnnealConfig(temperatures=20)
    start = refined(model, PilotConfig(temperatures=30))
    result = run(model, lambda model: bdmc(model, start, recipe), torch.arange(200))
    with seeded("entropy"), torch.no_grad():
        mean = model.exact(model.sample(200_000)).mean().item()  # of what the model draws
    assert result.value < mean + 3 * result.stderr
    upper = torch.from_numpy(result.columns["upper"])
    assert upper.mean() > mean - 3 * upper.std() / math.sqrt(len(upper))


def test_a_refined_start_is_close_to_the_exact_value():
    model = pca()
    x = data(model, 60)
    exact = model.exact(x)
    annealed = run(model, lambda model: ais(model, refined(model, PilotConfig()), AnnealConfig()), x)
    weighted = run(model, lambda model: iwae(model, refined(model, PilotConfig()), 256), x)
    for result in (annealed, weighted):
        assert result.kind == "lower_bound"
        assert -0.05 < (torch.from_numpy(result.per_datum) - exact).mean() < 0.03


# Frozen kernels.


def mean_weight(rate: float) -> tuple[float, float]:
    """E[w / p(x)] over many short chains, and its standard error."""
    model = pca(torch.float64, dim=1)
    model.noise = 1.0
    x = data(model, 1).expand(20_000, -1, -1, -1)
    with seeded("weights"), torch.no_grad():
        path = path_of(model, x, from_prior(model))
        betas, steps = temperatures(20, "sigmoid", x), torch.ones(20, len(x), dtype=torch.float64)
        log_weights = anneal(path, path.draw(1), betas, steps, 3, rate=rate).log_weights[0]
    ratio = (log_weights - model.exact(x)).exp()
    return ratio.mean().item(), ratio.std().item() / math.sqrt(len(ratio))


def test_the_mean_weight_is_one_with_frozen_kernels():
    mean, stderr = mean_weight(rate=0.0)
    assert stderr < 0.02
    assert abs(mean - 1) < 4 * stderr


def test_the_mean_weight_is_more_than_one_where_kernels_adapt_inside_the_run():
    mean, stderr = mean_weight(rate=1.0)
    assert mean - 1 > 4 * stderr


def test_the_whole_recipe_is_unbiased_forwards_and_its_upper_bound_backwards():
    """E[w] = p(x) with the pilots and their steps; E[1 / upper] = 1 / p(x), z* being a draw of the posterior."""
    model = PCA(1, noise=2.0, pixels=3)  # a posterior near the prior, so that no weight is rare
    recipe = AnnealConfig(temperatures=3, chains=2, leapfrog=2)
    start = refined(model, PilotConfig(temperatures=8, chains=16, rest=4, leapfrog=2, inflate=1.6))
    x = data(model, 1).expand(4000, -1, -1, -1)
    forward = torch.from_numpy(run(model, lambda model: ais(model, start, recipe), x).per_datum) - model.exact(x)
    both, exact = bracketed(model, start, recipe, "linear", 4000)
    for log_ratio in (forward, exact - torch.from_numpy(both.columns["upper"])):
        ratio = log_ratio.exp()
        stderr = ratio.std().item() / math.sqrt(len(ratio))
        assert stderr < 0.01
        assert abs(ratio.mean().item() - 1) < 4 * stderr


# Hamiltonian dynamics.


@pytest.mark.parametrize("observation", ["bernoulli", "gaussian"])
def test_the_gradient_by_itself_is_the_one_beside_the_density(observation):
    trunk = MLPConfig(hidden=(16,))
    section = {"latent_dim": 3, "observation": {"name": observation}}
    with seeded("gradient"):
        spec = DataSpec((1, 4, 5), "binary", 1, torch.full((1, 4, 5), 0.5))
        model = VAE(VAEConfig(**section, encoder=trunk, decoder=trunk), spec)
        x = torch.randint(2, (6, 1, 4, 5)).float()
        path = Path(model, x, model.posterior(x))
        u = torch.randn(8, 6, 3)
    torch.testing.assert_close(path.gradient(u), path.at(u).gradient, rtol=1e-6, atol=1e-6)
    assert path.gradient(u).abs().max() > 0.1


def leapfrog(path: Path, u: Tensor, momentum: Tensor, step: float, count: int) -> tuple[Tensor, Tensor]:
    """The trajectory inside `transition`, by itself."""
    size = torch.full((u.shape[1],), step, dtype=u.dtype)
    state, momentum = integrate(path, path.at(u), momentum, 0.7, size, count)
    return state.u, momentum


def test_trajectories_are_reversible():
    model = pca(torch.float64)
    x = data(model, 4)
    with seeded("reversible"):
        path = path_of(model, x, from_prior(model))
        u, momentum = torch.randn(2, 3, 4, DIM, dtype=torch.float64)
        there, turned = leapfrog(path, u, momentum, 0.05, 5)
        back, _ = leapfrog(path, there, -turned, 0.05, 5)
    assert (there - u).abs().max() > 0.1
    torch.testing.assert_close(back, u, rtol=0, atol=1e-10)


def test_the_energy_error_falls_as_the_square_of_the_step():
    model = pca(torch.float64)
    x = data(model, 8)
    with seeded("energy"):
        path = path_of(model, x, from_prior(model))
        u, momentum = torch.randn(2, 16, 8, DIM, dtype=torch.float64)

        def energy(u: Tensor, momentum: Tensor) -> Tensor:
            return 0.5 * momentum.square().sum(-1) - 0.3 * path.log_r(u) - 0.7 * path.at(u).log_p

        errors = []
        for step, count in ((0.02, 5), (0.01, 10), (0.005, 20)):
            end, turned = leapfrog(path, u, momentum, step, count)
            errors.append((energy(end, turned) - energy(u, momentum)).abs().mean().item())
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 3.5 < coarse / fine < 4.5


def test_a_transition_keeps_the_posterior():
    model = pca(torch.float64)
    x = data(model, 1).expand(400, -1, -1, -1)
    posterior = model.posterior(x)
    with seeded("invariant"), torch.no_grad():
        path = path_of(model, x, from_prior(model))
        state = path.at(posterior.sample((8,)))
        for _ in range(20):
            state, accepted = transition(path, state, 1.0, torch.full((400,), 0.15, dtype=torch.float64), 3)
    assert 0.2 < accepted.mean() < 0.999
    draws = path.z(state.u).flatten(0, 1)
    torch.testing.assert_close(draws.mean(0), posterior.loc[0], rtol=0, atol=0.02)
    torch.testing.assert_close(draws.mT.cov(), posterior.covariance_matrix[0], rtol=0, atol=0.004)


def test_pilot_chains_find_the_step_size_for_their_acceptance():
    model = pca()
    with seeded("pilot"), torch.no_grad():
        path = path_of(model, data(model, 20), from_prior(model))
        pilot = pilot_chains(path, temperatures(100, "sigmoid", path.mean), AnnealConfig())
    assert 0.7 < pilot.acceptance.mean() < 0.9
    assert pilot.steps[-1].mean() < 0.5 * pilot.steps[0].mean(), "the posterior is narrower than the prior"


def test_step_sizes_of_a_long_path_are_learned_in_fewer_strides():
    model = pca()
    recipe = AnnealConfig(temperatures=3 * STRIDES)
    with seeded("strides"), torch.no_grad():
        path = path_of(model, data(model, 20), from_prior(model))
        betas = temperatures(recipe.temperatures, "sigmoid", path.mean)
        asked = Counted(path)
        steps = tuned_steps(asked, betas, recipe)
        frozen = anneal(path, path.draw(8), betas, steps, recipe.leapfrog)
    assert steps.shape == (recipe.temperatures, 20)
    assert asked.gradients == STRIDES * recipe.leapfrog + 1
    assert 0.7 < frozen.acceptance.mean() < 0.9, "and yet they suit"


class Counted(Path):
    """A path that counts how often it was asked for a gradient of all chains."""

    def __init__(self, path: Path) -> None:
        self.__dict__.update(path.__dict__)
        self.gradients = 0

    def at(self, u: Tensor) -> State:
        self.gradients += 1
        return super().at(u)

    def gradient(self, u: Tensor) -> Tensor:
        self.gradients += 1
        return super().gradient(u)


# Certificates.


def scoring(model: PCA, proposal, recipe: AnnealConfig):
    makes = {
        "bdmc": lambda model: bdmc(model, proposal, recipe),
        "ais": lambda model: ais(model, proposal, recipe),
        "ais_doubled": lambda model: ais(
            model, proposal, recipe.model_copy(update={"temperatures": 2 * recipe.temperatures}), name="ais_doubled"
        ),
        "ais_prior": lambda model: ais(
            model, from_prior(model), AnnealConfig(temperatures=500), "sigmoid", name="ais_prior"
        ),
    }
    return lambda name, x: run(model, makes[name], x)


def test_a_model_is_certified_from_a_refined_start_and_not_from_one_that_is_too_narrow():
    model, config = pca(dim=2), CertificateConfig(real=50)
    x = data(model, 50)
    good = certify(scoring(model, refined(model, PilotConfig()), AnnealConfig()), x, 8, config)
    assert good.passed, good.reason
    assert good.verdict == "PASS"
    bad = certify(scoring(model, narrow(model), AnnealConfig()), x, 8, config)
    assert bad.verdict == "lower bound only"
    failed = {check.name for check in bad.checks if not check.passed}
    assert {"gap", "starts"} <= failed
    assert "gap between the bounds" in bad.reason


def test_too_few_simulated_data_give_no_certificate():
    model = pca(dim=2)
    score = scoring(model, refined(model, PilotConfig(temperatures=20)), AnnealConfig(temperatures=10))
    certificate = certify(score, data(model, 20), 8, CertificateConfig(simulated=50, real=20))
    assert [check.name for check in certificate.checks if not check.passed][:1] == ["simulated_data"]


@pytest.mark.parametrize(("real", "limit"), [(49, 0.05), (50, 0.2)])
def test_few_real_data_do_not_excuse_a_drift_by_its_error(real, limit):
    drifts = torch.arange(real, dtype=torch.float64).remainder(2) * 1.4  # mean 0.7, error 0.7 / sqrt(n)
    nats = {"ais": torch.zeros(real), "ais_doubled": drifts, "ais_prior": torch.zeros(real)}

    def score(name: str, x: Tensor) -> Estimate:
        if name == "bdmc":
            return Estimate.of(
                Key(name),
                "lower_bound",
                {"nats": torch.zeros(200), "gap": torch.zeros(200), "upper": torch.zeros(200)},
                "simulated",
            )
        return Estimate.of(Key(name), "lower_bound", {"nats": nats[name], "ess": torch.full((real,), 8.0)})

    (drift,) = [
        check
        for check in certify(score, torch.zeros(60)[:real], 8, CertificateConfig()).checks
        if check.name == "drift"
    ]
    assert drift.limit == pytest.approx(limit, rel=0.05) and not drift.passed


def test_two_chains_give_no_certificate():
    model = pca(dim=2)
    recipe = AnnealConfig(chains=2)
    certificate = certify(
        scoring(model, refined(model, PilotConfig()), recipe), data(model, 50), 2, CertificateConfig()
    )
    assert [check.name for check in certificate.checks if not check.passed] == ["ess"]


def test_a_bound_that_is_higher_on_the_same_data_refutes_the_estimate():
    def of(name: str, value: float, draws: int | None = None) -> Estimate:
        return Estimate.of(
            Key(name, draws), "lower_bound", {"nats": torch.full((60,), value), "ess": torch.full((60,), 8.0)}
        )

    def score(name: str, x: Tensor) -> Estimate:
        if name == "bdmc":
            zero = torch.zeros(200)
            return Estimate.of(Key(name), "lower_bound", {"nats": zero, "gap": zero, "upper": zero}, "simulated")
        return of(name, -3.0)

    x = torch.zeros(60)
    for others, passed in (([], True), ([of("iwae", -2.9, 256)], False), ([of("iwae", -2.96, 256)], True)):
        certificate = certify(score, x, 8, CertificateConfig(), [of("ais", -3.0), *others])
        assert certificate.passed == passed
    certificate = certify(score, x, 8, CertificateConfig(), [of("ais", -3.0), of("iwae", 0.0, 256)])
    assert [check.name for check in certificate.checks if not check.passed] == ["shortfall"]
    assert certificate.reason == "iwae_256 above ais: 3, expected <= 0.05"
    assert certificate.verdict == "lower bound only"


@pytest.mark.parametrize("limit", ["gap", "gap_95", "drift", "starts", "shortfall"])
def test_a_limit_can_be_tightened_and_not_loosened(limit):
    usual = getattr(CertificateConfig(), limit)
    assert getattr(CertificateConfig.parse({limit: usual / 2}), limit) == usual / 2
    with pytest.raises(ConfigError, match=f"{limit}: given"):
        CertificateConfig.parse({limit: usual * 1.01})


# Interruptions.


def quick(model: PCA) -> Scorer:
    return iwae(model, from_prior(model), 4)


class Quick:
    def __call__(self, model: PCA) -> Scorer:
        return quick(model)

    def __repr__(self) -> str:
        return "quick"


def test_blocks_done_in_any_order_give_the_same_table():
    model = pca()
    x = data(model, 300)

    def backwards(task: Task, blocks):
        yield from reversed(list(serially(task, blocks)))

    assert np.array_equal(run(model, quick, x, run=backwards).per_datum, run(model, quick, x).per_datum)


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:-1] + b"!", lambda _: b""])
def test_a_damaged_block_is_scored_again(tmp_path, caplog, damage):
    model = pca()
    x = data(model, 120)
    first = run(model, Quick(), x, store=tmp_path)
    victim = sorted(tmp_path.rglob("*.block"))[1]
    victim.write_bytes(damage(victim.read_bytes()))
    again = run(model, Quick(), x, store=tmp_path)
    assert np.array_equal(again.per_datum, first.per_datum)
    assert "damaged and scored again" in caplog.text


def test_another_model_does_not_find_the_blocks_of_the_first(tmp_path):
    model = pca()
    x = data(model, 60)
    first = run(model, Quick(), x, store=tmp_path)
    with torch.no_grad():
        model.w.mul_(1.1)
    assert not np.array_equal(run(model, Quick(), x, store=tmp_path).per_datum, first.per_datum)


def test_other_code_does_not_find_them_either(tmp_path, monkeypatch):
    model, scored = pca(), []
    x = data(model, 60)

    def noting(task: Task, blocks):
        scored.extend(blocks)
        yield from serially(task, blocks)

    for version in ("1+a", "1+a", "1+b"):
        monkeypatch.setattr(module, "code_version", lambda packages, version=version: version)
        run(model, Quick(), x, run=noting, store=tmp_path)
    assert len(scored) == 4, "two blocks, by either code once"


def test_a_place_where_nothing_can_be_kept_is_refused_before_anything_is_scored(tmp_path):
    (tmp_path / "file").touch()
    scored = []
    with pytest.raises(UserError, match="cannot write .*file.*choose another place"):
        run(pca(), Quick(), data(pca(), 60), store=tmp_path / "file", progress=lambda done, total: scored.append(done))
    assert scored == []


def test_progress_counts_every_datum():
    model, seen = pca(), []
    run(model, quick, data(model, 120), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 120), (50, 120), (100, 120), (120, 120)]


def test_a_datum_that_is_not_a_number_is_named():
    model = pca()
    x = data(model, 70)
    x[63] = math.nan
    with pytest.raises(DataError, match="of datum 63 is not a number"):
        run(model, quick, x)


def test_no_data_are_refused():
    with pytest.raises(DataError, match="given 0, expected at least 1"):
        run(pca(), quick, torch.zeros(0, 1, 1, PIXELS))
