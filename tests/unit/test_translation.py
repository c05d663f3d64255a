"""CycleGAN's parts: its history of images, its translators, and what it refuses."""

import pytest
import torch
from torch.nn.functional import l1_loss

from avb_service.algorithm import Batch, DataSpec
from avb_service.algorithms.cyclegan import CycleGAN, CycleGANConfig
from avb_service.networks.critics import Critic
from avb_service.networks.history import History
from avb_service.networks.translator import TranslatorConfig

SHAPE = (1, 4, 4)


def spec(values: str = "levels") -> DataSpec:
    return DataSpec(SHAPE, values, 255, torch.full(SHAPE, 0.5))


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, *SHAPE)


def held(history: History) -> list[int]:
    return sorted(history.data[:, 0, 0, 0].int().tolist())


def test_a_history_keeps_the_newest():
    history = History(4, SHAPE)
    assert history.draw(3).eq(0).all(), "blank before any was pushed"
    history.push(numbered(1, 2))
    assert set(history.draw(200)[:, 0, 0, 0].tolist()) == {1, 2}
    history.push(numbered(3, 4, 5))
    assert held(history) == [2, 3, 4, 5]
    history.push(numbered(*range(10, 21)))
    assert held(history) == [17, 18, 19, 20]
    history.push(numbered(21))
    assert held(history) == [18, 19, 20, 21], "the oldest went"


def test_a_history_goes_on_where_floats_can_no_longer_count():
    history = History(6, SHAPE)
    history.push(numbered(*range(1, 7)))
    history.pushed.fill_(2**20 - 2 - (2**20 - 2) % 6 + 6)  # as after so many: a multiple of 6
    history.push(numbered(7, 8))
    assert held(history) == [3, 4, 5, 6, 7, 8]
    history.push(numbered(9))
    assert held(history) == [4, 5, 6, 7, 8, 9]
    assert 6 <= history.pushed < 2**20


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 1, 6)])
@pytest.mark.parametrize("values", ["levels", "real"])
def test_a_translator_changes_no_shape_and_starts_near_the_identity(shape, values):
    torch.manual_seed(0)
    translator = TranslatorConfig(channels=4, blocks=1).build(DataSpec(shape, values, 255, torch.zeros(shape)))
    x = torch.rand(50, *shape)
    with torch.no_grad():
        y = translator(x)
    assert y.shape == x.shape
    assert values == "real" or (y.ge(0).all() and y.le(1).all())
    assert torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize("values", ["levels", "real"])
def test_a_translator_learns_to_halve_a_square(values):
    """The map alone can: it starts as the identity, and its gradient points to twice the size, looked up."""
    torch.manual_seed(0)
    shape = (1, 12, 12)
    translator = TranslatorConfig(channels=1, blocks=1, affine=True).build(DataSpec(shape, values, 255, torch.ones(1)))
    assert translator.map is not None and translator.map.tolist() == torch.eye(2, 3).tolist()
    x, target = torch.full((2, *shape), 0.1), torch.full((2, *shape), 0.1)
    x[:, :, 2:10, 2:10], target[:, :, 4:8, 4:8] = 0.9, 0.9
    for parameter in translator.network.parameters():
        parameter.requires_grad_(False).zero_()
    torch.testing.assert_close(translator(x), x)
    optimizer = torch.optim.Adam([translator.map], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        l1_loss(translator(x), target).backward()
        optimizer.step()
    torch.testing.assert_close(translator.map.detach(), 2 * torch.eye(2, 3), atol=0.3, rtol=0)


def build(**settings: object) -> CycleGAN:
    torch.manual_seed(0)
    section = {"name": "cyclegan", "translator": {"channels": 4, "blocks": 1}, **settings}
    return CycleGAN(CycleGANConfig.parse(section), spec())


@pytest.fixture
def model() -> CycleGAN:
    return build()


def unpaired(n: int) -> Batch:
    return Batch(torch.rand(n, *SHAPE), None, torch.tensor(0.0), (), torch.rand(n, *SHAPE))


def steepness(critic: Critic, x: torch.Tensor) -> torch.Tensor:
    """E|dD(x)/dx|^2."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    return (slope**2).sum((1, 2, 3)).mean()


def test_the_discriminators_loss_is_that_of_the_paper():
    """Section 4's squares, halved, and R1 of the data of both domains; some of what they see was made before."""
    model, batch = build(penalty=3.0), unpaired(8)
    x, y, d_x, d_y = batch.x, batch.other, model.critic, model.critic_other
    model.made.push(numbered(2))
    model.made_other.push(numbered(-1))
    torch.manual_seed(1)
    fake_x, fake_y = model._mixed(model.forth(y), model.made), model._mixed(model.back(x), model.made_other)
    squares = ((d_x(x) - 1) ** 2 + d_x(fake_x) ** 2 + (d_y(y) - 1) ** 2 + d_y(fake_y) ** 2).mean()
    r1 = 3 / 2 * (steepness(d_x, x) + steepness(d_y, y))
    torch.manual_seed(1)
    torch.testing.assert_close(model.adversary_loss(batch).value, squares / 2 + r1)


def test_the_translators_loss_is_that_of_the_paper():
    """Eq. 2 and 3, with section 4's squares, and noise on the way back."""
    model, batch = build(cycle=3.0, cycle_noise=0.2), unpaired(8)
    x, y = batch.x, batch.other
    fake_x, fake_y = model.forth(y), model.back(x)
    deception = ((model.critic(fake_x) - 1) ** 2).mean() + ((model.critic_other(fake_y) - 1) ** 2).mean()
    torch.manual_seed(1)
    y_again = model.back(fake_x + 0.2 * torch.randn(x.shape))
    x_again = model.forth(fake_y + 0.2 * torch.randn(x.shape))
    cycle = (x_again - x).abs().mean() + (y_again - y).abs().mean()
    torch.manual_seed(1)
    torch.testing.assert_close(model.model_loss(batch).value, deception + 3 * cycle)


def test_the_loss_of_two_identities_is_deception_alone(model):
    """There and back again loses nothing then, whatever lambda."""
    model.translate = model.translate_back = lambda x: x  # type: ignore[method-assign]
    x, y = torch.rand(6, *SHAPE), torch.rand(6, *SHAPE)
    loss = model.model_loss(Batch(x, None, torch.tensor(0.0), (), y))
    assert loss.terms["cycle"] == 0
    expected = (model.critic(y) - 1).square().mean() + (model.critic_other(x) - 1).square().mean()
    torch.testing.assert_close(loss.value, expected)


def test_a_cycle_is_counted_per_pixel_ten_times(model):
    model.translate, model.translate_back = (lambda x: x + 0.25), (lambda x: x)  # type: ignore[method-assign]
    loss = model.model_loss(Batch(torch.rand(6, *SHAPE), None, torch.tensor(0.0), (), torch.rand(6, *SHAPE)))
    assert loss.terms["cycle"].item() == pytest.approx(0.5)
    torch.testing.assert_close(loss.value, loss.terms["loss"] + 10 * loss.terms["cycle"])


def test_noise_on_a_translation_is_lost_on_the_way_back():
    model = build(cycle_noise=0.1)
    model.translate = model.translate_back = lambda x: x  # type: ignore[method-assign]
    x, y = torch.rand(500, *SHAPE), torch.rand(500, *SHAPE)
    loss = model.model_loss(Batch(x, None, torch.tensor(0.0), (), y))
    expected = 2 * 0.1 * (2 / torch.pi) ** 0.5  # E|e| of N(0, 0.1^2), both ways
    assert loss.terms["cycle"].item() == pytest.approx(expected, rel=0.05)  # of 8000 numbers each: s.e. below 1 %
    assert loss.terms["loss"].item() == pytest.approx(
        ((model.critic(y) - 1).square().mean() + (model.critic_other(x) - 1).square().mean()).item()
    )


def test_draws_are_translations_of_the_source(model):
    model.sources.push(numbered(1, 1))
    with torch.no_grad():
        torch.testing.assert_close(model.sample(3), model.translate(numbered(1, 1, 1)))


def test_old_images_are_mixed_in_at_even_odds(model):
    made = torch.zeros(4000, *SHAPE)
    assert model._mixed(made, model.made).eq(0).all(), "none are old yet"
    model.made.push(numbered(1))
    share = model._mixed(made, model.made)[:, 0, 0, 0].mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / 4000**0.5
