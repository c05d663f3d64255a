"""Networks for images of any size, the function that an adversary returns, and what they start as."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from avb_service.distributions import BernoulliConfig, DataSpec, GaussianConfig, LogisticConfig
from avb_service.networks.adversaries import FlatConfig, InnerProductConfig
from avb_service.networks.critics import Critic
from avb_service.networks.decoder import Decoder
from avb_service.networks.encoders import GaussianEncoder, NoiseBasis, NoiseBasisConfig, NoiseInputConfig
from avb_service.networks.generator import Generator
from avb_service.networks.trunks import ACTIVATIONS, AffineConfig, ConvConfig, MLPConfig, beside, layers
from avb_service.seeding import generator, seeded

SHAPES = [(1, 28, 28), (1, 28, 20), (3, 64, 64), (1, 1, 4), (1, 8, 8), (2, 5, 3)]
TRUNKS = [
    MLPConfig(hidden=(12,)),
    MLPConfig(hidden=(12, 7), activation="elu"),
    ConvConfig(channels=(8, 9), hidden=12),
    ConvConfig(channels=(4,), hidden=12, activation="silu"),
    ConvConfig(channels=(3, 4, 5), hidden=9, activation="elu"),
    AffineConfig(),
]
NORMALISED = ConvConfig(channels=(8, 9), hidden=12, activation="tanh", normalise=True)
ADVERSARIES = [
    InnerProductConfig(trunk=MLPConfig(hidden=(12,)), hidden=(9, 8), rank=7),
    InnerProductConfig(trunk=ConvConfig(channels=(4,), hidden=12), hidden=(9,), rank=7),
    FlatConfig(trunk=MLPConfig(hidden=(12,)), hidden=(9, 8)),
    FlatConfig(trunk=ConvConfig(channels=(4,), hidden=12), hidden=(9,)),
]
DIM = 3

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
writers = pytest.mark.parametrize("trunk", [*TRUNKS, NORMALISED], ids=lambda trunk: f"{trunk.name}-{trunk.activation}")
trunks = pytest.mark.parametrize("trunk", TRUNKS, ids=lambda trunk: f"{trunk.name}-{trunk.activation}")
adversaries = pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda a: f"{a.name}-{a.trunk.name}")


@pytest.fixture(autouse=True)
def _seed():
    with seeded("test_networks"):
        yield


def images(batch: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(batch, *shape, generator=generator("cpu", "images"))


def assert_all_used(module: nn.Module, output: Tensor) -> None:
    """Every parameter has a say in the output."""
    gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()), allow_unused=True)
    names = [name for name, _ in module.named_parameters()]
    assert not [name for name, g in zip(names, gradients, strict=True) if g is None or not g.abs().max() > 0]


@shapes
@trunks
def test_trunks_read_images_of_any_shape(trunk, shape):
    module, width = trunk.features(shape)
    h = module(images(5, shape))
    assert h.shape == (5, width)
    if list(module.parameters()):
        assert_all_used(module, h)


@shapes
@writers
@pytest.mark.parametrize("planes", [1, 2])
def test_trunks_write_images_of_any_shape(trunk, shape, planes):
    module = trunk.generator(DIM, planes, shape, torch.zeros(planes, *shape))
    x = module(torch.randn(5, DIM))
    assert x.shape == (5, planes, *shape)
    assert_all_used(module, x)


@shapes
@trunks
def test_what_trunks_write_starts_around_the_bias(trunk, shape):
    bias = torch.randn(2, *shape)
    module = trunk.generator(DIM, 2, shape, bias)
    last = [layer for layer in module if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    expected = bias.mean((-1, -2), keepdim=True).expand_as(bias) if trunk.name == "conv" else bias
    torch.testing.assert_close(module(torch.randn(5, DIM)), expected.expand(5, *bias.shape))


@trunks
def test_each_datum_is_read_by_itself(trunk):
    module, _ = trunk.features((1, 8, 8))
    x = images(5, (1, 8, 8))
    torch.testing.assert_close(module(x)[2:3], module(x[2:3]))


@writers
def test_each_datum_is_written_by_itself(trunk):
    """Normalised or not: what a datum becomes does not depend on the batch, nor on how a batch is cut for workers."""
    module = trunk.generator(DIM, 1, (1, 8, 8), torch.zeros(1, 1, 8, 8))
    z = torch.randn(5, DIM)
    torch.testing.assert_close(module(z)[2:3], module(z[2:3]))


def test_a_normalised_generator_has_features_of_one_scale():
    """Mean 0 and standard deviation 1 over each datum, at every stage."""
    module = NORMALISED.generator(DIM, 1, (1, 8, 8), torch.zeros(1, 1, 8, 8))
    normalised = [layer for layer in module if isinstance(layer, nn.GroupNorm)]
    assert len(normalised) == 3
    h, z = {}, torch.randn(50, DIM)
    for i, layer in enumerate(normalised):
        layer.register_forward_hook(lambda _, inputs, output, i=i: h.__setitem__(i, output))
    module(z)
    for output in h.values():
        torch.testing.assert_close(output.flatten(1).mean(1), torch.zeros(50), atol=1e-5, rtol=0)
        torch.testing.assert_close(output.flatten(1).std(1, correction=0), torch.ones(50), atol=2e-2, rtol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trunks_use_the_activation_that_was_asked_for(activation):
    for trunk in (MLPConfig(hidden=(4,), activation=activation), ConvConfig(channels=(2,), activation=activation)):
        module, _ = trunk.features((1, 4, 4))
        kinds = {type(layer) for layer in module if not list(layer.parameters())} - {nn.Flatten}
        assert kinds == {ACTIVATIONS[activation]}


@trunks
@pytest.mark.parametrize(
    ("observation", "values", "levels"),
    [
        (BernoulliConfig(), "binary", 1), (GaussianConfig(noise="predicted"), "levels", 16),
        (LogisticConfig(), "levels", 16),
    ],
    ids=["bernoulli", "gaussian", "logistic"],
)  # fmt: skip
def test_a_decoder_starts_near_the_data_mean(trunk, observation, values, levels):
    shape = (3, 8, 8)
    mean = images(1, shape)[0] * 0.2 + torch.tensor([0.1, 0.4, 0.7])[:, None, None]  # conv knows channel means only
    decoder = Decoder(DIM, DataSpec(shape, values, levels, mean), trunk, observation)
    started = decoder(torch.randn(256, DIM)).mean.mean(0)
    assert (started - mean).mean((-1, -2)).abs().max() < 0.06


@trunks
@pytest.mark.parametrize(("values", "levels"), [("levels", 16), ("real", 0)])
def test_a_generator_starts_near_the_data_mean_and_stays_where_data_are(trunk, values, levels):
    shape = (3, 8, 8)
    mean = images(1, shape)[0] * 0.2 + torch.tensor([0.1, 0.4, 0.7])[:, None, None]
    generate = Generator(DIM, DataSpec(shape, values, levels, mean), trunk)
    x = generate(torch.randn(2, 128, DIM))
    assert x.shape == (2, 128, *shape)
    assert (x.mean((0, 1)) - mean).mean((-1, -2)).abs().max() < 0.06
    far = generate(100 * torch.randn(100, DIM))
    assert (far.min() < 0 and far.max() > 1) if values == "real" else (far.min() >= 0 and far.max() <= 1)
    assert_all_used(generate, x)


@shapes
@trunks
def test_a_critic_judges_each_datum_by_itself(trunk, shape):
    critic, x = Critic(trunk, shape), images(5, shape)
    assert critic(x).shape == (5,)
    torch.testing.assert_close(critic(x)[2:3], critic(x[2:3]))
    assert_all_used(critic, critic(x))


def test_a_critic_s_penalty_is_half_its_squared_slope_on_data():
    """Of a linear critic, |w|^2 / 2 wherever the data are; of a deeper one, by finite differences."""
    x = torch.rand(5, 1, 2, 3, dtype=torch.float64)
    linear = Critic(AffineConfig(), (1, 2, 3)).double()
    torch.testing.assert_close(linear.penalty(x, 3.0), 1.5 * linear.head.weight.square().sum())
    assert linear.penalty(x, 0.0) == 0
    critic = Critic(MLPConfig(hidden=(7,), activation="silu"), (1, 2, 3)).double()
    nudges = 1e-5 * torch.eye(6, dtype=torch.float64).unflatten(1, (1, 2, 3))
    slopes = torch.stack([(critic(x + nudge) - critic(x - nudge)) / 2e-5 for nudge in nudges])
    torch.testing.assert_close(critic.penalty(x, 1.0), slopes.square().sum(0).mean() / 2)


def test_a_penalty_moves_the_critic_where_the_data_stay():
    critic, x = Critic(MLPConfig(hidden=(7,), activation="silu"), (1, 2, 3)), torch.rand(5, 1, 2, 3)
    critic.penalty(x, 1.0).backward()
    assert all(p.grad is not None and p.grad.any() for p in (critic.head.weight, critic.features[1].weight))
    assert x.grad is None and not x.requires_grad


def test_a_decoder_keeps_leading_dimensions_of_codes():
    spec = DataSpec((1, 4, 5), "binary", 1, torch.full((1, 4, 5), 0.3))
    decoder = Decoder(DIM, spec, MLPConfig(hidden=(8,)), BernoulliConfig())
    z = torch.randn(6, 2, DIM)
    p = decoder(z)
    assert (p.batch_shape, p.event_shape) == ((6, 2), (1, 4, 5))
    torch.testing.assert_close(p.mean[3], decoder(z[3]).mean)


@shapes
@pytest.mark.parametrize(
    "config",
    [
        NoiseInputConfig(noise_dim=4, hidden=(9,)),
        NoiseInputConfig(noise_dim=4, hidden=()),
        NoiseBasisConfig(bases=4, noise_dim=5, hidden=(6, 6)),
    ],
    ids=["noise_input", "noise_input-linear", "noise_basis"],
)
def test_implicit_encoders(config, shape):
    encoder = config.model_copy(update={"trunk": ConvConfig(channels=(4,), hidden=12)}).build(shape, DIM)
    q = encoder(images(5, shape))
    z = q.rsample((2, 3))
    assert z.shape == (2, 3, 5, DIM)
    assert q.rsample().shape == (5, DIM)
    assert z.flatten(0, 1).std(0).min() > 0  # each datum and dimension has noise of its own draws
    assert_all_used(encoder, z)


@shapes
def test_gaussian_encoder(shape):
    encoder = GaussianEncoder(MLPConfig(hidden=(12,)), shape, DIM)
    q = encoder(images(5, shape))
    assert isinstance(q, Distribution)
    assert (q.batch_shape, q.event_shape) == ((5,), (DIM,))
    assert_all_used(encoder, q.log_prob(torch.randn(5, DIM)))


def test_noise_basis_networks_are_independent_of_each_other():
    basis = NoiseBasis(3, (4, 6, DIM)).double()
    v = basis((7, 2))
    assert v.shape == (7, 2, 3, DIM)
    for i in range(3):
        gradients = torch.autograd.grad(v[..., i, :].sum(), list(basis.parameters()), retain_graph=True)
        assert all(g[i].abs().max() > 0 for g in gradients)
        assert all(g[:i].abs().sum() + g[i + 1 :].abs().sum() == 0 for g in gradients)


def test_noise_basis_is_a_stack_of_small_perceptrons():
    basis = NoiseBasis(3, (4, 6, 5, DIM)).double()
    with seeded("basis"):
        v = basis((7,))
    with seeded("basis"):
        h = torch.randn(3, 7, 4, dtype=torch.float64)
    for i in range(3):
        expected = h[i]
        for layer in range(3):
            expected = nn.functional.elu(expected) if layer else expected
            expected = expected @ basis.matrices[layer][i] + basis.biases[layer][i]
        torch.testing.assert_close(v[:, i], expected)


def awake(network: nn.Module) -> nn.Module:
    """With no weight at zero, so that nothing is hidden by one that starts there."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double()


@adversaries
@shapes
def test_adversaries_read_images_of_any_shape(adversary, shape):
    network = adversary.build(shape, DIM, quadratic=True)
    t = network(images(5, shape))(torch.randn(2, 5, DIM))
    assert t.shape == (2, 5)
    assert_all_used(awake(network), network(images(5, shape).double())(torch.randn(2, 5, DIM, dtype=torch.float64)))


@adversaries
@pytest.mark.parametrize("quadratic", [True, False])
def test_an_adversary_s_function_is_that_of_pairs_one_by_one(adversary, quadratic):
    network = awake(adversary.build((1, 8, 8), DIM, quadratic))
    x, z = images(4, (1, 8, 8)).double(), torch.randn(2, 3, 4, DIM, dtype=torch.float64)
    t = network(x)(z)
    assert t.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            for b in range(4):
                torch.testing.assert_close(t[i, j, b], network(x[b : b + 1])(z[i, j, b][None])[0])
    assert (t[0, 0] - network(x.flip(0))(z[0, 0])).abs().min() > 1e-6  # x matters


@adversaries
def test_quadratic_adds_half_the_square_of_z(adversary):
    network = awake(adversary.build((1, 8, 8), DIM, quadratic=True))
    x, z = images(4, (1, 8, 8)).double(), torch.randn(2, 4, DIM, dtype=torch.float64)
    t = network(x)(z)
    network.quadratic = False
    torch.testing.assert_close(t - network(x)(z), z.square().sum(-1) / 2)


def test_inner_product_adversary_is_its_formula():
    network = awake(ADVERSARIES[0].build((1, 8, 8), DIM, quadratic=False))
    x, z = images(4, (1, 8, 8)).double(), torch.randn(4, DIM, dtype=torch.float64)
    h, c = network.features(x), network.code(z)
    expected = torch.stack(
        [network.theta(h)[b] @ network.s(c)[b] + network.t_x(h)[b, 0] + network.t_z(c)[b, 0] for b in range(4)]
    )
    torch.testing.assert_close(network(x)(z), expected)


def test_t_x_and_t_z_start_at_zero_and_theta_does_not():
    network = ADVERSARIES[0].build((1, 8, 8), DIM, quadratic=False)
    assert all(p.eq(0).all() for layer in (network.t_x, network.t_z) for p in layer.parameters())
    assert network.theta.weight.std() > 0
    assert network.s.weight.std() > 0


def test_a_flat_adversary_starts_undecided():
    network = ADVERSARIES[2].build((1, 8, 8), DIM, quadratic=False)
    assert network(images(4, (1, 8, 8)))(torch.randn(4, DIM)).eq(0).all()
    assert network.joint[0].weight.std() > 0


def test_gaussian_noise_of_an_encoder_has_its_scale():
    encoder = GaussianEncoder(MLPConfig(hidden=(8,)), (1, 2, 2), 1)
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.bias.copy_(torch.tensor([2.0, math.log(0.5)]))
    z = encoder(images(1, (1, 2, 2))).sample((20_000,))
    assert z.mean().item() == pytest.approx(2, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_layers_that_see_two_inputs_are_those_on_both_side_by_side(hidden):
    torch.manual_seed(0)
    widths = (6, *hidden)
    stack = nn.Sequential(*layers(widths, "elu"), nn.Linear(widths[-1], 3)).double()
    h, z = torch.randn(5, 4, dtype=torch.float64), torch.randn(8, 5, 2, dtype=torch.float64)
    expected = stack(torch.cat([h.expand(8, 5, 4), z], -1))
    torch.testing.assert_close(beside(stack, h)(z), expected, rtol=1e-12, atol=1e-12)
