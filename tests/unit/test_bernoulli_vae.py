"""The score function's gradient against a sum over all codes; what a baseline may and may not do."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, kl_divergence

from avb_service.algorithm import Batch
from avb_service.algorithms.bernoulli_vae import BernoulliVAE, BernoulliVAEConfig
from avb_service.discrete import bits
from avb_service.distributions import DataSpec
from avb_service.errors import UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, surgery
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import generator, seeded
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine

BITS, PIXELS = 5, 6
SPEC = DataSpec((1, 1, PIXELS), "binary", 1, torch.full((1, 1, PIXELS), 0.5))
SMALL = MLPConfig(hidden=(8,), activation="tanh")
CODES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=BITS)), dtype=torch.float64)


def model(dim: int = BITS, **settings: object) -> BernoulliVAE:
    with seeded("model"):
        config = BernoulliVAEConfig(latent_dim=dim, encoder=SMALL, decoder=SMALL, **settings)
        made = BernoulliVAE(config, SPEC).double()
        for scale, network in ((0.6, made.encoder), (1.2, made.decoder)):  # codes decode differently, none is rare
            for p in network.parameters():
                p.data = scale * torch.randn_like(p)
    return made


def data(n: int) -> Tensor:
    return (torch.rand(n, 1, 1, PIXELS, generator=generator("cpu", "data")) < 0.5).double()


def gradient(made: BernoulliVAE, value: Tensor) -> Tensor:
    parts = torch.autograd.grad(value, list(made.parameters()))
    return torch.cat([part.flatten() for part in parts])


def exact_gradient(made: BernoulliVAE, x: Tensor) -> Tensor:
    """Of -ELBO, E_q a sum over the 32 codes."""
    q = made.posterior(x)
    reconstruction = (q.log_prob(CODES[:, None]).exp() * made.likelihood(CODES[:, None]).log_prob(x)).sum(0)
    return gradient(made, (kl_divergence(q, made.prior()) - reconstruction).mean())


def drawn_gradients(made: BernoulliVAE, x: Tensor, n: int) -> Tensor:
    """N gradients of the loss, [n, P]."""
    with seeded("draws"):
        return torch.stack([gradient(made, made.loss(Batch(x, None, torch.tensor(0.0))).value) for _ in range(n)])


def learn_baseline(made: BernoulliVAE, x: Tensor) -> None:
    for _ in range(200):
        made.update_statistics(
            {"reconstruction": made.loss(Batch(x, None, torch.tensor(0.0))).statistics["reconstruction"]}
        )


@pytest.mark.parametrize("baseline", ["running", "none"])
def test_the_gradient_is_that_of_the_sum_over_all_codes(baseline):
    made, x = model(baseline=baseline), data(8)
    if baseline == "running":
        with seeded("baseline"), torch.no_grad():
            learn_baseline(made, x)
    drawn, exact = drawn_gradients(made, x, 1000), exact_gradient(made, x)
    stderr = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() <= 4 * stderr + 1e-12).all()
    encoder = sum(p.numel() for p in made.encoder.parameters())
    assert exact[:encoder].norm() > 10 * stderr[:encoder].norm() / encoder**0.5, "it could be taken for zero"


def test_a_baseline_lowers_the_variance_of_the_encoders_gradient_and_leaves_the_decoders():
    made, x = model(), data(8)
    without = drawn_gradients(made, x, 300).var(0)
    with seeded("baseline"), torch.no_grad():
        learn_baseline(made, x)
    assert made.centre() < -1
    beside = drawn_gradients(made, x, 300).var(0)  # under the same draws
    encoder = sum(p.numel() for p in made.encoder.parameters())
    assert beside[:encoder].sum() < 0.7 * without[:encoder].sum()
    torch.testing.assert_close(beside[encoder:], without[encoder:])


def test_the_loss_is_minus_the_elbo():
    made, x = model(), data(8)
    loss = made.loss(Batch(x, None, torch.tensor(0.0)))
    torch.testing.assert_close(loss.value.detach(), loss.terms["kl"] - loss.terms["reconstruction"])


def test_the_running_mean_forgets_where_it_began():
    made = model(baseline_decay=0.9)
    assert made.centre() == 0
    for slices in ([-6.0, -4.0], [-7.0, -5.0]):
        made.update_statistics({"reconstruction": torch.tensor(slices, dtype=torch.float64)})
    assert made.centre().item() == pytest.approx((0.9 * -5 - 6) / 1.9)


def test_the_engine_counts_every_batch_once():
    made, x = model(baseline_decay=0.5), data(8)
    training = TrainingConfig(rounds=3, batch_size=8, logical_workers=2, dtype="float64")
    Engine(made, lambda index, worker: (x[4 * worker :][:4], None), training).run(lambda report: None)
    assert made.baseline[1].item() == pytest.approx(1 - 0.5**3)


def test_the_divergence_of_bits_is_that_of_their_probabilities():
    a, b = torch.randn(2, 4, 7, dtype=torch.float64, generator=generator("cpu", 0)) * 4
    ours = kl_divergence(bits(a), bits(b))
    torchs = kl_divergence(Independent(Bernoulli(logits=a), 1), Independent(Bernoulli(logits=b), 1))
    torch.testing.assert_close(ours, torchs)
    assert kl_divergence(bits(a), bits(b[0])).shape == (4,)


def test_bits_are_drawn_by_their_probabilities():
    logits = torch.tensor([-4.0, -0.5, 0.0, 3.0], dtype=torch.float64)
    with seeded("bits"):
        z = bits(logits).sample((40_000,))
    p = logits.sigmoid()
    assert ((z.mean(0) - p).abs() < 4.5 * (p * (1 - p) / len(z)).sqrt()).all()
    assert ((z == 0) | (z == 1)).all()


def test_codes_are_still_codes_where_their_logits_are_no_numbers():
    assert (bits(torch.full((3,), torch.nan)).sample((2,)) == 0).all()


def test_what_applies_to_binary_codes_and_what_refuses():
    made, x = model(), data(4)
    evaluator = Evaluator(made, LikelihoodConfig(importance_draws=2000, elbo_draws=200))
    found = {estimate.name: estimate for estimate in evaluator.evaluate(x, "certified")}
    assert set(found) == {"iwae_2000", "elbo", "enumeration"}
    total = (made.log_joint(x, CODES[:, None])).logsumexp(0).detach()
    np.testing.assert_allclose(found["enumeration"].per_datum, total, rtol=0, atol=1e-9)
    assert evaluator.objective(x).name == "enumeration"
    assert evaluator.assess(x, "certified").certificate is None
    assert (found["elbo"].per_datum < total.numpy() + 0.5).all() and found["elbo"].value < found["iwae_2000"].value
    np.testing.assert_allclose(found["iwae_2000"].per_datum, total, rtol=0, atol=0.3)
    for name in ("ais", "ais_prior", "bdmc", "iwae_mixture", "quadrature", "ppca", "elbo_corrected", "elbo_ceiling"):
        with pytest.raises(UserError, match=rf"{name.split('_')[0]}|annealing.*: use .*(enumeration|iwae|elbo)"):
            evaluator.score(name, x)
    assert surgery(made, x, 50, 0).kl == pytest.approx(kl_divergence(made.posterior(x), made.prior()).mean().item())


def test_seventeen_bits_are_compared_by_importance_weights():
    evaluator = Evaluator(model(17), LikelihoodConfig(importance_draws=16))
    assert not evaluator.applies("enumeration")
    assert evaluator.objective(data(4)).name == "iwae_16"
