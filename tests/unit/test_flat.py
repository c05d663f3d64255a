"""Parameters that have been moved into one tensor are stepped as if each were by itself."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from avb_service.algorithm import Batch, Loss, Player
from avb_service.optim import OPTIMIZERS, TurnConfig
from avb_service.training.flat import ALIGNED, Slots, flatten, joined


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_as_if_each_parameter_were_by_itself(name):
    plain, flat = twins()
    me = player("me", flat, optimizer=name)
    flatten([me])
    slots, optimizer = Slots(me), me.turn.build(list(plain.parameters()))
    for step in range(4):
        gradients = [torch.randn_like(p) for p in plain.parameters()]
        for p, gradient in zip(plain.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        slots.step(joined(gradients))
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


def test_half_a_state_is_refused():
    flat, _ = twins()
    me = player("me", flat)
    flatten([me])
    slots = Slots(me)
    slots.step(torch.ones(sum(p.numel() + -p.numel() % ALIGNED for p in flat.parameters())))
    state = slots.state()
    del state["1"]
    with pytest.raises(ValueError, match="1 of 3 parameters"):
        slots.load(state)
