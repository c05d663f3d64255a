"""What the tests of servers and stores share: passwords, and a small model to keep."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from behind_a_login import SECRETS

from avb_service.distributed import cluster, scoring, train
from avb_service.fitting import Fit
from avb_service.likelihood.scoring import serially
from avb_service.records import LikelihoodRecord
from avb_service.runs import Job, Outcome
from avb_service.tuning.record import Search


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([SECRETS, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def password(secrets) -> Iterator[str]:
    """The admin's, used by whatever runs here meanwhile."""
    word = (secrets / "mlflow_password").read_text().strip()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_USERNAME", "avb")
        patched.setenv("MLFLOW_TRACKING_PASSWORD", word)
        yield word


@pytest.fixture(scope="module")
def vae_folder(small, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    trained = Fit(small("vae"), place / "checkpoints")
    trained.run()
    record = LikelihoodRecord({"data_sha256": "ab"}, (), None)
    return replace(trained.model, card="# VAE", likelihood=record).write(place / "model")


@pytest.fixture
def no_ray(monkeypatch) -> None:
    """Commands train and score in this process."""

    def fit(job: Job, callbacks: object) -> None:
        job.begin()
        Fit(job.config, job.checkpoints).run()

    capacity = cluster.Capacity((cluster.Node(4, 0),))
    monkeypatch.setattr(cluster, "cluster", lambda note, fits: nullcontext(capacity))
    monkeypatch.setattr(cluster, "own_capacity", lambda: None)
    monkeypatch.setattr("avb_service.distributed.reclaim.check_dashboard", lambda: None)
    monkeypatch.setattr(scoring, "on_cluster", lambda capacity: serially)
    monkeypatch.setattr("avb_service.distributed.progress.listening", lambda report: nullcontext([]))
    monkeypatch.setattr(train, "train_alone", fit)


@pytest.fixture
def fit_trials() -> Callable[..., None]:
    """Stands in for Ray Tune, where all trials of a search have begun: trains in this process what has not ended."""

    def run_search(search: Search, *given: object) -> None:
        for trial in search.trials():
            if trial.outcome is None:
                Fit(trial.config, trial.job.checkpoints).run()
                Outcome("finished").write(trial.job.folder)

    return run_search
