"""ELBOs, the ceiling of them, and what an adversary knows, against known divergences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from known_adversary import BASIS, BINARY, INPUT, SMALL, Constant, Known, Optimal, gaussian, one_hot
from linear_gaussian import PCA, data, divergence, implicit, implicit_humps, mean_field, run, scored, stderr, two_humps
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)

from avb_service.algorithm import Batch
from avb_service.algorithms.avb import AVB, AVBConfig
from avb_service.algorithms.avb_ac import AVBAC, AVBACConfig
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.errors import UserError
from avb_service.likelihood.elbo import elbo, elbo_adversarial, elbo_ceiling
from avb_service.likelihood.moments import kl_floor
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import seeded

# With a density.


def test_elbo_is_the_evidence_less_the_divergence_of_the_posterior():
    model = PCA(3, mean_field)
    x = data(model, 500)
    bound, gap = run(lambda model: elbo(model, 256), model, x), divergence(model, x)
    difference = torch.from_numpy(bound.per_datum) - (model.exact(x) - gap)
    assert (bound.name, bound.kind) == ("elbo", "lower_bound")
    assert abs(difference.mean().item()) < 4 * stderr(difference)
    assert gap.mean() > 20 * stderr(difference)  # so that it could not be taken for zero


def test_elbo_shows_its_two_terms():
    model = PCA(3, mean_field)
    x = data(model, 50)
    columns = run(lambda model: elbo(model, 4), model, x).columns
    np.testing.assert_allclose(columns["nats"], columns["reconstruction"] - columns["kl"], rtol=1e-7)
    np.testing.assert_allclose(columns["kl"], kl_divergence(model.posterior(x), model.prior()).detach(), rtol=1e-7)


class Shifted(PCA):
    """A prior N(1, 2^2) that torch takes for a flow, and has no KL for."""

    def prior(self) -> Distribution:
        transform = AffineTransform(1.0, 2.0, event_dim=1)
        return TransformedDistribution(super().prior(), [transform])


def test_elbo_draws_the_kl_where_there_is_no_formula():
    model = Shifted(3, mean_field)
    x = data(model, 500)
    columns = run(lambda model: elbo(model, 16), model, x).columns
    prior = Independent(Normal(torch.ones(3, dtype=torch.float64), 2.0), 1)
    difference = torch.from_numpy(columns["kl"]) - kl_divergence(model.posterior(x), prior).detach()
    assert 0 < stderr(difference) < 0.05
    assert abs(difference.mean().item()) < 4 * stderr(difference)


# The ceiling.


def test_the_ceiling_of_a_gaussian_posterior_is_its_elbo():
    for q in (mean_field, lambda exact: exact):
        model = PCA(3, q)
        x = data(model, 50)
        ceiling, bound = scored(elbo_ceiling(model, 8), x), scored(elbo(model, 8), x)
        torch.testing.assert_close(ceiling["nats"], bound["nats"], rtol=0, atol=1e-9)
        torch.testing.assert_close(ceiling["kl_floor"], bound["kl"], rtol=0, atol=1e-9)


def test_the_ceiling_is_above_the_elbo_where_the_posterior_is_not_gaussian():
    model, x = PCA(2, implicit_humps), data(PCA(2), 200)
    ceiling = run(lambda model: elbo_ceiling(model, 512), model, x)
    bound = run(lambda model: elbo(model, 512), PCA(2, two_humps), x)
    difference = torch.from_numpy(ceiling.per_datum - bound.per_datum)
    assert (ceiling.name, ceiling.kind) == ("elbo_ceiling", "upper_bound")
    assert 0.3 < difference.mean() < 3


def test_the_ceiling_is_not_one_of_the_log_likelihood():
    """A posterior that has collapsed: nothing about log p(x) follows from it."""
    model = PCA(2, lambda exact: Independent(Normal(exact.loc, 0.01), 1))
    x = data(model, 100)
    assert run(lambda model: elbo_ceiling(model, 16), model, x).value < model.exact(x).mean() - 3


@pytest.mark.parametrize(("tails", "draws", "left"), [("gaussian", 24, 0.03), ("heavy", 128, 0.3)])
def test_few_draws_do_not_raise_the_floor_of_the_kl(tails, draws, left):
    """What is proven must not be the noise of moments."""
    model, x = PCA(6), data(PCA(6), 1500)
    exact = model.exact_posterior(x)
    prior = MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double())
    with seeded("floor"), torch.no_grad():
        z = exact.sample((draws,))
        if tails == "heavy":  # a scale mixture with the same mean and covariance
            scale = torch.where(torch.rand(draws, len(x), 1) < 0.2, 2.0, 0.5).double()
            z = exact.loc + scale * (z - exact.loc)
        centred = z - z.mean(0)
        sampled = MultivariateNormal(z.mean(0), torch.einsum("sbi,sbj->bij", centred, centred) / (draws - 1))
        truth = kl_divergence(exact, prior)
        noise = kl_divergence(sampled, prior) - truth
        error = kl_floor(implicit(exact), z) - truth
    assert noise.mean() > 10 * stderr(noise)
    assert abs(error.mean()) < left * noise.mean() + 3 * stderr(error)


def test_the_ceiling_names_what_is_in_the_way():
    with pytest.raises(UserError, match=r"prior N\(0, I\), that of Shifted is TransformedDistribution.*use elbo"):
        elbo_ceiling(Shifted(3, mean_field), 16)
    with pytest.raises(UserError, match="at least 5 draws for moments in 3 dimensions, given 4"):
        elbo_ceiling(PCA(3, implicit), 4)
    elbo_ceiling(PCA(3, mean_field), 4)


# What an adversary knows.


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
    ratio = model.log_ratio(torch.zeros(5, 1, 1, 4), Known(q, mean, matrix), z, ())
    torch.testing.assert_close(ratio, q.log_prob(z) - model.prior().log_prob(z), rtol=0, atol=1e-8)


def test_the_contrast_is_a_constant_for_both_players():
    q = gaussian(5, 3, "q")
    mean, matrix = q.loc.clone().requires_grad_(), q.covariance_matrix.clone().requires_grad_()
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    z = q.sample((7,)).requires_grad_()
    model.log_ratio(torch.zeros(5, 1, 1, 4).double(), Known(q, mean, matrix), z, ()).sum().backward()
    assert z.grad.abs().min() > 0
    assert mean.grad is None
    assert matrix.grad is None


def test_without_adaptive_contrast_the_adversary_s_ratio_is_all_there_is():
    q, eye = gaussian(5, 3, "q"), torch.eye(3, dtype=torch.float64)
    model = AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY).double()
    model.discriminator = Optimal(q, torch.zeros_like(q.loc), eye)
    with seeded("z"):
        z = q.sample((7,))
    ratio = model.log_ratio(torch.zeros(5, 1, 1, 4), Known(q, q.loc, q.covariance_matrix), z, ())
    torch.testing.assert_close(ratio, q.log_prob(z) - model.prior().log_prob(z), rtol=0, atol=1e-8)


def test_the_adversarial_elbo_of_an_optimal_adversary_is_the_elbo():
    model = AVBAC(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    q, contrast, eye = gaussian(200, 3, "q"), gaussian(200, 3, "contrast"), torch.eye(3, dtype=torch.float64)
    factor = torch.linalg.cholesky(contrast.covariance_matrix + model.config.jitter * eye)
    model.encoder = Constant(Known(q, contrast.loc, contrast.covariance_matrix))
    model.discriminator = Optimal(q, contrast.loc, factor)
    x, scorer = one_hot(200), elbo_adversarial(model, 64, 0)
    columns = scored(scorer, x)
    with torch.no_grad(), seeded("reference"):
        reconstruction = model.likelihood(q.sample((4000,))).log_prob(x).mean(0)
        kl = kl_divergence(q, MultivariateNormal(torch.zeros_like(q.loc), eye))
    difference = columns["nats"] - (reconstruction - kl)
    assert (str(scorer.key), scorer.kind) == ("elbo_adversarial", "estimate")
    assert abs(difference.mean().item()) < 4 * stderr(difference)
    torch.testing.assert_close(columns["nats"], columns["reconstruction"] - columns["log_ratio"])


def test_all_blocks_share_the_moments_of_the_contrast():
    class Listening(AVBAC):
        def contrast(self, q, shared):
            means.append(shared.mean.sum().item())
            return super().contrast(q, shared)

    model = Listening(AVBACConfig(**SMALL, encoder=BASIS), BINARY).double()
    means: list[float] = []
    run(lambda model: elbo_adversarial(model, 8192, 0), model, one_hot(20), mib=1)
    assert len(means) > 5
    assert len(set(means)) == 1
    run(lambda model: elbo_adversarial(model, 8192, 1), model, one_hot(1), mib=1)
    assert len(set(means)) == 2


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
    batch = Batch(torch.zeros(n, 1, 1, 4, dtype=torch.float64), None, torch.tensor(0.0))
    optimizer = torch.optim.LBFGS(model.discriminator.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with seeded("fixed draws"):
            loss = model.adversary_loss(batch)
        loss.value.backward()
        return loss.value

    optimizer.step(closure)
    with torch.no_grad(), seeded("fresh draws"):
        ratio = model.log_ratio(batch.x, known, wide.sample(), batch.shared)
        learned = ratio.mean().item()
    exact = kl_divergence(q, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())).item()
    assert exact > 0.5
    assert learned == pytest.approx(exact, rel=0.01)


def test_elbos_that_do_not_apply_say_so():
    vae = VAE(VAEConfig(latent_dim=2, encoder=MLPConfig(hidden=(8,)), decoder=MLPConfig(hidden=(8,))), BINARY)
    with pytest.raises(UserError, match="elbo needs a posterior with a density.*AVB is implicit: use elbo_adv.*iwae"):
        elbo(AVB(AVBConfig(**SMALL, encoder=INPUT), BINARY), 8)
    with pytest.raises(UserError, match=r"elbo_adversarial needs an adversary T\(x,z\).*which VAE has not: use elbo$"):
        elbo_adversarial(vae, 8, 0)
    with pytest.raises(UserError, match=r"elbo_adversarial needs an adversary.*which PCA has not: use iwae$"):
        elbo_adversarial(PCA(2, implicit), 8, 0)
