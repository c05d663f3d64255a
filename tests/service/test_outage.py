"""A real MLflow server that goes away while a run is recorded, and comes back."""

import os
import signal
import socket
import subprocess
from io import BytesIO

import pytest
import urllib3
from PIL import Image

from avb_service.tracking import Outbox, Run, outbox, server_command
from avb_service.tracking.outbox import letters
from avb_service.tracking.server import connect

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

LONG = 120  # seconds: nothing here waits for so long unless it has failed


class Server:
    """On one port, through several lives."""

    def __init__(self, folder) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{port}"
        self.command = server_command(port=port, uri=f"sqlite:///{folder}/mlflow.db")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command.arguments,
                env={**os.environ, **self.command.environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        patient = urllib3.Retry(total=None, connect=400, read=400, backoff_factor=0.1, backoff_max=0.5)
        urllib3.request("GET", f"{self.uri}/health", retries=patient)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


def png() -> bytes:
    buffer = BytesIO()
    Image.new("L", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


def test_what_is_recorded_while_the_server_is_away_is_there_once_and_in_order_when_it_is_back(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # so that the gap is ours to bridge, and not MLflow's
    monkeypatch.setattr(outbox, "PAUSE", 0.1)

    def open_run(begun: int | None) -> Run:
        return Run.start("outage", "trial", {"rounds": 9}, resume_key="trial", begun=begun, uri=server.uri)

    def record(box: Outbox, rounds) -> None:
        for round_ in rounds:
            box.log_metrics({"loss": 1.0 / round_, "kl": float("nan")}, round_)
            box.log_figure("samples", png(), round_)

    folder = tmp_path / "trial" / "outbox"
    box = Outbox(folder, open_run, server.uri)  # the run begins before the server does
    record(box, (1, 2))
    server.start()
    assert box.close(LONG) == 0

    box = Outbox(folder, open_run, server.uri)
    record(box, (3,))
    server.stop()
    record(box, (4, 5))
    assert box.close(0.5) > 0, "the worker is gone before the server is back"

    box = Outbox(folder, open_run, server.uri)
    record(box, (5, 6))  # it resumes behind its last report
    server.start()
    box.finish()
    assert box.close(LONG) == 0 and letters(folder) == []

    client = connect(server.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
    assert run.info.status == "FINISHED"
    for key in ("loss", "kl"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, key)] == [1, 2, 3, 4, 5, 6]
    images = sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id, "images"))
    for ending in ("png", "webp"):
        assert [path.split("+")[2] for path in images if path.endswith(ending)] == ["1", "2", "3", "4", "5", "6"]
