"""What follows a search, interrupted anywhere: trials that were trained here, a real registry, no Ray."""

from dataclasses import replace

import pytest

from avb_service.distributed.train import Job
from avb_service.experiment import Experiment
from avb_service.likelihood.certificate import Certificate, Check
from avb_service.tracking import Run, leaderboard
from avb_service.tracking.server import connect
from avb_service.tuning.record import TRIAL, Search
from avb_service.tuning.search import conclude

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


class Killed(BaseException):
    pass


@pytest.fixture
def search(small, tmp_path) -> Search:
    """Two trials of a method and one of another, trained, and nothing more."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    parent = Run.start("conclude", "search", {}, resume_key="search", uri=uri)
    for name, method, seed in (("a", "vae", 0), ("b", "vae", 1), ("c", "avb", 0)):
        config = small(method, {"training.seed": seed, "tracking.experiment": "conclude", "tracking.model": "made"})
        job = Job(config.tree(), str(tmp_path / "trials" / name), name, name, parent.run_id, uri, {"avb.kind": TRIAL})
        job.begin()
        Experiment(config, job.checkpoints).fit()
    return Search(None, tmp_path, uri, parent)


def again(search: Search) -> Search:
    """As --resume opens it."""
    run = Run.start("conclude", "search", {}, resume_key="search", uri=search.tracking_uri)
    assert run.run_id == search.run.run_id
    return Search(None, search.folder, search.tracking_uri, run)


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
    records = {trial.job.name: trial.job.assess() for trial in search.trials()}
    highest = max(records, key=lambda name: records[name].held_out.value)

    def assess(job, **scoring):
        gap = Check("gap", 0.9 if job.name == highest else 0.1, "<=", 0.2, "mean gap")
        return replace(records[job.name], certificate=Certificate((gap,), -20.1, -20.0))

    monkeypatch.setattr(Job, "assess", assess)
    conclude(search, lambda step: None)
    second = max(records.keys() - {highest}, key=lambda name: records[name].held_out.value)
    assert connect(search.tracking_uri).get_run(search.run.run_id).data.tags["avb.best_trial"] == second
