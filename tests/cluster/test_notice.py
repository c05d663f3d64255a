"""A worker on a real local Ray that is told to end, and hosts that Ray drains: saved in time, and carried on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avb_service.checkpoint import CheckpointStore
from avb_service.tracking.server import connect

AVB = str(Path(sys.executable).with_name("avb"))
SET = {
    "training.rounds": 4000,
    "training.report_every": 4000,
    "data.limit": 300,
    "likelihood.validation_data": 20,
    "likelihood.test_data": 20,
    "likelihood.importance_draws": 64,
    "likelihood.budget": "quick",
    "likelihood.elbo_draws": 4,
    "likelihood.search": {"temperatures": 3, "chains": 4, "rest": 1, "leapfrog": 2},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def workers_of(root: int) -> list[int]:
    """Ray Train's worker processes among a process's descendants."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = (int(fields[1]), (stat.parent / "cmdline").read_text())
        except OSError:
            continue
    for pid, (parent, command) in parents.items():
        above = parent
        while above in parents and above != root:
            above = parents[above][0]
        if above == root and command.startswith("ray::RayTrainWorker"):
            found.append(pid)
    return found


def test_a_worker_that_is_told_to_end_saves_and_another_goes_on_from_there(tmp_path):
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    settings = [word for path, value in SET.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    process = subprocess.Popen(
        [AVB, "train", "vae_digits", "--name", "rented", *settings],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    store = CheckpointStore(tmp_path / "runs" / "rented" / "checkpoints")
    told, deadline = False, time.monotonic() + 400
    try:
        # The state before the first round is saved, and then nothing but notice saves before the last round.
        while (saved := store.latest()) is None or saved.round == 0:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "nothing was saved"
            if saved is not None and not told:
                (worker,) = workers_of(process.pid)
                os.kill(worker, signal.SIGTERM)
                told = True
            time.sleep(0.1)
        assert saved.round < SET["training.rounds"]
        _, err = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, err
    client = connect(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/log_likelihood")] == [4000]
