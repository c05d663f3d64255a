"""A model that was not made here: scored beside one that was, kept, compared and listed, and never champion."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from typer.testing import CliRunner

import avb_service
from avb_service import cli
from avb_service.display import Display
from avb_service.errors import DataError, UserError
from avb_service.fitting import Fit
from avb_service.records import LIKELIHOOD, Certificate, Check
from avb_service.tracking import externals
from tests.answers import told

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
QUIET = Display(quiet=True)
NETWORK = nn.Linear(3, 64)
PRIOR = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
ASKED = {"estimators": ["iwae_mixture"], "changes": {"importance_draws": 4, "search": {"temperatures": 3, "chains": 4}}}


def likelihood(z: Tensor) -> Distribution:
    return Independent(Bernoulli(logits=NETWORK(z).unflatten(-1, (1, 8, 8))), 3)


@pytest.fixture(scope="module")
def registry(small, new_store, tmp_path_factory) -> tuple[str, str]:
    """A registry with a VAE in it."""
    place = tmp_path_factory.mktemp("external")
    uri = new_store(place / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", uri)
        fit = Fit(small("vae"), place / "fit")
        return uri, avb_service.register(fit.run(), "mine").uri


@pytest.fixture(autouse=True)
def here(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry[0])
    monkeypatch.chdir(tmp_path)


def test_it_is_kept_listed_and_compared_with_a_registered_model_on_its_data(registry):
    uri, mine = registry
    found = avb_service.certify(likelihood, PRIOR, x=mine, name="theirs", display=QUIET, **ASKED)
    assert found.data == "digits" and found.record.basis == avb_service.load(mine).record.basis
    run = avb_service.record(found)
    assert run == avb_service.record(found), "once"
    difference = avb_service.compare(mine, found).comparison
    assert difference == avb_service.compare(mine, run).comparison and difference.difference > 0
    board = avb_service.leaderboard()
    theirs, ours = (next(row for row in board if row["model"] == each) for each in (run, mine))
    assert len(board) == 2 and theirs["scored_on"] == ours["scored_on"]
    assert (theirs["method"], theirs["name"], theirs["version"], theirs["aliases"]) == ("external", "theirs", None, [])
    assert theirs["log_likelihood"] == theirs["iwae_mixture"] == found.estimates[0].value
    assert f"external: not made here; theirs is {run}." in str(board)
    assert board.rows == told("leaderboard", CliRunner().invoke(cli.app, ["leaderboard", "--json"]).stdout)
    assert told("compare", CliRunner().invoke(cli.app, ["compare", run, mine, "--json"]).stdout)["first"] == run


def test_its_page_says_what_it_is(registry):
    from mlflow import MlflowClient

    found = avb_service.certify(likelihood, PRIOR, x=registry[1], name="a page", display=QUIET, **ASKED)
    run = MlflowClient(registry[0]).get_run(avb_service.record(found, experiment="others").removeprefix("runs:/"))
    note = run.data.tags["mlflow.note.content"]
    assert "Not made here" in note and "iwae_mixture_8" in note
    assert run.data.metrics["test/log_likelihood"] == found.estimates[0].value and run.info.status == "FINISHED"
    files = {each.path for each in MlflowClient(registry[0]).list_artifacts(run.info.run_id)}
    assert files >= {LIKELIHOOD, "card.md", "figures", "tables"}


def test_it_cannot_become_champion_however_good(registry):
    found = avb_service.certify(likelihood, PRIOR, x=registry[1], name="best of all", display=QUIET, **ASKED)
    check = Check("gap", 0.0, "<=", 0.2, "gap")
    estimate = replace(found.estimates[0], value=0.0, columns={"nats": 0 * found.estimates[0].per_datum})
    record = replace(found.record, estimates=(estimate,), certificate=Certificate((check,), -1.0, -1.0))
    run = avb_service.record(replace(found, record=record))
    assert avb_service.compare(run, registry[1]).comparison.better
    for call in (lambda: avb_service.promote(run), lambda: avb_service.promote(run, override="I like it")):
        with pytest.raises(UserError, match="expected models:/NAME/VERSION"):
            call()
    with pytest.raises(UserError, match="the run has no model"):
        avb_service.load(run)
    assert [row["aliases"] for row in avb_service.leaderboard() if row["model"] == run] == [[]]


def test_what_was_cut_off_is_not_listed_and_is_completed_by_the_next_call(registry, monkeypatch):
    def killed(*given) -> None:
        raise KeyboardInterrupt

    found = avb_service.certify(likelihood, PRIOR, x=registry[1], name="cut off", display=QUIET, **ASKED)
    with monkeypatch.context() as patched:
        patched.setattr("avb_service.tracking.external.log_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            avb_service.record(found)
    assert "cut off" not in {each.name for each in externals(registry[0])}
    run = avb_service.record(found)
    assert [each.uri for each in externals(registry[0]) if each.name == "cut off"] == [run]


def test_a_damaged_record_is_named(registry):
    found = avb_service.certify(likelihood, PRIOR, x=registry[1], name="damaged", display=QUIET, **ASKED)
    run = avb_service.record(found).removeprefix("runs:/")
    (file,) = Path(registry[0].removeprefix("sqlite:///")).parent.glob(f"artifacts/{run}/artifacts/{LIKELIHOOD}")
    file.write_bytes(file.read_bytes().replace(b"nats", b"nuts"))
    with pytest.raises(DataError, match="is damaged"):
        avb_service.compare(f"runs:/{run}", registry[1])


def test_what_is_no_other_s_is_not_kept_as_that(registry):
    model = avb_service.load(registry[1])
    own = avb_service.evaluate(model, limit=4, display=QUIET)
    with pytest.raises(UserError, match="`register` keeps a model with its likelihoods"):
        avb_service.record(own)
    with pytest.raises(UserError, match="does not keep which data it is of"):
        avb_service.compare(own, model)
    with pytest.raises(UserError, match=r"event shape \[64\].*shape of a datum, \[1, 8, 8\]"):
        avb_service.certify(lambda z: Independent(Bernoulli(logits=NETWORK(z)), 1), PRIOR, x=model, display=QUIET)
    assert {each.name for each in externals(registry[0])} == {"theirs", "a page", "best of all", "cut off", "damaged"}
