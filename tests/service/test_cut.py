"""A process may be killed at any write: begun again, its work ends as if nothing had happened.

A kill leaves on disk what was there at that moment. So all that is kept is copied before each write of an undisturbed
run: a commit to MLflow's database, an artifact, a file of ours. From each copy the work is begun again, and in the end
there must be what the undisturbed run has made, once.
"""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine, event

from avb_service import figures, storage
from avb_service.fitting import Fit
from avb_service.report import assess
from avb_service.runs import OUTBOX, OUTCOME, Job
from avb_service.storage import write_json
from avb_service.tracking import Outbox, close_open_children, promotion, publish
from avb_service.tracking.outbox import letters
from avb_service.tracking.runs import PARENT, RESUME_KEY
from avb_service.tracking.server import connect, every
from avb_service.tuning.concluding import conclude
from avb_service.tuning.record import open_search
from avb_service.tuning.space import SpaceConfig
from avb_service.tuning.trials import STOPPED, TRIAL

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
SPACE = SpaceConfig.parse(
    {
        "name": "cut",
        "preset": "vae_digits",
        "trials": 2,
        "set": {"tracking.experiment": "cut"},
        "space": {"algorithm.latent_dim": {"choice": [2, 8]}},
    }
)
LONG = 120  # seconds: nothing here waits for so long unless it has failed
DATABASE = "mlflow.db"


class Place:
    """A folder with all that is kept, which can be as it was before a write."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies, self.uri = folder, copies, f"sqlite:///{folder}/{DATABASE}"
        self.writes: list[str] = []

    def copy(self, write: str) -> None:
        self._take(self.folder, self.copies / str(len(self.writes)))
        self.writes.append(write)

    def go_back(self, number: int) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith(DATABASE.split(".")[0]):
                path.unlink()
        self._take(self.copies / str(number), self.folder)

    @staticmethod
    def _take(source: Path, target: Path) -> None:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("mlflow.*"), dirs_exist_ok=True)
        with closing(sqlite3.connect(source / DATABASE)) as here, closing(sqlite3.connect(target / DATABASE)) as there:
            here.backup(there)  # what is committed, also while somebody writes

    @contextmanager
    def copied_before_each_write(self) -> Iterator[None]:
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        writing: set[int] = set()

        def wrote(connection, cursor, statement, *arguments) -> None:
            if statement.split()[0].upper() in ("INSERT", "UPDATE", "DELETE"):
                writing.add(id(connection))

        def commits(connection) -> None:
            if id(connection) in writing:
                writing.remove(id(connection))
                self.copy("commit")

        def before(owner: object, name: str) -> None:
            act: Callable = getattr(owner, name)

            def copying(*arguments, **options):
                self.copy(name)
                return act(*arguments, **options)

            patched.setattr(owner, name, copying)

        with pytest.MonkeyPatch.context() as patched:
            event.listen(Engine, "after_cursor_execute", wrote)
            event.listen(Engine, "commit", commits)
            for owner, name in ((LocalArtifactRepository, "log_artifact"), (LocalArtifactRepository, "log_artifacts"),
                                (storage, "_move"), (Outbox, "_discard")):  # fmt: skip
                before(owner, name)
            yield
        event.remove(Engine, "after_cursor_execute", wrote)
        event.remove(Engine, "commit", commits)


@pytest.fixture
def begun(small, tmp_path, monkeypatch) -> tuple[Place, list[Job]]:
    """Two trials that are trained; how they are scored and drawn is not the matter here, and done once."""
    place = Place(tmp_path / "place", tmp_path / "copies")
    jobs, trained = [], {}
    for name, seed in (("a", 0), ("b", 1)):
        config = small("vae", {"training.seed": seed, "tracking.experiment": "cut", "tracking.model": "made"})
        folder = place.folder / "trials" / name
        jobs.append(Job(config, folder, name, f"place/{name}", None, place.uri, {"avb.kind": TRIAL}))
        trained[name] = Fit(config, tmp_path / "checkpoints" / name)
        trained[name].run()
        shutil.copytree(tmp_path / "checkpoints" / name, folder / "checkpoints")
    assessed = {name: replace(fit.model, likelihood=assess(fit.model)) for name, fit in trained.items()}
    monkeypatch.setattr(Job, "assess", lambda job, dataset=None, **scoring: assessed[job.name])
    monkeypatch.setattr(promotion, "record_of", lambda *_: assessed["a"].record)
    monkeypatch.setattr(publish, "plots", lambda model: {"samples": None})
    monkeypatch.setattr(publish, "elbo_surgery", lambda model: {"validation/kl": 1.0})
    for name, stand_in in (("bounds", lambda *_: None), ("caption", lambda *_: None), ("to_png", lambda _: png(0))):
        monkeypatch.setattr(figures, name, stand_in)
    connect(place.uri)  # makes its tables
    return place, jobs


def png(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "png")
    return buffer.getvalue()


def work(place: Place, jobs: list[Job]) -> None:
    """What a search, its workers and who promotes a model have MLflow keep; begun as often as it takes."""
    search = open_search(SPACE, place.folder, place.uri)
    for job in (Job(**{**vars(job), "parent": search.run.run_id}) for job in jobs):
        job.begin()
        if (job.folder / OUTCOME).exists():
            continue
        box = job.outbox(reopen=True)
        box.log_metrics({"loss": 0.5, "kl": 2.0}, 4, {"rounds": "4"})
        if job.name == "a":  # the other is stopped, and does not learn of it
            box.log_figure("samples", png(255), 4)
            box.set_tags({"method": "vae"})
            box.finish()
        box.close(LONG)
        if job.name == "a":
            write_json(job.folder / OUTCOME, {"status": "finished"})
    close_open_children(search.run.run_id, "FINISHED", str(STOPPED), place.uri)
    conclude(search, lambda step: None)
    promotion.promote("made", 1, override="its samples are sharper", uri=place.uri)


def kept(place: Place) -> dict:
    """All that MLflow and the folder hold, without what differs from one time to the next: ids, hours, checksums."""
    client = connect(place.uri)
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    runs = list(every(client.search_runs, list(experiments)))
    models = list(every(client.search_logged_models, list(experiments)))
    ids = {run.info.run_id: run.data.tags.get(RESUME_KEY, "nobody's") for run in runs}
    ids |= {model.model_id: f"model of {ids.get(model.source_run_id)}" for model in models}
    ids |= {experiment: name for experiment, name in experiments.items() if len(experiment) > 1}

    def files(run_id: str) -> list[str]:
        below = place.folder / "artifacts" / run_id
        return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())

    found = {
        "experiments": sorted(experiments.values()),
        "runs": sorted(
            [
                str(run.data.tags.get(RESUME_KEY)),
                run.info.run_name,
                run.info.status,
                bool(run.info.end_time),
                run.data.tags,
                run.data.params,
                files(run.info.run_id),
                {
                    key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)]
                    for key in sorted(run.data.metrics)
                },
                [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])],
            ]
            for run in runs
        ),
        "models": [
            [
                model.name,
                str(model.status),
                model.params,
                model.tags,
                model.source_run_id,
                sorted((metric.key, metric.value) for metric in model.metrics or []),
            ]
            for model in models
        ],
        "versions": [
            [each.name, each.version, each.run_id, each.tags, each.description, each.source]
            for each in every(client.search_model_versions)
        ],
        "aliases": [[each.name, each.aliases] for each in every(client.search_registered_models)],
        "letters": [path.name for path in sorted(place.folder.glob(f"trials/*/{OUTBOX}")) if letters(path)],
        "published": json.loads((place.folder / "published.json").read_text()),
    }
    text = json.dumps(found, sort_keys=True)
    for id_, name in ids.items():
        text = text.replace(id_, name)
    text = re.sub(r"timestamp\+\d+\+[0-9a-f-]{36}", "when", text)
    return json.loads(re.sub(r'"(sha256|data_sha256)": "[0-9a-f]{64}"', r'"\1": ""', text))


def test_work_that_is_cut_off_before_any_write_ends_like_work_that_is_not(begun, tmp_path):
    place, jobs = begun
    with place.copied_before_each_write():
        work(place, jobs)
    undisturbed = kept(place)
    assert [run[:4] for run in undisturbed["runs"]] == [
        [key, name, "FINISHED", True] for key, name in (("place", "place"), ("place/a", "a"), ("place/b", "b"))
    ]
    assert undisturbed["runs"][1][4][PARENT] == "place" and undisturbed["runs"][1][4]["rounds"] == "4"
    assert undisturbed["aliases"] == [["made", {"champion": 1}]]
    assert {"commit", "log_artifact", "log_artifacts", "_move", "_discard"} == set(place.writes)
    for number, write in enumerate(place.writes):
        place.go_back(number)
        work(place, jobs)
        assert kept(place) == undisturbed, f"cut off before write {number}, {write}"
