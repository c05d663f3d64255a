"""What follows a search, interrupted anywhere: trials that were trained here, a real registry, no Ray."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avb_service.fitting import Fit
from avb_service.records import Certificate, Check
from avb_service.report import OBJECTIVE
from avb_service.runs import Job
from avb_service.tracking import Run, leaderboard
from avb_service.tracking.server import connect
from avb_service.tuning.concluding import conclude
from avb_service.tuning.record import Search, open_search
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import STOPPED, TRIAL

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


SPACE = SpaceConfig.parse({
    "name": "conclude", "preset": ["vae_digits", "avb_digits"], "trials": 4, "set": {"tracking.experiment": "conclude"},
    "space": {"algorithm.latent_dim": {"choice": [2, 8]}, "algorithm.model.lr": {"loguniform": [1e-4, 1e-2]}},
})  # fmt: skip


class Killed(BaseException):
    pass


@pytest.fixture
def search(small, tmp_path, new_store) -> Search:
    """Two trials of a method and one of another, trained, and nothing more."""
    uri = new_store(tmp_path / "mlflow.db")
    search = open_search(SPACE, tmp_path, uri)
    for name, method, seed in (("a", "vae", 0), ("b", "vae", 1), ("c", "avb", 0)):
        config = small(method, {"training.seed": seed, "tracking.experiment": "conclude", "tracking.model": "made"})
        folder, parent = tmp_path / "trials" / name, search.run.run_id
        job = Job(config, folder, name, name, parent, uri, {"avb.kind": TRIAL})
        job.begin()
        Fit(config, job.checkpoints).run()
    return search


def again(search: Search) -> Search:
    """As --resume opens it."""
    resumed = open_search(SPACE, search.folder, search.tracking_uri)
    assert resumed.run.run_id == search.run.run_id
    return resumed


def status(search: Search) -> str:
    return connect(search.tracking_uri).get_run(search.run.run_id).info.status


@pytest.mark.parametrize(
    ("where", "times"), [("assess", 2), ("publish", 0), ("publish", 1), ("keep", 0), ("keep", 1), ("finish", 0)],
    ids=["while scoring", "before registering", "between two", "before the first is noted", "before the last is noted",
         "after the last is noted"],
)  # fmt: skip
def test_an_interrupted_end_is_brought_to_its_end_and_repeats_nothing(search, monkeypatch, where, times):
    calls: list[str] = []
    with monkeypatch.context() as patched:
        target = {"finish": Run, "keep": Search}.get(where, Job)
        act = getattr(target, where)

        def mortal(self, *args, **kwargs):
            mine = where != "finish" or self.run_id == search.run.run_id
            if mine and len(calls) == times:
                raise Killed
            calls.extend([where] * mine)
            return act(self, *args, **kwargs)

        patched.setattr(target, where, mortal)
        with pytest.raises(Killed):
            conclude(search, lambda step: None)
    assert status(search) == "RUNNING"
    registered = len(search.published())

    resumed, steps = again(search), []
    published = conclude(resumed, steps.append)
    assert status(resumed) == "FINISHED"
    assert len(published) == 2 and len(leaderboard(search.tracking_uri)) == 2, "one of each method, once"
    assert bool(steps) == (registered < 2), "where all are registered nothing is scored"
    tags = connect(search.tracking_uri).get_run(resumed.run.run_id).data.tags
    assert tags["avb.best_model"] in {each.uri for each in published}
    assert conclude(again(search), steps.append) == published
    assert len(leaderboard(search.tracking_uri)) == 2


def test_a_trial_whose_certificate_failed_is_not_ranked_before_one_that_can_be_believed(search, monkeypatch):
    assessed = {trial.job.name: trial.job.assess() for trial in search.trials()}
    highest = max(assessed, key=lambda name: assessed[name].record.held_out.value)

    def assess(job, dataset=None, **scoring):
        gap = Check("gap", 0.9 if job.name == highest else 0.1, "<=", 0.2, "mean gap")
        model = assessed[job.name]
        return replace(model, likelihood=replace(model.record, certificate=Certificate((gap,), -20.1, -20.0)))

    monkeypatch.setattr(Job, "assess", assess)
    conclude(search, lambda step: None)
    second = max(assessed.keys() - {highest}, key=lambda name: assessed[name].record.held_out.value)
    assert connect(search.tracking_uri).get_run(search.run.run_id).data.tags["avb.best_trial"] == second


def test_a_search_says_what_is_searched_how_it_is_begun_and_what_came_of_it_and_nothing_that_was_not_asked(
    search, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["/usr/bin/avb", "tune", "--space", "my space.yaml", "--resume"])
    client = connect(search.tracking_uri)

    def page() -> tuple[str, dict[str, dict[str, object]]]:
        run = client.get_run(search.run.run_id)
        assert not [value for value in run.data.params.values() if value in ("None", "")]
        path = client.download_artifacts(search.run.run_id, "tables/trials.json")
        table = json.loads(Path(path).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        return run.data.tags["mlflow.note.content"], {str(row["trial"]): row for row in rows}

    STOPPED.write(search.trial_folder / "b")
    again(search)
    text, rows = page()
    assert "`algorithm.latent_dim`: choice of 2, 8\n" in text
    assert "`algorithm.model.lr`: loguniform from 0.0001 to 0.01\n" in text
    assert "```\navb tune --space 'my space.yaml'\n```\n" in text and "models:/" not in text
    assert rows.keys() == {"a", "b", "c"}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "not at its end",
        "b": "stopped early by the scheduler",
        "c": "not at its end",
    }
    trials = {trial.job.name: trial for trial in search.trials()}
    for name, row in rows.items():
        assert (row["rounds"], row["model"]) == (4, "") and row["train_seconds"] > 0
        assert row["algorithm.latent_dim"] == trials[name].config.algorithm.latent_dim
        assert row[OBJECTIVE] == pytest.approx(trials[name].objective)
    best = search.best().job.name
    assert f"**{best}**" in text
    published = conclude(again(search), lambda step: None)
    text, rows = page()
    assert all(f"**{each.uri}** is " in text for each in published)
    assert {row["model"] for row in rows.values()} == {"", *(each.uri for each in published)}
