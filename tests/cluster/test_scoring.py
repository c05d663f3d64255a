"""A model folder scored from the command line: here, on Ray workers, interrupted, and asked for what does not fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avb_service.experiment import Experiment
from avb_service.likelihood import LikelihoodRecord

AVB = str(Path(sys.executable).with_name("avb"))
DATA = {
    "data": {"name": "digits", "binarisation": "dynamic", "validation": 50, "test": 120},
    "training.rounds": 30, "training.report_every": 30, "likelihood.test_data": 120,
    "likelihood.pilot": {"temperatures": 10, "chains": 4}, "likelihood.ais": {"temperatures": 5, "chains": 4},
    "likelihood.ais_prior": {"temperatures": 10, "chains": 4}, "likelihood.certificate": {"real": 10},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("scoring")
    for method in ("vae", "avb"):
        experiment = Experiment(small(method, DATA), place / method)
        experiment.fit()
        experiment.publish(place / f"{method}-model", "# card", experiment.assess())
    return place


def avb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run([AVB, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def estimates(folder: Path, *arguments: str) -> list[dict]:
    done = avb(folder, "evaluate", "vae-model", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["estimates"]


def test_the_numbers_are_the_same_on_any_number_of_workers_and_after_an_interruption(folder):
    (alone,) = estimates(folder, "--estimator", "ais", "--keep", "kept")
    kept = sorted((folder / "kept").rglob("*.block"))
    assert len(kept) == 3, "120 data are three blocks"
    kept[1].unlink()
    untouched = kept[0].stat().st_mtime_ns
    (resumed,) = estimates(folder, "--estimator", "ais", "--keep", "kept")
    assert resumed == alone
    assert kept[1].exists() and kept[0].stat().st_mtime_ns == untouched
    (shared,) = estimates(folder, "--estimator", "ais", "--workers", "2")
    assert shared == alone


def test_a_certified_budget_says_what_passed(folder):
    done = avb(folder, "evaluate", "vae-model", "--budget", "certified", "--limit", "20", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["certificate"]["verdict"] in ("PASS", "lower bound only")
    assert {"gap", "gap_95", "drift", "starts", "ess"} <= {check["name"] for check in told["certificate"]["checks"]}
    kinds = {found["estimator"]: found["kind"] for found in told["estimates"]}
    assert kinds["ais"] == kinds["elbo"] == "lower_bound"
    assert kinds["elbo_ceiling"] == "upper_bound"


def test_a_settings_file_changes_the_recipe_and_its_typos_are_named(folder):
    (folder / "more.yaml").write_text("importance_draws: 9\ntest_data: 7\n")
    (found,) = estimates(folder, "--estimator", "iwae", "--settings", "more.yaml")
    assert found["estimator"] == "iwae_9"
    shown = avb(folder, "evaluate", "vae-model", "--estimator", "elbo", "--settings", "more.yaml").stdout
    assert "on 7 test data" in " ".join(shown.split())
    (folder / "typo.yaml").write_text("importance_drawz: 9\n")
    refused = avb(folder, "evaluate", "vae-model", "--settings", "typo.yaml")
    assert refused.returncode == 2
    assert "importance_drawz: unknown key" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--estimator", "aiz"), "no estimator 'aiz'; there are quadrature"),
        (("--estimator", "elbo_adversarial"), "adversary"),
        (("--estimator", "quadrature"), "at most 2 latent dimensions"),
        (("--estimator", "enumeration"), "enumeration"),
        (("--budget", "lavish"), "budget: given 'lavish'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, arguments, message):
    refused = avb(folder, "evaluate", "vae-model", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr.replace("\n", " ")


def test_two_models_are_compared_datum_by_datum(folder):
    done = avb(folder, "compare", "vae-model", "avb-model", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    records = [LikelihoodRecord.from_json((folder / f"{m}-model/likelihood.json").read_bytes()) for m in ("vae", "avb")]
    first, second = (record.held_out.per_datum for record in records)
    assert told["difference"] == pytest.approx((first - second).mean().item())
    assert told["stderr"] == pytest.approx((first - second).std().item() / len(first) ** 0.5)
    assert torch.is_tensor(first) and told["data"] == len(first) == 120
