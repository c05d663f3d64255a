"""The main job on a real local Ray cluster: searched, interrupted, continued, published, pulled."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import avb_service
from avb_service.checkpoint import CheckpointStore
from avb_service.report import OBJECTIVE
from avb_service.runs import OUTCOME, Outcome
from avb_service.tracking.runs import REASON, RESUME_KEY
from avb_service.tracking.server import connect
from avb_service.trees import Tree, difference
from tests.answers import told

AVB = str(Path(sys.executable).with_name("avb"))
WILD = 2.0  # a momentum that doubles each step: sound at the first report, infinite before the third
SPACE = {
    "preset": "avb_digits",
    "set": {"algorithm.model.optimizer": "SGD", "algorithm.model.betas": None, "algorithm.model.lr": 1.0e-3,
            "training.rounds": 40, "training.report_every": 10, "data.limit": 300, "tracking.plots_every": 4,
            "likelihood.validation_data": 20, "likelihood.diagnosis_data": 20, "likelihood.test_data": 50,
            "likelihood.quadrature_data": 2, "likelihood.importance_draws": 64, "likelihood.elbo_draws": 4,
            "likelihood.search": {"temperatures": 3, "chains": 4, "rest": 1, "leapfrog": 2},
            "likelihood.pilot": {"temperatures": 20, "chains": 8}, "likelihood.ais": {"temperatures": 10},
            "likelihood.ais_prior": {"temperatures": 40}, "likelihood.certificate": {"real": 50}},
    "space": {"algorithm.model.options.momentum": {"choice": [0.5, WILD]}, "algorithm.latent_dim": {"choice": [2, 4]}},
    "baselines": ["vae_digits", "avb_ac_digits"],
    "trials": 3,
    "concurrent": 2,
    "scheduler": {"asha": {"grace": 3, "reduction": 2}},
    "seed": 3,  # the first trial is wild, and the third begins when that has failed
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


class Desk:
    """A directory to work in, with a tracking file and a Ray cluster of its own."""

    def __init__(self, folder: Path, space: Tree = SPACE) -> None:
        self.folder = folder
        # A cluster that happens to run on this machine is not ours to use.
        self.environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [AVB, *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @property
    def search(self) -> Path:
        (found,) = self.folder.glob("runs/space-*")
        return found

    @property
    def client(self):
        return connect(f"sqlite:///{self.folder}/runs/mlflow.db")

    @property
    def experiment(self) -> str:
        return self.client.get_experiment_by_name("digits").experiment_id

    def trials(self) -> set[Path]:
        return {path.parent for path in self.folder.glob("runs/space-*/trials/*/job.json")}

    def finished(self) -> set[Path]:
        return {trial for trial in self.trials() if Outcome.read(trial) == Outcome("finished")}

    def unfinished(self) -> set[Path]:
        return {trial for trial in self.trials() if Outcome.read(trial) is None}

    def run_of(self, trial: Path):
        key = f"{self.search.name}/{trial.name}"
        (run,) = self.client.search_runs([self.experiment], f"tags.`{RESUME_KEY}` = '{key}'")
        return run

    def traces(self, trial: Path) -> tuple[dict[Path, tuple[int, bytes]], dict[str, list[tuple[int, float, int]]]]:
        """What training a trial leaves behind: files with the time of writing, plots with the time of logging."""
        files = [trial / OUTCOME, *(path for path in trial.glob("checkpoints/**/*") if path.is_file())]
        run = self.run_of(trial)
        histories = {
            key: [(p.step, p.value, p.timestamp) for p in self.client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}, histories


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    """Where a search was interrupted when a trial had finished and another had begun, and then went on."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    process = desk.start("tune", "--space", "space.yaml")

    wait_for(lambda: desk.finished() and desk.unfinished(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume continues it" in err
    desk.left = desk.unfinished()
    desk.statuses = {run.info.run_id: run.info.status for run in desk.client.search_runs([desk.experiment])}
    desk.before = {trial: desk.traces(trial) for trial in desk.finished()}
    desk.resumed = desk.run("tune", "--space", "space.yaml", "--resume", "--json")
    assert desk.resumed.returncode == 0, desk.resumed.stderr
    return desk


@pytest.fixture(scope="module")
def runs(desk):
    return desk.client, desk.client.search_runs([desk.experiment])


def test_what_had_finished_before_an_interruption_is_not_repeated(desk):
    assert desk.before
    for trial, (files, histories) in desk.before.items():
        files_now, histories_now = desk.traces(trial)
        assert files_now == files
        assert {key: histories_now[key] for key in histories} == histories


def test_an_interruption_leaves_no_run_open_and_what_goes_on_has_no_reason_to_have_ended(runs, desk):
    assert "KILLED" in desk.statuses.values() and "RUNNING" not in desk.statuses.values()
    for run in runs[1]:
        assert desk.statuses.get(run.info.run_id) != "KILLED" or "interrupted" not in run.data.tags.get(REASON, "")


def test_what_had_begun_before_an_interruption_is_brought_to_its_end(desk):
    assert desk.left
    assert {desk.run_of(trial).info.status for trial in desk.left} <= {"FINISHED", "FAILED"}
    assert len(desk.trials()) == SPACE["trials"] + len(SPACE["baselines"])


def test_a_trial_that_diverges_fails_with_its_reason_and_its_last_good_state_and_the_search_goes_on(runs, desk):
    client, found = runs
    trials = [run for run in found if run.data.tags["avb.kind"] == "trial"]
    (wild,) = [run for run in trials if float(run.data.params["algorithm.model.options.momentum"]) == WILD]
    assert wild.info.status == "FAILED"
    assert re.match(r"round [12]\d: .* is (inf|-inf|nan|not a number)", wild.data.tags[REASON])
    folder = desk.search / "trials" / wild.data.tags[RESUME_KEY].split("/")[1]
    assert Outcome.read(folder) == Outcome("diverged", wild.data.tags[REASON])
    kept = CheckpointStore(folder / "checkpoints").latest()
    assert kept is not None and kept.round in (10, 20)
    assert all(tensor.isfinite().all() for tensor in kept.state["engine"]["algorithm"].values())
    assert {run.info.status for run in trials if run is not wild} == {"FINISHED"}


def test_every_trial_is_a_child_run_with_what_is_kept_of_it(runs, desk):
    client, found = runs
    (parent,) = [run for run in found if run.data.tags.get("avb.kind") == "search"]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == SPACE["trials"] + len(SPACE["baselines"])
    for run in children:
        assert {"method", "data_sha256", "code"} <= run.data.tags.keys()
        assert run.data.tags["avb.hosts"] == socket.gethostname()
        assert run.data.params["training.rounds"] == "40"
        history = client.get_metric_history(run.info.run_id, OBJECTIVE)
        assert len({point.step for point in history}) == len(history), "no round is recorded twice"
        last = max(history, key=lambda point: point.step)
        assert run.data.tags["rounds"] == str(last.step)
        assert run.data.tags["train_seconds"] == f"{run.data.metrics['time/train_seconds']:.1f}" != "0.0"
        assert last.timestamp <= run.info.end_time <= parent.info.end_time
    best = client.get_run(parent.info.run_id).data.tags["avb.best_model"]
    assert best.startswith("models:/avb-digits/")


def test_plots_were_logged_as_training_went(runs):
    client, found = runs
    baseline, *_ = [run for run in found if run.data.tags.get("avb.kind") == "baseline"]
    images = {artifact.path for artifact in client.list_artifacts(baseline.info.run_id, "images")}
    final = {Path(artifact.path).stem for artifact in client.list_artifacts(baseline.info.run_id, "figures")}
    assert {"samples", "reconstructions", "latents", "interpolation", "training_curves"} <= final
    assert any("samples+step+40" in path.replace("%", "+") for path in images)


def test_the_leaderboard_holds_both_methods_and_the_baseline(desk):
    rows = told("tune", desk.resumed.stdout)
    assert {row["method"] for row in rows} == {"vae", "avb", "avb_ac"}
    bounds = [row["log_likelihood"] for row in rows]
    assert bounds == sorted(bounds, reverse=True)
    assert [row["aliases"] for row in rows].count(["champion"]) == 1


def test_the_champion_is_pulled_loaded_without_pickle_and_sampled(desk, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{desk.folder}/runs/mlflow.db")
    pulled = desk.run("pull", "models:/avb-digits@champion", "champion")
    assert pulled.returncode == 0, pulled.stderr
    assert {path.name for path in (desk.folder / "champion").iterdir()} == {
        "weights.safetensors",
        "config.yaml",
        "card.md",
        "likelihood.json",
        "manifest.json",
    }
    here, there = avb_service.load(desk.folder / "champion"), avb_service.load("models:/avb-digits@champion")
    assert not difference(here.config.tree(), there.config.tree())
    assert (here.sample(4, seed=1) == there.sample(4, seed=1)).all()
    x, _ = here.data("test", limit=20)
    assert {estimate.kind for estimate in here.log_likelihood(x)} >= {"lower_bound", "estimate"}


def test_resuming_a_finished_search_repeats_nothing(desk):
    again = desk.run("tune", "--space", "space.yaml", "--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert again.stdout == desk.resumed.stdout


def test_resuming_with_another_space_is_refused_with_the_differing_lines(desk):
    (desk.folder / "other").mkdir(exist_ok=True)
    changed = {**SPACE, "trials": 4}
    (desk.folder / "other" / "space.yaml").write_text(yaml.safe_dump(changed))
    refused = desk.run("tune", "--space", "other/space.yaml", "--resume")
    assert refused.returncode == 2
    assert "trials: 3 -> 4" in refused.stderr


def test_more_workers_than_the_machine_has_are_refused_at_once(desk):
    refused = desk.run("train", "vae_digits", "--set", "scaling.workers=64", "--set", "training.logical_workers=64")
    assert refused.returncode == 2
    assert "64 workers" in refused.stderr and "do not fit" in refused.stderr


def test_one_model_is_trained_with_a_line_for_each_report_and_registered(desk):
    settings = [word for path, value in SPACE["set"].items() for word in ("--set", f"{path}={json.dumps(value)}")]
    trained = desk.run("train", "vae_digits", "--name", "mine", *settings)
    assert trained.returncode == 0, trained.stderr
    assert re.findall(r"^mine  round +(\d+)  log p\(x\) >= +-\d", trained.stderr, re.M) == ["10", "20", "30", "40"]
    assert "mine is models:/vae-digits/2" in trained.stdout


def test_trials_of_one_worker_are_trained_one_after_the_other_in_one_process(tmp_path):
    quick = {"training.rounds": 20, "algorithm.model.optimizer": "Adam", "algorithm.model.betas": [0.9, 0.999]}
    one = {"preset": "vae_digits", "concurrent": 1, "space": {"algorithm.latent_dim": {"choice": [2, 3, 4]}}}
    without = SPACE.keys() - {"baselines", "scheduler"}
    desk = Desk(tmp_path, {**{key: SPACE[key] for key in without}, **one, "set": {**SPACE["set"], **quick}})
    done = desk.run("tune", "--space", "space.yaml")
    assert done.returncode == 0, done.stderr
    assert len(desk.trials()) == 3 and not desk.unfinished()
    results = [path.read_text().splitlines() for path in desk.search.glob("tune/*/*/result.json")]
    assert len(results) == 3 and len({json.loads(line)["pid"] for lines in results for line in lines}) == 1


def test_trials_of_several_workers_are_stopped_early_and_others_begin_after_them(tmp_path):
    quick = {"training.rounds": 60, "scaling.workers": 2, "training.logical_workers": 2, "scaling.cpus_per_worker": 0.4}
    two = {"preset": "vae_digits", "concurrent": 1, "space": {"algorithm.latent_dim": {"choice": [8, 4, 2]}}}
    asha = {"start": [{"algorithm.latent_dim": 8}], "scheduler": {"asha": {"grace": 1, "reduction": 2}}}
    settings = {key: value for key, value in SPACE["set"].items() if key.split(".")[0] in ("data", "likelihood")}
    fixed = {**settings, "training.report_every": 20, **quick}
    desk = Desk(tmp_path, {**two, **asha, "trials": 3, "set": fixed})
    done = desk.run("tune", "--space", "space.yaml")
    assert done.returncode == 0, done.stderr
    ended = [Outcome.read(trial).status for trial in desk.trials()]
    assert len(ended) == 3 and "stopped" in ended and {*ended} <= {"finished", "stopped"}
