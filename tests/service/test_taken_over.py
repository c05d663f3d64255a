"""Who was paused and has lost what he was at work on writes nothing there: no checkpoint, model, alias or end."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avb_service.errors import TakenOverError
from avb_service.fitting import Fit
from avb_service.lock import Owned, owned
from avb_service.records import Estimate, Key, LikelihoodRecord
from avb_service.runs import JOB, OUTCOME, Job, Outcome
from avb_service.storage import write_json
from avb_service.tracking import Run, leaderboard, promotion
from avb_service.tracking.publish import publish
from tests.paused import ended, paused

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
LEASE = 1.0  # seconds
TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
from avb_service.fitting import Fit
from avb_service.lock import owned
from avb_service.runs import Job, Outcome

folder = Path(sys.argv[1])
with owned(folder.parent / ".mine.lock", "run mine", print, lease=float(sys.argv[2])) as mine:
    # As a worker gets it, which is another process than the one that holds the lock.
    job = Job.of_tree(replace(Job.read(folder), owned=mine).tree())

    def report(round_, metrics):
        print(round_, flush=True)
        sys.stdin.readline()  # paused here

    Fit(job.config, job.checkpoints, check=job.check_owned).run(report)
    job.end(Outcome("finished"))
"""


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def job(small, tmp_path, new_store) -> Job:
    config = small("vae", {"tracking.model": "taken"})
    made = Job(
        config, tmp_path / "mine", "mine", "mine", None, new_store(tmp_path / "mlflow.db"), {"avb.kind": "single"}
    )
    made.begin()
    return made


@pytest.fixture
def lost(tmp_path) -> Iterator[Owned]:
    """What somebody owned, and another has taken over since."""
    path = tmp_path / ".mine.lock"
    with owned(path, "run mine", print) as mine:
        write_json(path, {"user": "bob", "host": "other", "pid": 1, "since": "then", "token": "another"})
        yield mine


def test_a_training_that_was_stopped_for_longer_than_its_lease_changes_nothing_afterwards(job):
    process = paused(TRAINING, job.folder, LEASE, after="2")
    with owned(job.folder.parent / ".mine.lock", "run mine", lambda note: None, lease=LEASE) as mine:
        Fit(job.config, job.checkpoints, check=mine.check).run()
        before = files(job.folder)
        told = ended(process)
        assert files(job.folder) == before
    assert process.returncode != 0 and "TakenOverError: run mine was taken over" in told
    assert f"(process {os.getpid()})" in told and not (job.folder / OUTCOME).exists()


def test_a_checkpoint_that_takes_long_is_not_put_into_its_place_by_who_has_lost_it_meanwhile(small, tmp_path):
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 4:  # twice for each: before anything is touched, and before it takes its place
            raise TakenOverError("run mine was taken over")

    fit = Fit(small("vae"), tmp_path / "checkpoints", check=check)
    fit.save()
    before = files(tmp_path)
    fit.engine.round = 2
    with pytest.raises(TakenOverError):
        fit.save()
    assert files(tmp_path) == before


@pytest.mark.parametrize("write", ["begin", "end", "close"])
def test_neither_a_job_nor_its_end_nor_its_run_is_touched(job, lost, write):
    before = files(job.folder)
    mine = replace(job, owned=lost)
    act = {"begin": mine.begin, "end": lambda: mine.end(Outcome("finished")), "close": lambda: mine.close("FAILED", "")}
    with pytest.raises(TakenOverError, match="bob on other"):
        act[write]()
    assert files(job.folder) == before


def test_no_model_is_registered(job, lost):
    Fit(job.config, job.checkpoints).run()
    model = job.assess()
    before = files(job.folder)
    with pytest.raises(TakenOverError):
        replace(job, owned=lost).publish(model)
    assert files(job.folder) == before and not leaderboard(job.tracking_uri)
    job.publish(model)
    assert len(leaderboard(job.tracking_uri)) == 1


def test_no_alias_is_moved_where_it_is_lost_while_a_model_is_registered(job, tmp_path):
    Fit(job.config, job.checkpoints).run()
    model, asked = job.assess(), []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise TakenOverError("run mine was taken over")

    with pytest.raises(TakenOverError):
        publish(model, job.run(), tmp_path / "model", check=check)
    assert [row.aliases for row in leaderboard(job.tracking_uri)] == [()]
    published = job.publish(model)  # by whoever has it now
    assert [row.aliases for row in leaderboard(job.tracking_uri)] == [(published.alias,)]


def test_a_job_tells_its_workers_who_owns_it_and_nobody_who_reads_its_folder(job, tmp_path):
    with owned(tmp_path / ".mine.lock", "run mine", print) as mine:
        begun = replace(job, owned=mine)
        begun.begin()
        assert Job.of_tree(json.loads(json.dumps(begun.tree()))) == begun
    assert "owned" not in json.loads((job.folder / JOB).read_text())
    assert Job.read(job.folder).owned is None


def exact(value: float) -> LikelihoodRecord:
    nats = torch.linspace(-3, -1, 20, dtype=torch.float64) + value
    return LikelihoodRecord({"data_sha256": "ab"}, (Estimate.of(Key("quadrature"), "exact", {"nats": nats}),))


@pytest.mark.parametrize("first", ["better", "worse"])
def test_of_two_that_are_published_at_once_the_better_is_champion(job, tmp_path, monkeypatch, first):
    """The second is published as a whole while the first, of which there was no rival, has been judged."""
    Fit(job.config, job.checkpoints).run()
    model, judge, others = job.assess(), promotion.promotion, []
    better, worse = (replace(model, likelihood=exact(value)) for value in (1.0, 0.0))
    one, other = (better, worse) if first == "better" else (worse, better)

    def judged_meanwhile(*given):
        found = judge(*given)
        if not others:
            others.append(None)
            run = Run.start("taken", "other", {}, uri=job.tracking_uri)
            others[0] = publish(other, run, tmp_path / "other")
        return found

    monkeypatch.setattr(promotion, "promotion", judged_meanwhile)
    published = job.publish(one)
    assert published.alias == ("champion" if first == "better" else "challenger")
    (champion,) = [row.uri for row in leaderboard(job.tracking_uri) if "champion" in row.aliases]
    assert champion == (published.uri if first == "better" else others[0].uri)
    assert len(leaderboard(job.tracking_uri)) == 2
