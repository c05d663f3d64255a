"""What the games of generator and critic share: R1."""

import pytest
import torch

from avb_service.algorithm import Batch, DataSpec
from avb_service.algorithms.f_gan import FGAN
from avb_service.algorithms.gan import GAN
from avb_service.algorithms.lsgan import LSGAN

SPEC = DataSpec((1, 1, 2), "real", None, torch.zeros(1, 1, 2))
games = pytest.mark.parametrize("game", [GAN, LSGAN, FGAN])


def build(game: type[GAN], **settings: object) -> GAN:
    torch.manual_seed(0)
    name = game.Config.model_fields["name"].default
    return game(game.Config.parse({"name": name, "discriminator": {"name": "affine"}, **settings}), SPEC)


def batch(round_: int = 0, n: int = 20) -> Batch:
    return Batch(torch.ones(n, 1, 1, 2), None, round_, torch.Generator())


@games
def test_the_critic_s_loss_has_r1_in_it_and_its_report_has_not(game):
    losses = []
    for penalty in (0.0, 3.0):
        model = build(game, penalty=penalty)
        torch.manual_seed(1)
        losses.append(model.adversary_loss(batch()))
    r1 = 1.5 * model.discriminator.head.weight.square().sum()
    torch.testing.assert_close(losses[1].value, losses[0].value + r1)
    assert losses[1].terms == losses[0].terms
