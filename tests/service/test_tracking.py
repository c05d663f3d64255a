"""Tracking against a local SQLite file and against a real MLflow server: the same behaviour at both."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import urllib3
from PIL import Image

from avb_service.errors import DataError, UserError
from avb_service.folder import ModelFolder
from avb_service.manifest import read_folder
from avb_service.tracking import (
    Run,
    check_server,
    close_open_children,
    leaderboard,
    login,
    pull,
    register,
    server_command,
    set_alias,
    tracking_uri,
)
from avb_service.tracking.runs import check_experiment

# What MLflow does with SQLAlchemy, and when it is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

CONFIG = {"algorithm": {"name": "avb", "latent_dim": 8, "lr": 1e-5}, "data": {"name": "digits", "options": {}}}
WRONG = {"USERNAME": "avb", "PASSWORD": "hunter22"}
TAGS = {"method": "avb", "latent_dim": "8"}
METRICS = {"test/log_likelihood.ais": -80.125, "test/log_likelihood.gap": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("with space") / "runs"


@pytest.fixture(scope="module")
def local(folder) -> str:
    return check_server(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def server(local, tmp_path_factory):
    """The server that `avb ui` starts, on the same file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = server_command(port=port, uri=local)
    place = tmp_path_factory.mktemp("server")
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command.arguments,
            env={**os.environ, **command.environment},
            cwd=place,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            patient = urllib3.Retry(total=None, connect=200, read=200, backoff_factor=0.1, backoff_max=0.5)
            urllib3.request("GET", f"http://127.0.0.1:{port}/health", retries=patient)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@pytest.fixture(params=["local", "server"])
def uri(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


@pytest.fixture
def run(uri) -> Run:
    return Run.start("plots", "one", CONFIG, uri=uri)


@pytest.fixture
def name(request) -> str:
    return f"model-{request.node.callspec.params['uri']}-{request.node.originalname}"


@pytest.fixture
def model(tmp_path) -> Path:
    weight = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    return ModelFolder({"decoder.weight": weight}, CONFIG, "# AVB on digits").write(tmp_path / "published")


def artifacts(client, run_id: str, folder: str) -> list[str]:
    return sorted(artifact.path for artifact in client.list_artifacts(run_id, folder))


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def logged_model(client, run: Run):
    """The first model that the run has logged."""
    models = [client.get_logged_model(output.model_id) for output in client.get_run(run.run_id).outputs.model_outputs]
    return min(models, key=lambda model: model.creation_timestamp)


def test_a_run_keeps_its_configuration_tags_and_parent(uri, client, tmp_path):
    long = {**CONFIG, "note": "x" * 10_000}
    parent = Run.start("family", "search", CONFIG, uri=uri)
    child = Run.start("family", "trial", long, parent=parent.run_id, tags={"code": "abc"}, uri=uri)
    stored = client.get_run(child.run_id)
    assert stored.info.run_name == "trial" and stored.info.status == "RUNNING"
    assert stored.data.params["algorithm.lr"] == "1e-05" and stored.data.params["data.options"] == "{}"
    assert 1000 < len(stored.data.params["note"]) < 10_000
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id and stored.data.tags["code"] == "abc"
    path = client.download_artifacts(child.run_id, "config.yaml", str(tmp_path))
    assert "latent_dim: 8" in Path(path).read_text()
    child.finish("FAILED", "diverged in round 3")
    stored = client.get_run(child.run_id)
    assert (stored.info.status, stored.data.tags["avb.reason"]) == ("FAILED", "diverged in round 3")


def test_a_restarted_trial_goes_on_in_its_run_and_writes_no_step_twice(uri, client):
    key = f"trial-{uri}"
    first = Run.start("resume", "trial", CONFIG, resume_key=key, uri=uri)
    for step in (0, 10, 20):
        first.log_metrics({"loss": 1.0 / (step + 1), "kl": 2.0}, step)
    first.log_metrics({"loss": -1.0}, 20)
    first.log_figure("samples/prior", np.zeros((4, 4), np.uint8), 20)
    first.finish("FAILED", "killed")

    again = Run.start("resume", "trial", {**CONFIG, "workers": 2}, resume_key=key, uri=uri)
    assert again.run_id == first.run_id and client.get_run(again.run_id).info.status == "RUNNING"
    for step in (10, 20, 30):
        again.log_metrics({"loss": -1.0, "new": 3.0}, step)
        again.log_figure("samples/prior", np.zeros((4, 4), np.uint8), step)
    assert history(client, again.run_id, "loss") == [(0, 1.0), (10, 1 / 11), (20, 1 / 21), (30, -1.0)]
    assert [step for step, _ in history(client, again.run_id, "kl")] == [0, 10, 20]
    assert [step for step, _ in history(client, again.run_id, "new")] == [10, 20, 30]
    pictures = [path for path in artifacts(client, again.run_id, "images") if path.endswith(".png")]
    assert [path.split("+")[2] for path in pictures] == ["20", "30"]
    assert client.get_run(again.run_id).data.params["workers"] == "2"
    assert Run.start("resume", "other", CONFIG, resume_key="other", uri=uri).run_id != first.run_id


def test_threads_may_share_a_run(run, client):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: run.log_metrics({f"metric/{step % 4}": float(step)}, step // 4), range(16)))
        list(pool.map(lambda _: run.log_metrics({"same": 1.0}, 7), range(8)))
    assert history(client, run.run_id, "same") == [(7, 1.0)]
    for number in range(4):
        points = history(client, run.run_id, f"metric/{number}")
        assert points and all(value == 4 * step + number for step, value in points)


def test_plots_show_in_the_grid_and_final_ones_as_files(run, client, tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    run.log_figure("samples", buffer.getvalue(), 5)
    run.log_figure("samples", Image.fromarray(pixels), 6)
    run.log_figure("samples", pixels)
    run.log_figure("latents", buffer.getvalue())
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    assert [path.rpartition(".")[2] for path in artifacts(client, run.run_id, "images")].count("png") == 2
    assert artifacts(client, run.run_id, "figures") == ["figures/latents.png", "figures/samples.png"]
    with Image.open(client.download_artifacts(run.run_id, "figures/samples.png", str(tmp_path))) as image:
        assert np.array_equal(np.array(image), pixels)


def test_a_table_is_replaced_and_not_appended_to(run, client, tmp_path):
    run.log_table("test/log_likelihood", {"index": [0, 1, 2], "nats": [1.0, 2.0, 3.0]})
    run.log_table("test/log_likelihood", {"index": range(2), "nats": np.array([-80.125, -90.0])})
    path = client.download_artifacts(run.run_id, "tables/test/log_likelihood.json", str(tmp_path))
    table = json.loads(Path(path).read_text())
    assert table == {"columns": ["index", "nats"], "data": [[0, -80.125], [1, -90.0]]}
    assert "tables/test/log_likelihood.json" in client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]


def test_the_runs_of_stopped_trials_are_closed(uri, client):
    parent = Run.start("search", "search", CONFIG, uri=uri)
    stopped, done = (Run.start("search", name, CONFIG, parent=parent.run_id, uri=uri) for name in ("a", "b"))
    stranger = Run.start("search", "c", CONFIG, uri=uri)
    done.finish()
    assert close_open_children(parent.run_id, "KILLED", "stopped early", uri=uri) == [stopped.run_id]
    status = {run.run_id: client.get_run(run.run_id).info.status for run in (parent, stopped, done, stranger)}
    assert list(status.values()) == ["RUNNING", "KILLED", "FINISHED", "RUNNING"]
    assert client.get_run(stopped.run_id).data.tags["avb.reason"] == "stopped early"
    assert close_open_children(parent.run_id, uri=uri) == []


def test_a_deleted_experiment_and_an_unknown_run_are_the_users_to_mend(uri, client):
    name = f"deleted-{uri[:4]}"
    run = Run.start(name, "one", CONFIG, uri=uri)
    client.delete_experiment(client.get_run(run.run_id).info.experiment_id)
    with pytest.raises(UserError, match=f"'{name}' was deleted.*restore"):
        Run.start(name, "two", CONFIG, uri=uri)
    with pytest.raises(UserError, match=f"'{name}' was deleted.*restore"):
        check_experiment(name, uri)
    check_experiment("never seen", uri)
    assert client.get_experiment_by_name("never seen") is None, "looking makes nothing"
    with pytest.raises(UserError, match="cannot open run 0123"):
        Run("0123", uri)


def test_a_model_is_registered_listed_and_pulled_back(uri, client, run, name, model, tmp_path):
    first = register(name, model, run.run_id, step=500, aliases=["champion"], metrics=METRICS, tags=TAGS, uri=uri)
    second = register(name, model, run.run_id, step=500, metrics={"test/log_likelihood.ais": float("nan")}, uri=uri)
    assert (first, second) == (1, 2)
    rows = {row.version: row for row in leaderboard(uri) if row.name == name}
    assert (rows[1].aliases, rows[1].tags, rows[1].metrics) == (("champion",), TAGS, METRICS)
    assert (rows[2].aliases, rows[1].run_id, rows[1].uri) == ((), run.run_id, f"models:/{name}/1")

    assert client.get_model_version(name, "1").description == "# AVB on digits"
    logged = logged_model(client, run)
    assert {metric.key: metric.value for metric in logged.metrics} == METRICS
    assert logged.params["algorithm.latent_dim"] == "8" and logged.status == "READY"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": name, "version": 1}]

    set_alias(name, "champion", 2, uri)
    aliases = {row.version: row.aliases for row in leaderboard(uri) if row.name == name}
    assert aliases == {1: (), 2: ("champion",)}

    sources = [
        f"models:/{name}@champion",
        f"models:/{name}/1",
        f"models:/{name}/latest",
        f"runs:/{run.run_id}",
        f"runs:/{run.run_id}/{name}",
        str(model),
    ]
    for index, source in enumerate(sources):
        pulled = pull(source, tmp_path / f"pulled-{index}", uri)
        assert read_folder(pulled) == read_folder(model)
        assert sorted(path.name for path in pulled.iterdir()) == sorted(path.name for path in model.iterdir())


def test_pulling_never_overwrites_something_else(uri, run, name, model, tmp_path):
    register(name, model, run.run_id, uri=uri)
    target = pull(f"models:/{name}/1", tmp_path / "target", uri)
    assert pull(f"models:/{name}/1", target, uri) == target
    (target / "card.md").write_text("mine")
    with pytest.raises(UserError, match="holds something other than models:/"):
        pull(f"models:/{name}/1", target, uri)
    assert (target / "card.md").read_text() == "mine"


@pytest.mark.parametrize("form", ["models:/{}@contender", "models:/{}/9", "models:/{}", "models:/other@champion"])
def test_an_unknown_model_lists_what_there_is(uri, run, name, model, tmp_path, form):
    register(name, model, run.run_id, aliases=["champion"], uri=uri)
    with pytest.raises(UserError, match="there is no model") as error:
        pull(form.format(name), tmp_path / "target", uri)
    assert f"models:/{name}/1" in str(error.value) and "@champion" in str(error.value)
    assert not (tmp_path / "target").exists()


def test_unknown_runs_folders_and_names_are_the_users_to_mend(uri, run, model, tmp_path):
    with pytest.raises(UserError, match="neither models:/NAME@ALIAS"):
        pull("avb-mnist@champion", tmp_path / "target", uri)
    with pytest.raises(UserError, match="it has none at all"):
        pull(f"runs:/{run.run_id}", tmp_path / "target", uri)
    with pytest.raises(UserError, match="cannot look up runs:/0123"):
        pull("runs:/0123", tmp_path / "target", uri)
    with pytest.raises(UserError, match="cannot register .* as 'a/b'.*cannot contain"):
        register("a/b", model, run.run_id, uri=uri)
    with pytest.raises(UserError, match="there is no model models:/absent/1"):
        set_alias("absent", "champion", 1, uri)


def test_a_tampered_model_is_neither_published_nor_pulled(uri, client, run, name, model, tmp_path):
    register(name, model, run.run_id, uri=uri)
    logged = logged_model(client, run)
    other = tmp_path / "upload" / "data" / model.name / "card.md"
    other.parent.mkdir(parents=True)
    other.write_text("# Another card")
    client.log_model_artifacts(logged.model_id, str(tmp_path / "upload"))
    with pytest.raises(DataError, match="card.md does not match its checksum"):
        pull(f"models:/{name}/1", tmp_path / "target", uri)
    (model / "card.md").write_text("# Another card")
    with pytest.raises(DataError, match="card.md does not match its checksum"):
        register(name, model, run.run_id, uri=uri)
    assert [row.version for row in leaderboard(uri) if row.name == name] == [1]


def test_a_model_that_points_outside_of_itself_is_not_read(uri, client, run, name, model, tmp_path):
    from mlflow.artifacts import download_artifacts

    register(name, model, run.run_id, uri=uri)
    logged = logged_model(client, run)
    place = f"{logged.artifact_location}/MLmodel"
    path = Path(download_artifacts(artifact_uri=place, dst_path=str(tmp_path / "upload"), tracking_uri=uri))
    text, changes = re.subn(r"^( +data: ).*$", rf"\g<1>../../../../../../../../..{model}", path.read_text(), flags=re.M)
    assert changes == 1
    path.write_text(text)
    client.log_model_artifacts(logged.model_id, str(tmp_path / "upload"))
    with pytest.raises(DataError, match="outside of itself"):
        pull(f"models:/{name}/1", tmp_path / "target", uri)


def test_mlflow_loads_a_registered_model_without_pickle(uri, run, name, model, monkeypatch):
    """The loader's stand-in rebuilds a linear model, so that what it answers depends on the weights."""
    import mlflow

    def load_model(folder: Path) -> SimpleNamespace:
        weight = ModelFolder.read(folder).weights["decoder.weight"]
        return SimpleNamespace(
            reconstruct=lambda x, seed: torch.from_numpy(x) * weight.sum(),
            encode=lambda x, seed: torch.from_numpy(x).flatten(1) @ weight.new_ones(4, 2),
            sample=lambda n, seed: torch.full((n, 1, 2, 2), float(seed)),
        )

    stand_in = ModuleType("avb_service.model")
    stand_in.Model = SimpleNamespace(of_folder=load_model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "avb_service.model", stand_in)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    register(name, model, run.run_id, aliases=["champion"], uri=uri)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion", suppress_warnings=True)
    x = np.full((3, 1, 2, 2), 0.5, np.float32)
    weight = ModelFolder.read(model).weights["decoder.weight"]
    assert np.allclose(loaded.predict(x), 0.5 * float(weight.sum()))
    assert loaded.predict(x, params={"task": "encode"}).shape == (3, 2)
    assert (loaded.predict(x, params={"task": "sample", "n": 2, "seed": 7}) == np.full((2, 1, 2, 2), 7.0)).all()
    with pytest.raises(mlflow.MlflowException, match="given 'fly', expected reconstruct, encode, sample"):
        loaded.predict(x, params={"task": "fly"})


def test_what_was_logged_into_the_file_shows_on_its_server(local, server, model, tmp_path):
    from mlflow import MlflowClient

    run = Run.start("shared", "local", CONFIG, uri=local)
    run.log_figure("samples", np.zeros((4, 4), np.uint8))
    register("shared-model", model, run.run_id, aliases=["champion"], uri=local)
    client = MlflowClient(server)
    assert artifacts(client, run.run_id, "figures") == ["figures/samples.png"]
    response = urllib3.request("GET", f"{server}/get-artifact?path=figures/samples.png&run_uuid={run.run_id}")
    assert response.status == 200 and response.data.startswith(b"\x89PNG")


def test_artifacts_lie_beside_the_file(folder, local, model):
    run = Run.start("places", "one", CONFIG, uri=local)
    assert (folder / "artifacts" / run.run_id / "artifacts" / "config.yaml").is_file()


def test_the_tracking_uri_is_absolute_and_falls_back(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("sqlite:///a b/c%20d.db") == f"sqlite:///{tmp_path}/a b/c d.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000/")
    assert tracking_uri() == "http://tracking:5000"
    assert tracking_uri(tracking_uri("sqlite:///x?.db")) == f"sqlite:///{tmp_path}/x%3F.db"


def test_a_server_that_is_not_there_is_named(unused_port=1):
    with pytest.raises(UserError, match=f"no MLflow server answers at http://127.0.0.1:{unused_port} within"):
        check_server(f"http://127.0.0.1:{unused_port}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "asks for a login"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "is no MLflow server"),
        (b"", "no MLflow server answers"),
    ],
)
def test_a_server_that_answers_something_else_is_named(answer, message):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UserError, match=message):
            check_server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("given", "host", "status", "answer", "says"),
    [
        ({}, "127.0.0.1", 401, "", "set .*_USERNAME and .*_PASSWORD,.*folder that `avb ui"),
        ({"USERNAME": "avb"}, "mlflow.example.org", 401, "", "set MLFLOW_TRACKING_PASSWORD,.*runs mlflow.example"),
        (WRONG, "127.0.0.1", 401, "", "'avb' that MLFLOW_TRACKING_PASSWORD holds.*folder that `avb ui"),
        (WRONG, "192.0.2.1", 401, "", "'avb' that MLFLOW_TRACKING_PASSWORD holds.*whoever runs 192.0.2.1"),
        (WRONG, "192.0.2.1", 403, "Permission denied", "'avb' and does not permit"),
        ({}, "head", 403, "Invalid Host header - possible attack", "called head:5000.*MLFLOW_SERVER_ALLOWED_HOSTS"),
    ],
    ids=["none here", "half elsewhere", "wrong here", "wrong elsewhere", "not permitted", "another name"],
)
def test_each_refusal_has_its_own_advice_of_one_line(given, host, status, answer, says, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    line = login.refusal(f"http://{host}:5000", status, answer)
    assert re.search(says, line) and "\n" not in line and "hunter22" not in line


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write the tracking file {tmp_path}/file/mlflow.db"):
        check_server(f"sqlite:///{tmp_path}/file/mlflow.db")
    (tmp_path / "notes.db").write_text("this is no database, and long enough for SQLite to notice" * 20)
    with pytest.raises(UserError, match="file is not a database"):
        check_server(f"sqlite:///{tmp_path}/notes.db")


def test_processes_that_start_together_share_a_new_file(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = f"from avb_service.tracking import Run; print(Run.start('one', 'x', {{}}, uri={uri!r}).run_id)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert len({out for out, _ in ended}) == 2


def test_the_server_command_listens_on_loopback_only(tmp_path):
    command = server_command(port=5001, uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert command.arguments[command.arguments.index("--host") + 1] == "127.0.0.1"
    assert command.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    with pytest.raises(UserError, match="is a server already"):
        server_command(uri="http://tracking:5000")


def test_mlflow_is_imported_late_and_without_telemetry():
    code = (
        "import sys, avb_service.tracking as t; assert 'mlflow' not in sys.modules and 'ray' not in sys.modules\n"
        "import os; assert not any(name.startswith('MLFLOW') for name in os.environ)\n"
        "from avb_service.tracking.server import refusals\n"
        "with refusals('x'): pass\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled as off; assert off()"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PYTEST", "CI"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
