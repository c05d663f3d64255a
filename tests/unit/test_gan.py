"""The games of generator and critic: their losses, and what they share, R1."""

import pytest
import torch

from avb_service.algorithm import Batch, DataSpec
from avb_service.algorithms.f_gan import FGAN
from avb_service.algorithms.gan import GAN
from avb_service.algorithms.lsgan import LSGAN
from avb_service.errors import UserError

SPEC = DataSpec((1, 1, 2), "real", None, torch.zeros(1, 1, 2))
games = pytest.mark.parametrize("game", [GAN, LSGAN, FGAN])


def build(game: type[GAN], **settings: object) -> GAN:
    torch.manual_seed(0)
    name = game.Config.model_fields["name"].default
    return game(game.Config.parse({"name": name, "discriminator": {"name": "affine"}, **settings}), SPEC)


def batch(round_: int = 0, n: int = 20) -> Batch:
    return Batch(torch.ones(n, 1, 1, 2), None, torch.tensor(round_))


@games
def test_the_critic_s_loss_has_r1_in_it_and_its_report_has_not(game):
    """On the slope where data are; a critic that bends has another where draws are."""
    losses = []
    for penalty in (0.0, 3.0):
        model = build(game, penalty=penalty)
        model.discriminator.features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Tanh())
        torch.manual_seed(1)
        losses.append(model.adversary_loss(batch()))
    slope = model.discriminator.head.weight * (1 - batch().x.flatten(1).tanh().square())
    r1 = 1.5 * slope.square().sum(1).mean()
    torch.testing.assert_close(losses[1].value, losses[0].value + r1)
    assert losses[1].terms == losses[0].terms


def said(model: GAN) -> tuple[torch.Tensor, torch.Tensor]:
    """The critic's raw outputs: of the batch, and of the draws that a loss makes after the same seed."""
    torch.manual_seed(1)
    real = model.discriminator(batch().x)
    return real, model.discriminator(model.draw(batch()))


def losses(model: GAN) -> tuple[float, float]:
    values = []
    for loss in (model.adversary_loss, model.model_loss):
        torch.manual_seed(1)
        values.append(loss(batch()).value.item())
    return values[0], values[1]


@pytest.mark.parametrize("generator_loss", ["saturating", "non_saturating"])
def test_the_gan_s_losses_are_those_of_the_paper(generator_loss):
    """Eq. 1, and section 3 for what does not saturate, with D written out."""
    model = build(GAN, generator_loss=generator_loss)
    d_real, d_fake = (torch.sigmoid(v) for v in said(model))
    adversary = -(d_real.log() + (1 - d_fake).log()).mean()
    deceived = (1 - d_fake).log().mean() if generator_loss == "saturating" else -d_fake.log().mean()
    assert losses(model) == (pytest.approx(adversary.item()), pytest.approx(deceived.item()))


def test_the_least_squares_gan_s_losses_are_those_of_the_paper():
    """Eq. 2, with three numbers that are all different."""
    model = build(LSGAN, drawn=-1.0, real=2.0, wanted=0.5)
    real, fake = said(model)
    adversary = ((real - 2) ** 2).mean() / 2 + ((fake + 1) ** 2).mean() / 2
    assert losses(model) == (pytest.approx(adversary.item()), pytest.approx((((fake - 0.5) ** 2).mean() / 2).item()))


@pytest.mark.parametrize("generator_loss", ["saturating", "non_saturating"])
def test_the_f_gan_s_losses_are_those_of_the_paper(generator_loss):
    """Reverse KL: g(v) = -e^-v, f*(t) = -1 - log(-t)."""
    model = build(FGAN, divergence="reverse_kl", generator_loss=generator_loss)
    (g_real, g_fake) = (-torch.exp(-v) for v in said(model))
    conjugate = -1 - torch.log(-g_fake)
    adversary = (conjugate - g_real).mean()
    generator = -(conjugate if generator_loss == "saturating" else g_fake).mean()
    assert losses(model) == (pytest.approx(adversary.item()), pytest.approx(generator.item()))


@pytest.mark.parametrize(("settings", "name"), [({"drawn": 1.0}, "drawn"), ({"wanted": 0.0}, "wanted")])
def test_a_least_squares_game_in_which_nothing_is_wanted_is_refused(settings, name):
    with pytest.raises(UserError, match=f"{name}: "):
        build(LSGAN, **settings)
