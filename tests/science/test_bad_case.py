"""A collapsed AVB: what its adversary and naive annealing say is wrong by nats, and is caught."""

import pytest

from benchmarks.bad_case import bad_case

pytestmark = pytest.mark.science


def test_a_collapsed_model_is_convicted_and_bracketed():
    case = bad_case()
    value = {name: found.value for name, found in case.estimates.items()}
    assert value["ais"] - value["ais_own"] > 2, "naive annealing is low by nats"
    assert not case.naive.passed
    assert {"gap", "starts"} <= {check.name for check in case.naive.checks if not check.passed}
    assert case.refined.passed, case.refined.reason
    assert case.excess.not_a_bound
    assert case.diagnosis.floor_violation > 2
    assert value["elbo_ceiling"] < value["elbo_adversarial"] - 2
    assert abs(value["elbo_corrected"] - value["elbo_ceiling"]) < 2
