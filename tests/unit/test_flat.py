"""Parameters that have been moved into one tensor are stepped as if each were by itself."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from avb_service.algorithm import Batch, Loss, Player
from avb_service.fitting import Fit
from avb_service.optim import OPTIMIZERS, TurnConfig
from avb_service.training.flat import ALIGNED, LARGE, Slots, flatten
from avb_service.training.loop import Engine


class Three(nn.Module):
    """A matrix, a scalar and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.scalar = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(()))
        self.vector = nn.Parameter(torch.randn(2 * ALIGNED))


def nothing(batch: Batch) -> Loss:
    return Loss(torch.zeros(()), {})


def player(name: str, *networks: nn.Module, optimizer: str = "Adam", **options: float) -> Player:
    return Player(
        name=name, objective=nothing, networks=networks, turn=TurnConfig(lr=0.1, optimizer=optimizer, options=options)
    )


def twins() -> tuple[Three, Three]:
    torch.manual_seed(0)
    one, other = Three(), Three()
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("large", [2 * ALIGNED, LARGE])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_as_if_each_parameter_were_by_itself(name, large, monkeypatch):
    monkeypatch.setattr("avb_service.training.flat.LARGE", large)
    plain, flat = twins()
    me = player("me", flat, optimizer=name)
    flatten([me])
    slots, optimizer = Slots(me), me.turn.build(list(plain.parameters()))
    for step in range(4):
        gradients = [torch.randn_like(p) for p in plain.parameters()]
        for p, gradient in zip(plain.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        slots.step(slots.gathered(gradients))
        if step == 1:  # as from a checkpoint, whoever wrote it
            kept = deepcopy({str(key): value for key, value in optimizer.state_dict()["state"].items()})
            found = slots.state()
            assert found.keys() == kept.keys()
            for number in kept:
                assert found[number].keys() == kept[number].keys()
                for key, value in kept[number].items():
                    torch.testing.assert_close(found[number][key], value, msg=f"{number} {key}")
            slots = Slots(me)
            slots.load(kept)
    for one, other in zip(plain.parameters(), flat.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_several_players_own_is_still_one_run_for_each():
    encoder, decoder, critic = nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(5, 1)
    before = [p.detach().clone() for m in (encoder, decoder, critic) for p in m.parameters()]
    players = [player("adversary", critic), player("generator", encoder), player("rebuilding", encoder, decoder)]
    whole = flatten(players)
    after = [p for m in (encoder, decoder, critic) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for p in after)
    for each in players:
        assert len(Slots(each).optimizer.param_groups[0]["params"]) == 1


def test_a_large_gradient_is_not_copied():
    network = nn.Sequential(nn.Linear(7, 16), nn.Linear(16, LARGE // 16))
    me = player("me", network)
    flatten([me])
    slots = Slots(me)
    gradients = [torch.ones_like(p) for p in slots.parameters]
    small, large = slots.gathered(gradients)
    assert len(small) < LARGE <= len(large) and large.data_ptr() == gradients[-1].data_ptr()


@pytest.mark.parametrize("averaging", [None, lambda whole: lambda gradient: None], ids=["alone", "averaged"])
def test_a_gradient_in_pieces_trains_the_model_that_one_in_a_piece_does(small, averaging, tmp_path, monkeypatch):
    trained = []
    for large in (LARGE, 2 * ALIGNED):
        monkeypatch.setattr("avb_service.training.flat.LARGE", large)
        fit = Fit(small("avb_ac", {"training.dtype": "float64"}), tmp_path / str(large))
        engine = Engine(fit.engine.algorithm, fit.engine.source, fit.engine.config, averaging=averaging)
        for turn in engine.turns:
            turn.players = [replace(p, turn=p.turn.model_copy(update={"clip_norm": 0.1})) for p in turn.players]
        for _ in range(4):
            engine.play_round()
        trained.append([p.detach().clone() for p in engine.algorithm.parameters()])
    assert sum(slots.pieces for _, slots in engine._slots()) > 4
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_half_a_state_is_refused():
    flat, _ = twins()
    me = player("me", flat)
    flatten([me])
    slots = Slots(me)
    slots.step(slots.gathered([torch.ones_like(p) for p in slots.parameters]))
    state = slots.state()
    del state["1"]
    with pytest.raises(ValueError, match="1 of 3 parameters"):
        slots.load(state)
