"""What a run says of itself in MLflow is true whenever it is looked at: how far it is trained, whether it goes on."""

import threading
import time
from types import SimpleNamespace

import pytest

from avb_service.fitting import Fit
from avb_service.runs import Job, Outcome
from avb_service.tracking import Run, close_open_children
from avb_service.tracking.runs import REASON
from avb_service.tracking.server import connect
from avb_service.tuning.ending import EndingCallback
from avb_service.tuning.trials import STOPPED

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


class Stopped(BaseException):
    """As the worker of a trial that is stopped ends: nothing of it is run any more."""


@pytest.fixture
def job(small, tmp_path, new_store) -> Job:
    uri = new_store(tmp_path / "mlflow.db")
    config = small("vae", {"training.rounds": 6, "tracking.experiment": "truth", "tracking.model": "true"})
    parent = Run.start("truth", "search", {}, uri=uri)
    job = Job(config, tmp_path / "trials" / "a", "a", "search/a", parent.run_id, uri, {"avb.kind": "trial"})
    job.begin()
    return job


def seen(job: Job):
    (run,) = connect(job.tracking_uri).search_runs(["1"], "attributes.run_name = 'a'")
    return run


def train(job: Job, stop: int | None = None) -> list[int]:
    """Train on, and look at each report; stopped at that of a round. Gives the rounds."""
    reports = []

    def look(round_: int, metrics: dict[str, float]) -> None:
        run = seen(job)
        assert run.info.status == "RUNNING"
        assert run.data.tags["rounds"] == str(round_)
        assert run.data.tags["train_seconds"] == f"{run.data.metrics['time/train_seconds']:.1f}"
        reports.append(round_)
        if round_ == stop:
            raise Stopped

    Fit(job.config, job.checkpoints, recorder=job.run(reopen=True)).run(look)
    return reports


def test_at_every_report_a_run_says_how_far_it_is_and_when_it_is_stopped_that_it_is(job):
    with pytest.raises(Stopped):
        train(job, stop=4)
    before = time.time_ns() // 1_000_000
    trial = SimpleNamespace(trial_id="a", config={"trial": job.folder.name})
    EndingCallback(job.folder.parent).on_trial_complete(0, [trial], trial)
    for thread in threading.enumerate():
        if thread.name == "ending-a":
            thread.join()
    run = seen(job)
    assert (run.info.status, run.data.tags[REASON], run.data.tags["rounds"]) == ("FINISHED", str(STOPPED), "4")
    assert Outcome.read(job.folder) == STOPPED
    assert before <= run.info.end_time <= time.time_ns() // 1_000_000
    assert close_open_children(job.parent, "KILLED", uri=job.tracking_uri) == []


def test_a_run_has_begun_when_its_work_did_and_not_when_mlflow_learned_of_it(job):
    before = time.time_ns() // 1_000_000
    box = job.outbox()
    box.set_tags({"first": "word"})
    box.finish()
    after = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= after:
        pass
    box.close(60)
    info = seen(job).info
    assert before <= info.start_time <= info.end_time <= after


NOTED = "Failure # {} (occurred at 2026-12-01_04-20-37)\n{}\n"  # by Ray Tune
TOLD = "Traceback\n  File a.py, line 1\navb_service.errors.UserError: two problems:\n  one\n  two"
DIED = "The actor died unexpectedly before it was done.\n\tip: 192.0.2.2\nThe actor is dead. Worker exit type: C"


@pytest.mark.parametrize(
    ("first", "last", "reason"),
    [(DIED, TOLD, "two problems:\n  one\n  two"), (TOLD, DIED, "its process has died")],
)
def test_a_trial_that_failed_for_good_says_so_when_it_has(job, tmp_path, first, last, reason):
    with pytest.raises(Stopped):
        train(job, stop=2)
    (tmp_path / "error.txt").write_text(NOTED.format(1, first) + NOTED.format(2, last))
    trial = SimpleNamespace(trial_id="a", config={"trial": job.folder.name}, error_file=tmp_path / "error.txt")
    EndingCallback(job.folder.parent).on_trial_error(0, [trial], trial)
    for thread in threading.enumerate():
        if thread.name == "ending-a":
            thread.join()
    assert (seen(job).info.status, seen(job).data.tags[REASON]) == ("FAILED", reason)
    assert Outcome.read(job.folder) == Outcome("failed", reason)


def test_a_run_that_nobody_has_closed_ended_with_its_last_report(job):
    run, hour_ago = job.run(), time.time_ns() // 1_000_000 - 3_600_000
    run.log_metrics({"loss": 1.0}, 2, {"rounds": "2"}, hour_ago)
    run.log_metrics({"other": 1.0}, 1, {}, hour_ago - 1)
    assert close_open_children(job.parent, "KILLED", "interrupted", job.tracking_uri) == [run.run_id]
    assert (seen(job).info.status, seen(job).info.end_time) == ("KILLED", hour_ago)


def test_a_run_that_goes_on_is_as_far_as_its_checkpoint_and_publishing_it_changes_nothing_of_how_it_ended(job):
    with pytest.raises(Stopped):
        train(job, stop=4)
    job.close("KILLED", "interrupted")
    assert train(job) == [4, 6], "the last one is told again"
    job.close("FINISHED", "")
    ended = seen(job)
    assert (ended.info.status, ended.data.tags["rounds"], REASON in ended.data.tags) == ("FINISHED", "6", False)
    job.publish(job.assess())
    assert (seen(job).info.status, seen(job).info.end_time) == ("FINISHED", ended.info.end_time)
