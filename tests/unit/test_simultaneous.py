"""Players that step at once from one batch: each by the gradient of its own loss, as if it had the turn alone."""

import pytest
import torch

from avb_service.errors import UserError
from avb_service.fitting import Fit
from avb_service.seeding import reseed
from avb_service.training.flat import joined

GAMES = pytest.mark.parametrize("game", ["avb", "avb_ac", "avb_joint"])
DOUBLE = {"training.dtype": "float64", "algorithm.simultaneous": True}


@GAMES
def test_each_player_has_the_gradient_of_its_own_loss(small, game, tmp_path):
    """Codes are drawn first in all of them, so under one seed the losses apart see the codes of the losses together."""
    engine = Fit(small(game, DOUBLE), tmp_path).engine
    (turn,) = engine.turns
    seed, batch = next(iter(engine._slices(0, engine._draw_shared(0))))
    reseed(batch.x.device, seed)
    together = turn.eager(batch)
    apart = []
    for player, slots in zip(turn.players, turn.slots, strict=True):
        reseed(batch.x.device, seed)
        loss = player.objective(batch)
        apart.append(joined(slots.gathered(torch.autograd.grad(loss.value * turn._weight, slots.parameters))))
    assert [player.name for player in turn.players] == ["adversary", "model"]
    torch.testing.assert_close(torch.cat(together.gradient), torch.cat(apart), rtol=1e-9, atol=1e-12)
    assert all(part.norm() > 0 for part in apart)


def test_networks_are_passed_once(small, tmp_path):
    engine = Fit(small("avb_ac", DOUBLE), tmp_path).engine
    passed = []
    for name in ("encoder", "discriminator", "decoder"):
        getattr(engine.algorithm, name).register_forward_hook(lambda module, *_, name=name: passed.append(name))
    seed, batch = next(iter(engine._slices(0, engine._draw_shared(0))))
    engine.turns[0].eager(batch)
    assert sorted(passed) == ["decoder", "discriminator", "encoder"]


@GAMES
def test_a_game_of_one_turn_is_trained_reported_and_resumed_to_the_bit(small, game, tmp_path):
    config = small(game, {**DOUBLE, "training.rounds": 6, "training.report_every": 3})
    whole = Fit(config, tmp_path / "whole")
    whole.run(lambda round_, metrics: whole.store.folder.rename(tmp_path / "kept") if round_ == 3 else None)
    assert {"train/adversary/loss", "train/adversary/accuracy"} <= whole.history.keys()
    resumed = Fit(config, tmp_path / "kept")
    resumed.resume()
    assert resumed.engine.round == 3
    resumed.run()
    for name, tensor in whole.engine.algorithm.state_dict().items():
        assert torch.equal(tensor, resumed.engine.algorithm.state_dict()[name]), name


def test_several_steps_of_one_of_them_are_refused(small):
    with pytest.raises(UserError, match=r"simultaneous: both players step once a round, given .*; set both to 1"):
        small("avb", {"algorithm.simultaneous": True, "algorithm.adversary.steps": 2})
