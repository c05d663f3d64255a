"""What a run may go on with: more rounds, other scoring, the same code; and what it may not."""

from pathlib import Path

import pytest
import torch

from avb_service import fitting
from avb_service.checkpoint import CheckpointStore
from avb_service.errors import UserError
from avb_service.fitting import Fit, best_model
from avb_service.runs import OUTCOME, Job, Outcome
from avb_service.settings import ExperimentConfig, identity_of

LONGER = {"training.rounds": 8}


def begin(config: ExperimentConfig, folder: Path) -> Job:
    job = Job(config, folder, "mine", "mine", None, "sqlite://", {"avb.kind": "single"})
    job.begin()
    return job


def end(job: Job) -> Job:
    Fit(job.config, job.checkpoints).run()
    job.end(Outcome("finished"))
    return job


def weights(job: Job) -> dict[str, torch.Tensor]:
    newest = CheckpointStore(job.checkpoints).latest()
    assert newest is not None
    return newest.state["engine"]["algorithm"]


@pytest.mark.parametrize("kind", ["vae", "avb_ac"])
def test_a_run_that_has_ended_and_is_given_more_rounds_ends_like_one_that_had_them_from_the_beginning(
    small, kind, tmp_path
):
    end(begin(small(kind), tmp_path / "mine"))
    longer = begin(small(kind, LONGER), tmp_path / "mine")
    assert not (longer.folder / OUTCOME).exists() and longer.config == Job.read(longer.folder).config
    extended, at_once = weights(end(longer)), weights(end(begin(small(kind, LONGER), tmp_path / "other")))
    assert all(torch.equal(extended[name], expected) for name, expected in at_once.items())
    assert best_model(longer.config, longer.checkpoints).round


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_rate_that_falls_towards_the_last_round_stands_against_more_and_is_named(small, tmp_path, decay):
    schedule = {"algorithm.model.schedule.decay": decay}
    end(begin(small("vae", schedule), tmp_path / "mine"))
    with pytest.raises(UserError) as told:
        begin(small("vae", {**schedule, **LONGER}), tmp_path / "mine")
    assert "training.rounds: 4 -> 8" in str(told.value)
    assert f"falls towards the last one (algorithm.model.schedule.decay: {decay})" in str(told.value)
    assert Outcome.read(tmp_path / "mine") == Outcome("finished"), "and the run is as it was"


def test_fewer_rounds_are_another_run(small, tmp_path):
    end(begin(small("vae"), tmp_path / "mine"))
    with pytest.raises(UserError, match="training.rounds: 4 -> 2"):
        begin(small("vae", {"training.rounds": 2}), tmp_path / "mine")


def test_a_run_that_diverged_does_not_go_on_for_more_rounds(small, tmp_path):
    begin(small("vae"), tmp_path / "mine").end(Outcome("diverged", "round 3"))
    assert Outcome.read(begin(small("vae", LONGER), tmp_path / "mine").folder) == Outcome("diverged", "round 3")


SCORING = {"elbo_draws": 3, "quadrature_data": 4, "test_data": 6, "adversary_data": 9, "ais.chains": 7}


@pytest.mark.parametrize("setting", SCORING)
def test_what_only_scores_may_change(small, tmp_path, setting):
    end(begin(small("vae"), tmp_path / "mine"))
    changed = small("vae", {f"likelihood.{setting}": SCORING[setting]})
    begin(changed, tmp_path / "mine")
    assert Fit(changed, tmp_path / "mine" / "checkpoints").resume()
    assert best_model(changed, tmp_path / "mine" / "checkpoints")


OBJECTIVE = {"validation_data": 6, "importance_draws": 8, "seed": 1, "search.chains": 5}


@pytest.mark.parametrize("setting", OBJECTIVE)
def test_what_decides_which_state_is_the_best_may_not(small, tmp_path, setting):
    end(begin(small("vae"), tmp_path / "mine"))
    with pytest.raises(UserError, match=f"likelihood.{setting}: .* -> {OBJECTIVE[setting]}"):
        begin(small("vae", {f"likelihood.{setting}": OBJECTIVE[setting]}), tmp_path / "mine")


def test_code_that_computes_something_else_does_not_go_on_and_what_is_trained_can_be_used(small, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "code_version", lambda packages: "0.1.0+n0123456789ab")
    config = small("vae")
    Fit(config, tmp_path).run()
    monkeypatch.setattr(fitting, "code_version", lambda packages: "0.2.0+n0123456789ab")
    assert Fit(config, tmp_path).resume(), "a version that computes the same"
    monkeypatch.setattr(fitting, "code_version", lambda packages: "0.2.0+nba9876543210")
    with pytest.raises(UserError, match=r"something else: 0.1.0\+n0123456789ab, and this is 0.2.0\+nba9876543210"):
        Fit(config, tmp_path).resume()
    assert best_model(config, tmp_path).round


def test_what_an_earlier_version_took_for_the_identity_is_read_as_todays(small):
    tree = small("vae").tree()
    earlier = {**tree, "likelihood": {**tree["likelihood"], "budget": None, "test_data": None, "ais": {"chains": 99}}}
    assert identity_of(earlier) == small("vae").identity()
