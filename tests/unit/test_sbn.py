"""Sigmoid belief networks small enough that every state can be listed."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from avb_service.algorithm import Batch
from avb_service.algorithms.sbn_mean_field import MeanFieldConfig, MeanFieldSBN, SigmoidBeliefNetwork
from avb_service.algorithms.sbn_wake_sleep import WakeSleepConfig, WakeSleepSBN
from avb_service.discrete import LayeredBits
from avb_service.distributions import DataSpec
from avb_service.errors import ConfigError, UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, surgery
from avb_service.networks.trunks import MLPConfig
from avb_service.seeding import generator, seeded
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine

PIXELS, LAYERS = 6, (4, 3)
SPEC = DataSpec((1, 2, 3), "binary", 1, torch.full((1, 2, 3), 0.5))
CODES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=sum(LAYERS))), dtype=torch.float64)
METHODS = {"mean field": (MeanFieldSBN, MeanFieldConfig), "wake and sleep": (WakeSleepSBN, WakeSleepConfig)}


@pytest.fixture(params=METHODS)
def kind(request):
    return METHODS[request.param]


def model(kind: tuple, scale: float = 1.0, layers: tuple[int, ...] = LAYERS) -> SigmoidBeliefNetwork:
    method, config = kind
    with seeded("model"):
        made = method(config(layers=layers, encoder=MLPConfig(hidden=(16,))), SPEC).double()
        for p in made.parameters():
            p.data = scale * torch.randn_like(p)
    return made


def data(n: int) -> Tensor:
    return (torch.rand(n, *SPEC.shape, generator=generator("cpu", "data")) < 0.5).double()


def bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    return (value * p.log() + (1 - value) * (1 - p).log()).sum(-1)


def joint(made: SigmoidBeliefNetwork, x: Tensor) -> Tensor:
    """Log p(x,z) by hand for all codes, [128, B]."""
    network, (z1, z2) = made.network, CODES.split(LAYERS, -1)
    log_p = bernoulli(network.top, z2) + bernoulli(network.hidden[0](z2), z1)
    return log_p[:, None] + bernoulli(network.visible(z1)[:, None], x.flatten(1))


@torch.no_grad()
def test_log_p_is_the_sum_over_all_states_by_hand(kind):
    made, x = model(kind), data(8)
    expected = joint(made, x)
    torch.testing.assert_close(made.log_joint(x, CODES[:, None]), expected)
    estimate = Evaluator(made, LikelihoodConfig()).score("enumeration", x)
    assert estimate.kind == "exact"
    np.testing.assert_allclose(estimate.per_datum, expected.logsumexp(0), rtol=0, atol=1e-9)


@torch.no_grad()
def test_layers_of_bits_sum_to_one_and_are_drawn_as_often(kind):
    made = model(kind)
    x, n = data(1), 20_000
    for distribution in (made.prior(), made.posterior(x)):
        log_p = distribution.log_prob(CODES.reshape(-1, *[1] * len(distribution.batch_shape), CODES.shape[-1]))
        log_p = log_p.flatten()
        assert log_p.exp().sum().item() == pytest.approx(1)
        with seeded("draws"):
            z = distribution.sample((n,)).reshape(n, -1)
        place = 2 ** torch.arange(z.shape[-1]).flip(0).double()
        counts = torch.bincount((z @ place).long(), minlength=len(CODES))
        p = log_p.exp()
        assert ((counts / n - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


@torch.no_grad()
def test_all_states_of_layers_are_listed(kind):
    prior = model(kind).prior()
    assert isinstance(prior, LayeredBits) and prior.support.is_discrete
    torch.testing.assert_close(prior.enumerate_support(), CODES)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_the_mean_field_bound_is_below_the_elbo_which_is_below_log_p(scale):
    made, x = model(METHODS["mean field"], scale), data(50)
    q, log_joint = made.posterior(x), joint(made, x)
    elbo = (q.log_prob(CODES[:, None]).exp() * log_joint).sum(0) + q.entropy()
    bound = made.network.expected_log_joint(x, q.base_dist.logits) + q.entropy()
    assert (elbo < log_joint.logsumexp(0)).all()
    assert (bound < elbo).all()
    if scale == 0.1:  # s hardly varies, and the bound is tight
        assert (elbo - bound).max() < 0.1


@torch.no_grad()
def test_the_mean_field_bound_is_the_elbo_where_q_is_certain():
    made, x = model(METHODS["mean field"]), data(8)
    z = CODES[40:48]
    torch.testing.assert_close(made.network.expected_log_joint(x, 2000 * z - 1000), made.log_joint(x, z))


def test_the_mean_field_bound_has_finite_gradients_where_units_are_saturated():
    made = model(METHODS["mean field"], 40.0).float()
    loss = made.loss(Batch(data(8).float(), None, torch.tensor(0.0)))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value, list(made.parameters())))


def test_the_wake_phase_climbs_log_p_of_codes_and_reports_the_elbo():
    made, x = model(METHODS["wake and sleep"]), data(2000)[:1].expand(2000, *SPEC.shape)
    with seeded("wake"):
        loss = made.wake_loss(Batch(x, None, torch.tensor(0.0)))
    elbo = Evaluator(made, LikelihoodConfig(elbo_draws=2000)).score("elbo", x[:2])
    assert loss.terms["elbo"].item() == pytest.approx(elbo.value, abs=0.3)
    exact = Evaluator(made, LikelihoodConfig()).score("enumeration", x[:1]).value
    assert elbo.value < exact


@torch.no_grad()
def test_dreams_follow_the_model():
    made = model(METHODS["wake and sleep"])
    with seeded("dreams"):
        x, z = made.network.dream(20_000)
    assert (x.shape, z.shape) == ((20_000, *SPEC.shape), (20_000, 7))
    p = made.prior().log_prob(CODES).exp() @ torch.sigmoid(made.network.visible(CODES[:, : LAYERS[0]]))
    assert ((x.flatten(1).mean(0) - p).abs() < 4.5 * (p * (1 - p) / len(x)).sqrt()).all()


def stripes(n: int) -> Tensor:
    """Columns of two pixels that are both on or both off: 3 bits in 6 pixels, -log p = 3 log 2 = 2.08 at best."""
    on = torch.rand(n, 1, 1, 3, generator=generator("cpu", "stripes")) < 0.5
    return on.expand(n, 1, 2, 3).double()


def test_training_improves_log_p_of_a_toy(kind):
    turn = {"lr": 0.02}
    settings = {"model": turn} if kind[0] is MeanFieldSBN else {"wake": turn, "sleep": turn}
    method, config = kind
    section = config.parse({"layers": [6], "encoder": {"name": "mlp", "hidden": [16]}, **settings})
    with seeded("toy"):
        made = method(section, SPEC).double()
    x, evaluator = stripes(2000), Evaluator(made, LikelihoodConfig())
    before = evaluator.score("enumeration", x[:200]).value
    training = TrainingConfig(rounds=400, batch_size=100, dtype="float64", report_every=400)
    engine = Engine(made, lambda index, worker: (x[torch.arange(100) + 100 * (index % 20)], None), training)
    engine.run(lambda report: None)
    after = evaluator.score("enumeration", x[:200]).value
    assert before < -4  # six fair coins: -6 log 2 = -4.16
    assert after > -3.6  # independent pixels would stay at -4.16; these came to -2.5 and -3.3


def test_what_applies_and_what_refuses(kind):
    made, x = model(kind), data(4)
    evaluator = Evaluator(made, LikelihoodConfig(importance_draws=4000, elbo_draws=200))
    found = {estimate.name: estimate for estimate in evaluator.evaluate(x, "certified")}
    assert set(found) == {"iwae_4000", "elbo", "enumeration"}
    assert found["elbo"].value < found["iwae_4000"].value < found["enumeration"].value + 0.3
    for name in ("ais", "bdmc", "iwae_mixture", "quadrature", "ppca", "elbo_corrected", "elbo_ceiling"):
        with pytest.raises(UserError, match="use .*(enumeration|iwae|elbo)"):
            evaluator.score(name, x)
    assert surgery(made, x, 50, 0).kl > 0
    large = Evaluator(model(kind, layers=(10, 5, 2)), LikelihoodConfig(importance_draws=16))
    assert large.objective(x).name == "iwae_16"


def test_settings_out_of_range_are_refused(kind):
    _, config = kind
    for layers in ([], [0], [4, -1]):
        with pytest.raises(ConfigError, match="layers"):
            config.parse({"layers": layers})
    assert config().latent_dim == sum(config().layers)
    assert config().objection("real").startswith("layers: a sigmoid belief network needs binary data, given real")


def test_layers_may_be_drawn_upward_or_downward():
    """The same code either way round, under a link that copies."""
    copy = lambda layer: 1e4 * (2 * layer - 1)  # noqa: E731
    upward = LayeredBits(torch.zeros(2), [copy], (2, 2))
    downward = LayeredBits(torch.zeros(2), [copy], (2, 2), downward=True)
    for distribution in (upward, downward):
        z = distribution.sample((100,))
        assert torch.equal(z[:, :2], z[:, 2:])
        torch.testing.assert_close(distribution.log_prob(z), torch.full((100,), 2 * math.log(0.5)))
    uneven = LayeredBits(torch.full((1,), 50.0), [lambda layer: layer.expand(2) - 50], (1, 2), downward=True)
    assert uneven.sample().tolist() == [0.0, 0.0, 1.0]
