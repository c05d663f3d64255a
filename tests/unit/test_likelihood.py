"""Estimators against cases with exact answers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from avb_service.algorithm import Algorithm, Batch, DataSpec, LatentVariableModel, Player
from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.algorithms.avb_ac import AVBAC, AVBACConfig
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.distributions import ImplicitPosterior, NoiseBasisPosterior
from avb_service.errors import UserError
from avb_service.likelihood import (
    Estimate,
    LikelihoodConfig,
    elbo,
    elbo_adversarial,
    evaluate,
    iwae,
    latent_variable_model,
    quadrature,
)
from avb_service.likelihood.estimate import over_data
from avb_service.maths import standard_normal
from avb_service.networks.adversaries import InnerProductConfig
from avb_service.networks.encoders import NoiseBasisConfig, NoiseInputConfig
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import generator, seeded

PIXELS = 6
LINEAR_SPEC = DataSpec((1, 1, PIXELS), "real", 0, torch.zeros(1, 1, PIXELS))


class PCA(LatentVariableModel):
    """Probabilistic PCA: p(x|z) = N(W z + mu, s^2), whose evidence and posterior are Gaussians.

    Args:
        dim: of z.
        q: makes the posterior that the model is to have of the exact one.
    """

    def __init__(self, dim: int, q: Callable[[MultivariateNormal], object] = lambda exact: exact) -> None:
        super().__init__(None, LINEAR_SPEC)
        with seeded("pPCA"):
            self.w = nn.Parameter(torch.randn(PIXELS, dim, dtype=torch.float64))
            self.mu = torch.randn(PIXELS, dtype=torch.float64)
        self.noise, self.q = 0.7, q

    def players(self) -> tuple[Player, ...]:
        return ()

    def prior(self) -> Distribution:
        return standard_normal(self.w.shape[1], self.w)

    def likelihood(self, z: Tensor) -> Distribution:
        mean = (z @ self.w.mT + self.mu)[..., None, None, :]
        return Independent(Normal(mean, self.noise), 3)

    def exact_posterior(self, x: Tensor) -> MultivariateNormal:
        precision = torch.eye(self.w.shape[1], dtype=torch.float64) + self.w.mT @ self.w / self.noise**2
        covariance = torch.linalg.inv(precision)
        mean = (x.flatten(1) - self.mu) @ self.w @ covariance / self.noise**2
        return MultivariateNormal(mean, covariance.expand(len(x), *covariance.shape))

    def posterior(self, x: Tensor) -> Distribution | ImplicitPosterior:
        return self.q(self.exact_posterior(x))

    def exact(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.mT + self.noise**2 * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(self.mu, covariance).log_prob(x.flatten(1)).detach()


def widened(factor: float, shift: float = 0.0) -> Callable[[MultivariateNormal], MultivariateNormal]:
    return lambda exact: MultivariateNormal(exact.loc + shift, scale_tril=factor * exact.scale_tril)


def mean_field(exact: MultivariateNormal) -> Independent:
    """A posterior with the ELBO in closed form, wider than the exact one and beside it."""
    return Independent(Normal(exact.loc + 0.3, 1.6 * exact.variance.sqrt()), 1)


def divergence(model: PCA, x: Tensor) -> Tensor:
    """KL(q || exact posterior), by which the ELBO falls short."""
    q = model.posterior(x)
    return kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), model.exact_posterior(x)).detach()


def implicit(exact: MultivariateNormal) -> ImplicitPosterior:
    return ImplicitPosterior(exact.rsample)


def data(model: PCA, n: int) -> Tensor:
    with seeded("data"), torch.no_grad():
        return model.sample(n)


def settings(**options: object) -> LikelihoodConfig:
    return LikelihoodConfig(**{"importance_draws": 64, "proposal_draws": 64, "elbo_draws": 8, **options})


def drawn(k: int, **options: object) -> LikelihoodConfig:
    return settings(**options).model_copy(update={"importance_draws": k})  # K = 1 is of no use but to test


def stderr(differences: Tensor) -> float:
    return differences.std().item() / math.sqrt(len(differences))


# Quadrature.


@pytest.mark.parametrize("dim", [1, 2])
def test_quadrature_of_a_linear_gaussian_model_is_its_closed_form(dim):
    model = PCA(dim)
    x = data(model, 20)
    estimate = quadrature(model, x, settings())
    assert estimate.kind == "exact"
    torch.testing.assert_close(estimate.per_datum, model.exact(x), rtol=0, atol=1e-5)
    assert estimate.diagnostics["doubling"] < 1e-5
    assert estimate.diagnostics["shift"] < 1e-5


def test_quadrature_in_single_precision_agrees():
    model = PCA(2)
    x = data(model, 20)
    exact = model.exact(x)
    model.w.data, model.mu = model.w.data.float(), model.mu.float()
    estimate = quadrature(model, x.float(), settings())
    assert estimate.kind == "exact"
    torch.testing.assert_close(estimate.per_datum, exact, rtol=0, atol=1e-4)


def test_quadrature_doubles_its_grid_until_a_narrow_posterior_is_resolved():
    model = PCA(1)
    model.noise = 0.2
    x = data(model, 20)
    estimate = quadrature(model, x, settings())
    assert estimate.kind == "exact"
    assert estimate.diagnostics["cells"] > 128
    torch.testing.assert_close(estimate.per_datum, model.exact(x), rtol=0, atol=1e-4)


def test_quadrature_that_does_not_settle_is_no_exact_value():
    model = PCA(1)
    model.noise = 1e-4
    estimate = quadrature(model, data(model, 20), settings())
    assert estimate.kind == "estimate"
    assert max(estimate.diagnostics["doubling"], estimate.diagnostics["shift"]) > 1e-5


def test_quadrature_is_done_for_as_many_data_as_asked_for():
    model = PCA(1)
    x = data(model, 20)
    estimate = quadrature(model, x, settings(quadrature_data=7))
    torch.testing.assert_close(estimate.per_datum, model.exact(x)[:7], rtol=0, atol=1e-5)


def test_quadrature_needs_a_small_latent_space():
    model = PCA(3)
    with pytest.raises(UserError, match="at most 2 latent dimensions, this model has 3: use iwae"):
        quadrature(model, data(model, 2), settings())


# Importance weighting.


@pytest.mark.parametrize("k", [2, 16])
def test_iwae_under_the_exact_posterior_is_exact(k):
    model = PCA(3)
    x = data(model, 30)
    estimate = iwae(model, x, drawn(k))
    assert (estimate.name, estimate.kind) == (f"iwae_{k}", "lower_bound")
    torch.testing.assert_close(estimate.per_datum, model.exact(x), rtol=0, atol=1e-9)


def test_iwae_of_one_draw_is_the_elbo():
    model = PCA(3, mean_field)
    x = data(model, 4000)
    one, bound = iwae(model, x, drawn(1)), elbo(model, x, settings())
    assert one.value == pytest.approx(bound.value, abs=3 * stderr(one.per_datum - bound.per_datum))


def test_elbo_is_the_evidence_less_the_divergence_of_the_posterior():
    model = PCA(3, mean_field)
    x = data(model, 500)
    bound, gap = elbo(model, x, settings(elbo_draws=256)), divergence(model, x)
    difference = bound.per_datum - (model.exact(x) - gap)
    assert bound.kind == "lower_bound"
    assert abs(difference.mean().item()) < 4 * stderr(difference)
    assert gap.mean() > 20 * stderr(difference)  # so that it could not be taken for zero


def test_iwae_does_not_decrease_in_k():
    model = PCA(3, widened(1.6, 0.3))
    x = data(model, 2000)
    values = [iwae(model, x, drawn(k, seed=k)).per_datum for k in (1, 2, 8, 32)]
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
    difference = iwae(model, x, drawn(k)).per_datum - model.exact(x)
    assert difference.mean() < 3 * stderr(difference)


@pytest.mark.parametrize("q", [PROPOSALS["wide"], implicit], ids=["wide", "fitted"])
def test_importance_weights_are_unbiased(q):
    """E[p^(x)] = p(x). Draws that had also been used to fit the proposal would bias it upwards."""
    model = PCA(3, q)
    x = data(model, 2000)
    ratio = (iwae(model, x, drawn(16, proposal_draws=8, inflate=2.0)).per_datum - model.exact(x)).exp()
    assert abs(ratio.mean().item() - 1) < 4 * stderr(ratio)


def test_the_proposal_of_an_implicit_posterior_is_good():
    model = PCA(3, implicit)
    x = data(model, 200)
    estimate = iwae(model, x, drawn(256, proposal_draws=256))
    torch.testing.assert_close(estimate.per_datum, model.exact(x), rtol=0, atol=0.25)
    assert abs((estimate.per_datum - model.exact(x)).mean()) < 0.02


# What an adversary knows.


class Known(NoiseBasisPosterior):
    """A posterior whose density is known, with whatever moments are asked for: any contrast will do."""

    def __init__(self, q: MultivariateNormal, mean: Tensor, covariance: Tensor) -> None:
        ImplicitPosterior.__init__(self, q.rsample)
        self.q, self.contrast = q, (mean, covariance)

    def moments(self, draws: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.contrast


class Optimal(nn.Module):
    """T*(x, u) = log q(u|x) - log N(u), u = L^-1 (z - m): the adversary that has learned all there is to learn.

    Args:
        q: q(z|x).
        mean: m(x), [B, D].
        factor: L(x), [B, D, D].
    """

    def __init__(self, q: MultivariateNormal, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.q, self.mean, self.factor = q, mean, factor

    def forward(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        def log_ratio(u: Tensor) -> Tensor:
            z = self.mean + (self.factor @ u[..., None])[..., 0]
            log_q = self.q.log_prob(z) + torch.linalg.slogdet(self.factor).logabsdet
            return log_q - standard_normal(u.shape[-1], u).log_prob(u)

        return log_ratio


class Constant(nn.Module):
    """An encoder that has made up its mind."""

    def __init__(self, q: Known) -> None:
        super().__init__()
        self.q = q

    def forward(self, x: Tensor) -> Known:
        return self.q


SMALL = {
    "latent_dim": 3, "decoder": MLPConfig(hidden=(8,)),
    "discriminator": InnerProductConfig(trunk=MLPConfig(hidden=(8,)), hidden=(8,), rank=4),
}  # fmt: skip
INPUT = NoiseInputConfig(trunk=MLPConfig(hidden=(8,)), noise_dim=4, hidden=(8,))
BASIS = NoiseBasisConfig(trunk=MLPConfig(hidden=(8,)), bases=4, noise_dim=4, hidden=(8,))
BINARY = DataSpec((1, 1, 4), "binary", 1, torch.full((1, 1, 4), 0.25))


def gaussian(batch: int, dim: int, *seed: object) -> MultivariateNormal:
    with seeded("gaussian", *seed):
        root = torch.randn(batch, dim, dim, dtype=torch.float64)
        factor = torch.linalg.cholesky(root @ root.mT / dim + 0.3 * torch.eye(dim, dtype=torch.float64))
        return MultivariateNormal(torch.randn(batch, dim, dtype=torch.float64), scale_tril=factor)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("contrast", ["its own moments", "others", "wide", "narrow"])
def test_adaptive_contrast_gives_the_same_kl_for_any_contrast(covariance, contrast):
    q, other = gaussian(5, 3, "q"), gaussian(5, 3, "other")
    mean, matrix = {
        "its own moments": (q.loc, q.covariance_matrix), "others": (other.loc, other.covariance_matrix),
        "wide": (q.loc, 9 * q.covariance_matrix), "narrow": (q.loc, q.covariance_matrix / 9),
    }[contrast]  # fmt: skip
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS, covariance=covariance), BINARY).double()
    jittered = matrix + model.config.jitter * torch.eye(3, dtype=torch.float64)
    diagonal = torch.diag_embed(jittered.diagonal(dim1=-2, dim2=-1))
    factor = torch.linalg.cholesky(jittered if covariance == "full" else diagonal)
    model.discriminator = Optimal(q, mean, factor)
    with seeded("z"):
        z = q.sample((7,))
    ratio = model.log_ratio(torch.zeros(5, 1, 1, 4), Known(q, mean, matrix), z, generator("cpu"))
    torch.testing.assert_close(ratio, q.log_prob(z) - model.prior().log_prob(z), rtol=0, atol=1e-8)


def test_the_contrast_is_a_constant_for_both_players():
    q = gaussian(5, 3, "q")
    mean, matrix = q.loc.clone().requires_grad_(), q.covariance_matrix.clone().requires_grad_()
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    z = q.sample((7,)).requires_grad_()
    model.log_ratio(torch.zeros(5, 1, 1, 4).double(), Known(q, mean, matrix), z, generator("cpu")).sum().backward()
    assert z.grad.abs().min() > 0
    assert mean.grad is None
    assert matrix.grad is None


def test_without_adaptive_contrast_the_adversary_s_ratio_is_all_there_is():
    q, eye = gaussian(5, 3, "q"), torch.eye(3, dtype=torch.float64)
    model = AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY).double()
    model.discriminator = Optimal(q, torch.zeros_like(q.loc), eye)
    with seeded("z"):
        z = q.sample((7,))
    ratio = model.log_ratio(torch.zeros(5, 1, 1, 4), Known(q, q.loc, q.covariance_matrix), z, generator("cpu"))
    torch.testing.assert_close(ratio, q.log_prob(z) - model.prior().log_prob(z), rtol=0, atol=1e-8)


def test_the_adversarial_elbo_of_an_optimal_adversary_is_the_elbo():
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    q, contrast, eye = gaussian(200, 3, "q"), gaussian(200, 3, "contrast"), torch.eye(3, dtype=torch.float64)
    factor = torch.linalg.cholesky(contrast.covariance_matrix + model.config.jitter * eye)
    model.encoder = Constant(Known(q, contrast.loc, contrast.covariance_matrix))
    model.discriminator = Optimal(q, contrast.loc, factor)
    x = torch.eye(4, dtype=torch.float64)[torch.arange(200) % 4][:, None, None]
    estimate = elbo_adversarial(model, x, settings(elbo_draws=64))
    with torch.no_grad(), seeded("reference"):
        reconstruction = model.likelihood(q.sample((4000,))).log_prob(x).mean(0)
        kl = kl_divergence(q, MultivariateNormal(torch.zeros_like(q.loc), eye))
    difference = estimate.per_datum - (reconstruction - kl)
    assert (estimate.name, estimate.kind) == ("elbo_adversarial", "estimate")
    assert abs(difference.mean().item()) < 4 * stderr(difference)


class Quadratic(nn.Module):
    """T(x, u) = u' A u + b' u + c: features that contain the log-ratio of any two Gaussians."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.c = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: torch.einsum("...i,ij,...j->...", u, self.a, u) + u @ self.b + self.c


@pytest.mark.parametrize("contrast", ["prior", "adaptive"])
def test_the_adversary_s_loss_learns_the_density_ratio_of_two_gaussians(contrast):
    """KL(q || p) through the whole chain: the adversary's loss, then the model's log-ratio, within 1 %."""
    q = gaussian(1, 2, "ratio")
    options = {**SMALL, "latent_dim": 2}
    if contrast == "prior":
        model: AVB = AVB(AVBConfig(**options, encoder=INPUT), BINARY).double()
    else:
        model = AVBAC(AVBACConfig(**options, encoder=BASIS), BINARY).double()
    n = 200_000
    wide = MultivariateNormal(q.loc.expand(n, 2), scale_tril=q.scale_tril.expand(n, 2, 2))
    # A contrast that is a little off, as a sample's moments are.
    known = Known(wide, wide.loc + 0.2, 1.3 * wide.covariance_matrix)
    model.encoder, model.discriminator = Constant(known), Quadratic(2)
    batch = Batch(torch.zeros(n, 1, 1, 4, dtype=torch.float64), None, 0, generator("cpu"))
    optimizer = torch.optim.LBFGS(model.discriminator.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with seeded("fixed draws"):
            loss = model.adversary_loss(batch)
        loss.value.backward()
        return loss.value

    optimizer.step(closure)
    with torch.no_grad(), seeded("fresh draws"):
        ratio = model.log_ratio(batch.x, known, wide.sample(), batch.generator)
        learned = ratio.mean().item()
    exact = kl_divergence(q, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())).item()
    assert exact > 0.5
    assert learned == pytest.approx(exact, rel=0.01)


# What is common to all.


def test_data_are_cut_into_as_many_pieces_as_fit():
    seen: list[int] = []

    def score(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part.flatten(1).sum(1)

    x = torch.arange(100.0).repeat(1024, 1)[:100, None, None, :64].contiguous()
    x = x + torch.arange(100.0)[:, None, None, None]
    draws = 2**20 // (64 * 4 * 4) // 16  # a datum takes 64 pixels of 4 bytes, four times over: 16 data in a MiB
    assert torch.equal(over_data(score, x, draws, settings(memory_mib=1)), x.flatten(1).sum(1))
    assert seen == [16] * 6 + [4]
    seen.clear()
    over_data(score, x, draws * 10**6, settings(memory_mib=1))
    assert seen == [1] * 100
    seen.clear()
    over_data(score, x, 1, settings(memory_mib=1024))
    assert seen == [100]


def test_noise_of_a_piece_depends_on_the_seed_and_on_its_place():
    x, draws = torch.zeros(6, 1, 1, 64), 2**20 // (64 * 4 * 4) // 2

    def score(part: Tensor) -> Tensor:
        return torch.rand(len(part))

    first = over_data(score, x, draws, settings(memory_mib=1), "a")
    assert torch.equal(over_data(score, x, draws, settings(memory_mib=1), "a"), first)
    assert len(set(first.tolist())) == 6
    assert not torch.equal(over_data(score, x, draws, settings(memory_mib=1), "b"), first)
    assert not torch.equal(over_data(score, x, draws, settings(memory_mib=1, seed=1), "a"), first)
    assert torch.equal(over_data(score, x[:2], draws, settings(memory_mib=1), "a"), first[:2])


@pytest.mark.parametrize("memory", [1, 64])
@pytest.mark.parametrize("estimator", [iwae, quadrature])
def test_exact_values_do_not_hang_on_how_data_are_cut(estimator, memory):
    model = PCA(2)
    x = data(model, 300)
    estimate = estimator(model, x, settings(importance_draws=512, quadrature_data=300, memory_mib=memory))
    torch.testing.assert_close(estimate.per_datum, model.exact(x), rtol=0, atol=1e-5)


def test_evaluation_leaves_the_global_generator_alone_and_is_repeatable():
    model = PCA(2, mean_field)
    x = data(model, 10)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = evaluate(model, x, settings())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    for one, other in zip(first, evaluate(model, x, settings()), strict=True):
        assert torch.equal(one.per_datum, other.per_datum)
        assert not one.per_datum.requires_grad


def test_an_estimate_is_a_mean_with_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    estimate = Estimate.of("iwae_8", "lower_bound", values, ess=2.5)
    assert estimate.value == 3.0
    assert estimate.stderr == pytest.approx(math.sqrt(14 / 3) / 2)
    assert estimate.per_datum.dtype == torch.float64
    assert estimate.metrics("test") == {
        "test/log_likelihood.iwae_8.lower_bound": 3.0, "test/log_likelihood.iwae_8.stderr": estimate.stderr,
        "test/log_likelihood.iwae_8.ess": 2.5,
    }  # fmt: skip
    assert math.isnan(Estimate.of("iwae_8", "lower_bound", values[:1]).stderr)


class Sampler(Algorithm):
    """A method without p(x|z)."""

    def players(self) -> tuple[Player, ...]:
        return ()

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 1, 1, 4)


def vae(latent_dim: int) -> VAE:
    return VAE(VAEConfig(latent_dim=latent_dim, encoder=MLPConfig(hidden=(8,)), decoder=MLPConfig(hidden=(8,))), BINARY)


def test_estimators_that_do_not_apply_say_so():
    x = torch.zeros(3, 1, 1, 4)
    with pytest.raises(UserError, match=r"Sampler defines no p\(x\|z\)"):
        latent_variable_model(Sampler(None, BINARY))
    with pytest.raises(UserError, match=r"Sampler defines no p\(x\|z\)"):
        evaluate(Sampler(None, BINARY), x, settings())
    with pytest.raises(UserError, match="elbo needs a posterior with a density.*use elbo_adversarial or iwae"):
        elbo(AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY), x, settings())
    with pytest.raises(UserError, match="elbo_adversarial needs an adversary, which VAE has not: use elbo"):
        elbo_adversarial(vae(2), x, settings())


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: vae(2), ["iwae_64", "elbo", "quadrature"]), (lambda: vae(3), ["iwae_64", "elbo"]),
        (lambda: AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY), ["iwae_64", "elbo_adversarial"]),
        (lambda: AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY), ["iwae_64", "elbo_adversarial"]),
    ],
    ids=["vae-2", "vae-3", "avb", "avb_ac"],
)  # fmt: skip
def test_every_estimator_that_applies_is_computed_and_orders_as_its_kind_says(model, names):
    with seeded("model"):
        built = model()
    x = torch.eye(4)[:, None, None]
    estimates = evaluate(built, x, settings(elbo_draws=256))
    assert [estimate.name for estimate in estimates] == names
    assert all(estimate.per_datum.shape == (4,) for estimate in estimates)
    by_name = {estimate.name: estimate.value for estimate in estimates}
    if "elbo" in by_name:
        assert by_name["elbo"] < by_name["iwae_64"]
    if "quadrature" in by_name:
        assert by_name["iwae_64"] == pytest.approx(by_name["quadrature"], abs=0.1)
