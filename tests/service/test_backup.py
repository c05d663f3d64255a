"""A store behind a login or without one is backed up while runs are written to it, and comes back."""

import json
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import urllib3
from behind_a_login import SECRETS, samples, serving
from typer.testing import CliRunner

from avb_service.cli import app
from avb_service.errors import DataError, UserError
from avb_service.tracking import Run, check_server, leaderboard, register, server_command
from avb_service.tracking.backup import ARTIFACTS, MANIFEST, RUNS, backup, restore
from avb_service.tracking.server import connect, every

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@contextmanager
def answering(store: str, server: bool, secrets: Path, folder: Path) -> Iterator[str]:
    """Where a store is reached: as a file, or through a server."""
    if server:
        with serving(store, secrets, folder / "server.log") as address:
            yield address
    else:
        yield store


@contextmanager
def busy(uri: str) -> Iterator[None]:
    """Somebody who writes runs all the while: metrics, then a plot."""
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            run = Run.start("busy", f"run-{number}", {"number": number}, uri=uri)
            for step in range(3):
                run.log_metrics({"loss": float(step)}, step)
            run.log_figure("latents", np.full((4, 4), number % 256, np.uint8))
            run.finish()
            number += 1
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(60)
        yield
    finally:
        stop.set()
        writer.join()


def runs(uri: str) -> list:
    client = connect(uri)
    ids = [experiment.experiment_id for experiment in every(client.search_experiments)]
    return list(every(client.search_runs, ids))


@pytest.mark.parametrize("server", [False, True], ids=["file", "server with a login"])
def test_what_is_backed_up_while_runs_are_written_comes_back_elsewhere(
    server, vae_folder, secrets, password, tmp_path, monkeypatch
):
    store = check_server(f"sqlite:///{tmp_path}/old store/mlflow.db")
    with answering(store, server, secrets, tmp_path) as uri:
        run = Run.start("kept", "run", {"seed": 1}, uri=uri)
        register("kept", vae_folder, run.run_id, aliases=["champion"], uri=uri)
        expected = samples(uri, monkeypatch)
        with busy(uri):
            before = {run.info.run_id for run in runs(uri) if run.info.status == "FINISHED"}
            saved = backup(tmp_path / "backup", store)
            after = {run.info.run_id for run in runs(uri)}
    shutil.rmtree(tmp_path / "old store")  # nothing may point there any more

    elsewhere = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    restored = restore(tmp_path / "backup", elsewhere)
    assert (restored.files, restored.bytes > 0) == (saved.files, True)
    with answering(elsewhere, server, secrets, tmp_path) as uri:
        assert torch.equal(samples(uri, monkeypatch), expected)
        client, there = connect(uri), runs(uri)
        assert before <= {run.info.run_id for run in there} <= after
        for each in (run for run in there if run.info.run_id in before):
            assert [point.step for point in client.get_metric_history(each.info.run_id, "loss")] == [0, 1, 2]
            path = client.download_artifacts(each.info.run_id, "figures/latents.png", str(tmp_path))
            assert Path(path).read_bytes().startswith(b"\x89PNG")
        again = Run.start("kept", "after", {}, uri=uri)
        again.log_figure("latents", np.zeros((4, 4), np.uint8))
        assert len(leaderboard(uri)) == 1
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "backup").rglob("*") if path.is_file()}
    assert modes == {0o600} and stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700


def test_nobody_reads_without_a_login_and_the_password_is_not_shown(secrets, password, tmp_path, monkeypatch):
    with serving(f"sqlite:///{tmp_path}/mlflow.db", secrets, tmp_path / "server.log") as uri:
        for page in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/users/current"):
            assert urllib3.request("GET", uri + page, retries=False).status == 401, page
        assert check_server(uri) == uri
        here = "mlflow_password of the folder that `avb ui --secrets` was given$"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
        with pytest.raises(UserError, match=f"not take the password .*'avb' that MLFLOW_TRACKING_PASSWORD.*{here}"):
            check_server(uri)
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match=f"asks for a login: set MLFLOW_TRACKING_PASSWORD,.*{here}"):
            check_server(uri)
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\nmlflow_tracking_password = old\n")
        with pytest.raises(UserError, match=f"does not take the password .* that ~/.mlflow/credentials holds.*{here}"):
            check_server(uri)
        shown = " ".join(path.read_bytes().decode() for path in Path("/proc").glob("*/cmdline"))
        assert f"{tmp_path}/mlflow.db" in shown
        for secret in (password, (secrets / "mlflow_session_key").read_text().strip()):
            assert secret not in shown + (tmp_path / "server.log").read_text()


def test_secrets_that_others_may_read_are_refused(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match=r"cannot read .*mlflow_password: .*secrets\.sh"):
        server_command(uri=uri, secrets=tmp_path)
    subprocess.run([SECRETS, tmp_path], check=True)
    for name in ("mlflow_password", "pgpass"):
        (tmp_path / name).chmod(0o640)
        with pytest.raises(UserError, match=rf"{name} may be read by others \(mode 640\): chmod 600"):
            server_command(uri=uri, secrets=tmp_path)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "mlflow_session_key").write_text("\n")
    with pytest.raises(UserError, match="mlflow_session_key is empty"):
        server_command(uri=uri, secrets=tmp_path)


def test_a_database_is_served_with_a_password_file_and_not_a_password(secrets):
    with pytest.raises(UserError, match="shows a password") as refused:
        server_command(uri="postgresql+psycopg://mlflow:hunter22@database/mlflow", artifacts="/artifacts")
    assert "hunter22" not in str(refused.value)
    with pytest.raises(UserError, match="--artifacts"):
        server_command(uri="postgresql+psycopg://mlflow@database/mlflow")
    command = server_command(
        uri="postgresql+psycopg://mlflow@database/mlflow", secrets=secrets, artifacts="s3://bucket/avb"
    )
    assert command.arguments[-4:] == ["--artifacts-destination", "s3://bucket/avb", "--app-name", "basic-auth"]
    assert command.environment["PGPASSFILE"] == str(secrets / "pgpass")
    settings = Path(command.environment["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
    assert "NO_PERMISSIONS" in settings and "postgresql+psycopg://mlflow@database/mlflow" in settings
    assert (secrets / "mlflow_password").read_text().strip() not in settings + " ".join(command.arguments)


@pytest.fixture
def store(tmp_path) -> str:
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    Run.start("plain", "run", {"seed": 1}, uri=uri).log_figure("latents", np.zeros((4, 4), np.uint8))
    return uri


@pytest.fixture
def saved(store, tmp_path) -> Path:
    backup(tmp_path / "backup", store)
    return tmp_path / "backup"


def manifest(folder: Path, change) -> None:
    tree = json.loads((folder / MANIFEST).read_text())
    change(tree)
    (folder / MANIFEST).write_text(json.dumps(tree))


def ids(folder: Path) -> set[str]:
    """Of the runs in a file; MLflow itself would go on reading the file that was put aside."""
    with closing(sqlite3.connect(folder / RUNS)) as database:
        return {row[0] for row in database.execute("SELECT run_uuid FROM runs")}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def picture(folder: Path) -> Path:
    return next((folder / ARTIFACTS).rglob("*.png"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: flip(picture(folder)), r"Missing, or not as it was backed up:\n  artifacts/.*latents\.png"),
        (lambda folder: picture(folder).unlink(), r"Missing, or not as .*\n  artifacts/.*latents\.png"),
        (lambda folder: flip(folder / RUNS), r"Missing, or not as .*\n  mlflow\.db"),
        (lambda folder: (folder / MANIFEST).unlink(), "no whole backup"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "no whole backup"),
        (lambda folder: manifest(folder, lambda tree: tree.pop("sha256")), "no whole backup"),
        (lambda folder: manifest(folder, lambda tree: tree["sha256"].pop(RUNS)), "does not list mlflow.db"),
        (lambda folder: manifest(folder, lambda tree: tree["sha256"].update({"artifacts/../../x": "0"})), "names 'art"),
        (lambda folder: manifest(folder, lambda tree: tree["sha256"].update({"/etc/passwd": "0"})), "names '/etc"),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_touched(saved, tmp_path, spoil, message):
    spoil(saved)
    with pytest.raises(DataError, match=message):
        restore(saved, f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    assert not (tmp_path / "elsewhere").exists() or list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_there_is_not_overwritten_but_put_aside(store, saved, tmp_path):
    later = Run.start("plain", "later", {}, uri=store).run_id
    with pytest.raises(UserError, match=r"store/mlflow\.db, .*artifacts would be overwritten: .*--replace"):
        restore(saved, store)
    assert later in ids(tmp_path / "store")
    restore(saved, store, replace=True)
    assert len(ids(tmp_path / "store")) == 1 and later not in ids(tmp_path / "store")
    (aside,) = (tmp_path / "store").glob("before-restore-*")
    assert later in ids(aside)
    with pytest.raises(UserError, match="holds something already"):
        backup(saved, store)


def test_two_commands_do_it(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    saved = CliRunner().invoke(app, ["backup", str(tmp_path / "backup"), "--json"])
    assert json.loads(saved.stdout)["files"] == len(json.loads((tmp_path / "backup" / MANIFEST).read_text())["sha256"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    restored = CliRunner().invoke(app, ["restore", str(tmp_path / "backup")])
    assert re.match(rf"\d+ files \(\d+\.\d MB\) are back at {tmp_path}/elsewhere/mlflow\.db", restored.stdout)
    assert ids(tmp_path / "elsewhere") == ids(tmp_path / "store")


def test_what_cannot_be_backed_up_is_said(tmp_path):
    with pytest.raises(UserError, match="given http://there:5000, expected a file: on the host of its server"):
        backup(tmp_path / "backup", "http://there:5000")
    with pytest.raises(UserError, match="there is no tracking file"):
        backup(tmp_path / "backup", f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
