"""The codebook, the gradient that goes straight through it, and the prior of the codes."""

import math

import pytest
import torch

from avb_service.algorithm import Batch
from avb_service.algorithms.vq_vae import VQVAE
from avb_service.build import build, load_data
from avb_service.errors import DataError
from avb_service.fitting import Fit
from avb_service.likelihood.elbo import elbo
from avb_service.likelihood.exact import enumeration
from avb_service.networks.autoregressive import Autoregressive, AutoregressiveConfig, Delta
from avb_service.networks.quantizer import AveragedCodebookConfig, GradientCodebookConfig, perplexity
from avb_service.seeding import seeded
from tests.unit.linear_gaussian import scored


def vq_vae(small, **overrides) -> VQVAE:
    paths = {f"algorithm.{path.replace('__', '.')}": value for path, value in overrides.items()}
    config = small("vq_vae", {"algorithm.codebook.size": 4, "algorithm.positions": 3, **paths})
    return build(config, load_data(config).spec).double()


def pictures(n: int) -> torch.Tensor:
    with seeded("pictures"):
        return torch.bernoulli(torch.full((n, 1, 8, 8), 0.4, dtype=torch.float64))


def batch(n: int) -> Batch:
    return Batch(pictures(n), None, torch.tensor(0.0))


def test_each_output_gets_the_nearest_vector():
    quantizer = GradientCodebookConfig(size=5, dim=3).build()
    z = torch.randn(7, 2, 3)
    chosen = quantizer(z)
    distances = (z[..., None, :] - quantizer.codebook).square().sum(-1)
    assert torch.equal(chosen.argmax(-1), distances.argmin(-1))
    assert torch.equal(quantizer.lookup(chosen), quantizer.codebook[distances.argmin(-1)])


def test_the_gradient_goes_straight_through(small):
    """The encoder gets the gradient that the decoder has at e, as if e were its output (section 3.2)."""
    model = vq_vae(small, beta=0.0)
    x, weights = pictures(6), list(model.encoder.parameters())
    z = model.encoder(x)
    e = model.quantizer.lookup(model.quantizer(z)).detach().requires_grad_()
    (at_e,) = torch.autograd.grad(-model.decoder(e.flatten(-2)).log_prob(x).mean(), e)
    expected = torch.autograd.grad(z, weights, at_e)
    found = torch.autograd.grad(model.loss(batch(6)).value, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_codebook_that_learns_by_gradient_goes_to_the_outputs_that_chose_it(small):
    """Of the three terms of eq. 3 only the second moves the codebook, by 2 (e - z) for each output."""
    model = vq_vae(small, codebook={"name": "gradient", "size": 4, "dim": 3})
    z = model.encoder(pictures(6)).detach()
    chosen = model.quantizer(z)
    pulls = 2 * (model.quantizer.lookup(chosen) - z) / len(z)
    expected = chosen.flatten(0, 1).mT @ pulls.flatten(0, 1)
    (found,) = torch.autograd.grad(model.loss(batch(6)).value, model.quantizer.codebook)
    torch.testing.assert_close(found, expected.detach())


class Stopped(Exception):
    """What a test stops a run with."""


def test_a_codebook_that_learns_by_gradient_resumes_to_the_same_bits(small, tmp_path):
    def stop(round_: int, metrics: object) -> None:
        if round_ == 2:
            raise Stopped

    config = small("vq_vae", {"algorithm.codebook": {"name": "gradient", "size": 4, "dim": 3}})
    straight, stopped, resumed = (Fit(config, tmp_path / name) for name in ("straight", "stopped", "stopped"))
    start = straight.engine.algorithm.quantizer.codebook.detach().clone()
    straight.run()
    assert not torch.equal(straight.engine.algorithm.quantizer.codebook, start)
    with pytest.raises(Stopped):
        stopped.run(stop)
    resumed.resume()
    assert resumed.engine.round == 2
    resumed.run()
    states = [run.engine.state() for run in (resumed, straight)]
    assert states[0].pop("manner") == states[1].pop("manner")
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_moving_averages_follow_the_papers_equations():
    """N = g N + (1 - g) n, m = g m + (1 - g) sum z, e = m / N; by hand, over two steps."""
    quantizer = AveragedCodebookConfig(size=3, dim=1, decay=0.75).build()
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0], [100.0]]))
    first, second = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[3.0], [1.0], [12.0]])
    for z in (first, second):
        quantizer.update_statistics({name: t[None] for name, t in quantizer.statistics(z, quantizer(z)).items()})
    # two outputs near the first vector and one near the second, in both steps
    counts = [0.75 * 0.25 * 2 + 0.25 * 2, 0.75 * 0.25 + 0.25, 0.0]
    sums = [0.75 * 0.25 * 3 + 0.25 * 4, 0.75 * 0.25 * 9 + 0.25 * 12, 0.0]
    assert quantizer.counts.tolist() == pytest.approx(counts)
    assert quantizer.sums.flatten().tolist() == pytest.approx(sums)
    expected = [sums[0] / counts[0], sums[1] / counts[1], 100.0]  # nothing has chosen the last
    assert quantizer.codebook.flatten().tolist() == pytest.approx(expected)


def test_averages_are_those_of_the_whole_batch_however_it_is_cut():
    z = torch.randn(12, 2, 3, dtype=torch.float64)
    found = []
    for slices in (1, 4):
        with seeded("codebook"):
            quantizer = AveragedCodebookConfig(size=4, dim=3).build().double()
        parts = [quantizer.statistics(part, quantizer(part)) for part in z.chunk(slices)]
        quantizer.update_statistics({name: torch.stack([part[name] for part in parts]) for name in parts[0]})
        found.append(quantizer.codebook)
    torch.testing.assert_close(*found)


def test_perplexity_counts_the_vectors_in_use():
    assert perplexity(torch.eye(6).repeat(5, 1)).item() == pytest.approx(6)
    assert perplexity(torch.eye(6)[:1].repeat(5, 1)).item() == pytest.approx(1)
    assert perplexity(torch.eye(6)[:2].repeat(5, 1)).item() == pytest.approx(2)


def prior() -> Autoregressive:
    with seeded("prior"):
        made = Autoregressive(AutoregressiveConfig(hidden=(24,)), 3, 4).double()
        with torch.no_grad():
            for p in made.parameters():
                p.mul_(2)
    return made


def test_the_prior_is_a_distribution_over_all_codes():
    p = prior()()
    codes = p.enumerate_support()
    assert codes.shape == (64, 12)
    assert p.log_prob(codes).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_a_position_sees_those_before_it_and_no_others():
    network = prior().network
    jacobian = torch.autograd.functional.jacobian(network, torch.rand(12, dtype=torch.float64))
    seen = jacobian.unflatten(0, (3, 4)).unflatten(-1, (3, 4)).abs().amax((1, 3)) > 0
    assert seen.tolist() == [[False] * 3, [True, False, False], [True, True, False]]


def test_draws_of_the_prior_are_as_frequent_as_it_says():
    p, n = prior()(), 20_000
    with seeded("draws"):
        draws = p.sample((n,))
    codes = p.enumerate_support()
    found = (draws @ codes.mT == p.parts).double().mean(0)
    expected = p.log_prob(codes).exp().detach()
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-3).all()


def test_a_certain_posterior_knows_its_code_from_others():
    code = torch.eye(4).repeat(1, 2)[:2]
    q = Delta(code, 2)
    assert torch.equal(q.sample((3,)), code.expand(3, 2, 8))
    assert q.log_prob(q.sample()).tolist() == [0, 0]
    assert q.log_prob(code.flip(0)).tolist() == [-math.inf, -math.inf]


def test_the_prior_learns_from_the_codes_and_leaves_them_alone(small):
    model = vq_vae(small)
    others = [*model.encoder.parameters(), *model.decoder.parameters()]
    value = model.prior_loss(batch(6)).value
    assert all(g is None for g in torch.autograd.grad(value, others, allow_unused=True))


def test_the_elbo_is_below_the_sum_over_all_codes(small):
    """log p(x|z) + log p(z) of the nearest code is one term of that sum."""
    model, x = vq_vae(small), pictures(5)
    bound, exact = scored(elbo(model, 2), x)["nats"], scored(enumeration(model), x)["nats"]
    code = model.posterior(x).code
    torch.testing.assert_close(bound, model.log_joint(x, code).detach())
    assert (bound < exact).all()


def test_a_codebook_larger_than_the_data_is_refused_by_name(small, tmp_path):
    config = small("vq_vae", {"algorithm.codebook.size": 400})
    with pytest.raises(DataError, match=r"^algorithm\.codebook\.size: 400 vectors for 300 training data"):
        Fit(config, tmp_path)


def test_a_mixture_of_more_components_than_data_is_refused_by_name(small, tmp_path):
    config = small("ae_gmm", {"algorithm.mixture.components": 400})
    with pytest.raises(DataError, match=r"^algorithm\.mixture\.components: 400 components for 300 training data"):
        Fit(config, tmp_path)
