"""What is predicted of more workers: from costs that are given, and from those that are measured."""

import json
import sys

import pytest
import torch

from avb_service import cli
from avb_service.errors import UserError
from avb_service.plan import Costs, enough, measure, plan, shares

EASY = Costs(slice_s=1e-2, step_s=1e-3, bytes=4_000_000, means=2, copy_s=1e-10, barrier_s=1e-5)


def test_slices_are_shared_and_means_are_added(small):
    config = small("vae", {"training.logical_workers": 4})
    one, two, four = plan(config, EASY, 4)
    assert one.round_s == one.computing_s == pytest.approx(4.1e-2) and one.speedup == 1
    assert two.computing_s == pytest.approx(2.1e-2)
    assert two.averaging_s == pytest.approx(2 * 1e-5 + 3 * 4e6 * 1e-10)
    assert four.speedup == pytest.approx(one.round_s / four.round_s)


def test_a_network_averages_round_a_ring_and_a_slow_one_makes_more_workers_useless(small):
    config = small("vae", {"training.logical_workers": 4})
    fast, slow = (plan(config, EASY, 4, bandwidth) for bandwidth in (1.25e9, 1.25e7))
    assert fast[1].averaging_s == pytest.approx(2 * (2 * 5e-5 + 2e6 / 1.25e9))
    assert enough(fast) == 4 and enough(slow) == 1
    assert slow[1].speedup < 1, "averaging takes longer than what it saves"


def test_workers_that_would_not_share_evenly_are_left_out(small):
    config = small("vae", {"training.logical_workers": 6, "training.batch_size": 12})
    assert shares(config, 6) == [1, 2, 3, 6]
    assert [each.workers for each in plan(config, EASY, 4)] == [1, 2, 3]


def test_more_workers_than_slices_and_a_gpu_that_is_not_there_are_refused(small):
    with pytest.raises(UserError, match=r"4 workers share training.logical_workers 2, .* --set training.logical_work"):
        shares(small("vae"), 4)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds none here"):
            measure(small("vae"), on_gpu=True)


def test_costs_are_those_of_the_game(small):
    once, twice = (measure(small("avb", {"algorithm.adversary.steps": steps})) for steps in (1, 2))
    assert once.slice_s > 0 and once.copy_s > 0 and once.barrier_s > 0 and once.step_s >= 0
    assert (once.means, twice.means) == (2, 3)
    assert twice.bytes > once.bytes and once.bytes % 4 == 0


def test_the_command_says_how_many_pay(capsys, monkeypatch):
    monkeypatch.setattr("avb_service.plan.measure", lambda config, on_gpu: EASY)
    words = ["plan", "vae_digits", "--workers", "2", "--set", "training.logical_workers=2"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["avb", *words, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0
        shown = capsys.readouterr().out
        if more:
            assert json.loads(shown)["enough"] == 2
        else:
            assert "2 of them pay" in shown
