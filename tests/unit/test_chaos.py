"""What the chaos command calls a difference, and when training goes on."""

import random
import time
from types import SimpleNamespace

import pytest
import torch

from tests.chaos import FAULTS, Chaos, Fault, differences, rounds

CURVES = {"train/elbo": [(50, -30.0), (100, -29.5)]}


def result(**other):
    weights, runs = {"w": torch.tensor([1.0, 2.0])}, [CURVES]
    return {"a": weights, "b": weights} | other.get("weights", {}), {"a": runs, "b": runs} | other.get("runs", {})


def test_the_same_search_has_no_differences():
    assert differences(result(), result(), 0) == []


@pytest.mark.parametrize(
    ("rough", "what"),
    [
        (result(weights={"b": {"w": torch.tensor([1.0, 2.0 + 1e-6])}}), "trial 1: w differ"),
        (result(runs={"b": [{"train/elbo": [(50, -30.0)]}]}), "missing at [100]"),
        (result(runs={"b": [{"train/elbo": [*CURVES["train/elbo"], (100, -29.5)]}]}), "twice at [100]"),
        (result(runs={"b": [{"train/elbo": [(50, -30.0), (100, -29.4)]}]}), "another at [100]"),
        (result(runs={"b": [CURVES, CURVES]}), "2 runs"),
        (result(runs={"b": []}), "0 runs"),
    ],
)
def test_whatever_faults_change_is_found(rough, what):
    assert any(what in line for line in differences(result(), rough, 0))


def test_a_lost_trial_is_found():
    weights, runs = result()
    del weights["b"]
    assert "1 trials have finished, expected the 2" in differences(result(), (weights, runs), 0)[0]


def test_another_number_of_workers_may_round_otherwise():
    rough = result(weights={"b": {"w": torch.tensor([1.0, 2.0 + 1e-6])}})
    assert differences(result(), rough, 1e-4) == []
    assert differences(result(), result(weights={"b": {"w": torch.tensor([1.0, 2.01])}}), 1e-4)


def test_training_goes_on_when_all_that_were_in_training_have_saved_more_or_have_ended():
    fault = Fault("kill worker", time.monotonic(), {"a": 50, "b": 100})
    fault.look({"a": 100, "b": 100})
    assert fault.recovered is None
    fault.look({"a": 100})
    assert fault.recovered is not None


def test_a_plan_has_some_of_each_and_depends_on_the_seed():
    plans = [Chaos.of(SimpleNamespace(), random.Random(seed), [], 20).plan for seed in (0, 0, 1)]
    assert set(plans[0]) == set(FAULTS) and len(plans[0]) == 20
    assert plans[0] == plans[1] != plans[2]


def test_rounds_are_those_of_trials_that_have_not_ended(tmp_path):
    for name, saved, ended in (("a", (50, 100), False), ("b", (50,), True), ("c", (), False)):
        for round_ in saved:
            (tmp_path / "trials" / name / "checkpoints" / f"round-{round_:08d}").mkdir(parents=True)
        (tmp_path / "trials" / name).mkdir(exist_ok=True)
        (tmp_path / "trials" / name / "job.json").touch()
        if ended:
            (tmp_path / "trials" / name / "outcome.json").touch()
    assert rounds(tmp_path) == {"a": 100, "c": 0}
