"""The main job on a real local Ray cluster: searched, interrupted, continued, published, pulled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import avb_service
from avb_service.config import difference
from avb_service.experiment import OBJECTIVE
from avb_service.tracking.server import connect

AVB = str(Path(sys.executable).with_name("avb"))
SPACE = {
    "preset": ["avb_digits", "avb_ac_digits"],
    "set": {"training.rounds": 60, "training.report_every": 20, "data.limit": 300, "tracking.figures_every": 3,
            "likelihood.validation_data": 50, "likelihood.test_data": 50, "likelihood.quadrature_data": 4,
            "likelihood.search": {"temperatures": 5, "chains": 4, "rest": 2},
            "likelihood.pilot": {"temperatures": 20, "chains": 8}, "likelihood.ais": {"temperatures": 10},
            "likelihood.ais_prior": {"temperatures": 40}, "likelihood.certificate": {"real": 10, "starts": 1.0}},
    "space": {"algorithm.model.lr": {"choice": [1.0e-3, 2.0e-3]}, "algorithm.latent_dim": {"choice": [2, 4]}},
    "baselines": ["vae_digits"],
    "trials": 4,
    "scheduler": {"asha": {"grace": 2, "reduction": 2}},
    "seed": 3,
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


class Desk:
    """A directory to work in, with a tracking file and a Ray cluster of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A cluster that happens to run on this machine is not ours to use.
        self.environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [AVB, *arguments], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @property
    def search(self) -> Path:
        (found,) = self.folder.glob("runs/space-*")
        return found

    def outcomes(self) -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in self.search.glob("trials/*/outcome.json")}


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    """Where a search was interrupted while its first trials were running, and then continued to the end."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    process = desk.start("tune", "--space", "space.yaml")
    wait_for(lambda: list(desk.folder.glob("runs/space-*/trials/*/job.json")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume continues it" in err
    desk.before = desk.outcomes()
    desk.resumed = desk.run("tune", "--space", "space.yaml", "--resume")
    assert desk.resumed.returncode == 0, desk.resumed.stderr
    return desk


@pytest.fixture(scope="module")
def runs(desk):
    client = connect(f"sqlite:///{desk.folder}/runs/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    return client, found


def test_an_interrupted_search_ends_with_each_trial_once(desk):
    assert desk.before.items() <= desk.outcomes().items()
    assert len(list(desk.search.glob("trials/*/job.json"))) == SPACE["trials"] + 1


def test_every_trial_is_a_child_run_with_what_is_kept_of_it(runs, desk):
    client, found = runs
    (parent,) = [run for run in found if run.data.tags.get("avb.kind") == "search"]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == SPACE["trials"] + 1
    for run in children:
        assert run.info.status in ("FINISHED", "FAILED")
        assert {"method", "data_sha256", "code"} <= run.data.tags.keys()
        assert run.data.params["training.rounds"] == "60"
        history = client.get_metric_history(run.info.run_id, OBJECTIVE)
        assert len({point.step for point in history}) == len(history), "no round is recorded twice"
    best = client.get_run(parent.info.run_id).data.tags["avb.best_model"]
    assert best.startswith("models:/avb-digits/")


def test_figures_were_logged_as_training_went(runs):
    client, found = runs
    (baseline,) = [run for run in found if run.data.tags.get("avb.kind") == "baseline"]
    images = {artifact.path for artifact in client.list_artifacts(baseline.info.run_id, "images")}
    final = {Path(artifact.path).stem for artifact in client.list_artifacts(baseline.info.run_id, "figures")}
    assert {"samples", "reconstructions", "latents", "interpolation", "training_curves"} <= final
    assert any("samples+step+60" in path.replace("%", "+") for path in images)


def test_the_leaderboard_holds_both_methods_and_the_baseline(desk):
    rows = json.loads(desk.run("leaderboard", "--json").stdout)
    assert {"vae", "avb", "avb_ac"} >= {row["method"] for row in rows} >= {"vae"}
    bounds = [row["log p(x) >="] for row in rows]
    assert bounds == sorted(bounds, reverse=True)
    assert [row["alias"] for row in rows].count("champion") == 1


def test_the_champion_is_pulled_loaded_without_pickle_and_sampled(desk, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{desk.folder}/runs/mlflow.db")
    pulled = desk.run("pull", "models:/avb-digits@champion", "champion")
    assert pulled.returncode == 0, pulled.stderr
    assert {path.name for path in (desk.folder / "champion").iterdir()} == {
        "weights.safetensors", "config.yaml", "card.md", "likelihood.json", "manifest.json",
    }  # fmt: skip
    here, there = avb_service.load(desk.folder / "champion"), avb_service.load("models:/avb-digits@champion")
    assert not difference(here.config.tree(), there.config.tree())
    assert (here.sample(4, seed=1) == there.sample(4, seed=1)).all()
    x, _ = here.data("test", limit=20)
    assert {estimate.kind for estimate in here.log_likelihood(x)} >= {"lower_bound", "estimate"}


def test_resuming_a_finished_search_repeats_nothing(desk):
    before = desk.run("leaderboard", "--json").stdout
    assert desk.run("tune", "--space", "space.yaml", "--resume").returncode == 0
    assert desk.run("leaderboard", "--json").stdout == before


def test_resuming_with_another_space_is_refused_with_the_differing_lines(desk):
    (desk.folder / "other").mkdir(exist_ok=True)
    changed = {**SPACE, "trials": 6}
    (desk.folder / "other" / "space.yaml").write_text(yaml.safe_dump(changed))
    refused = desk.run("tune", "--space", "other/space.yaml", "--resume")
    assert refused.returncode == 2
    assert "trials: 4 -> 6" in refused.stderr


def test_more_workers_than_the_machine_has_are_refused_at_once(desk):
    refused = desk.run(
        "train", "vae_digits", "--set", "scaling.workers=64", "--set", "training.logical_workers=64"
    )  # fmt: skip
    assert refused.returncode == 2
    assert "64 workers" in refused.stderr and "do not fit" in refused.stderr
