"""A model folder scored from the command line: here, on Ray workers, interrupted, and asked for what does not fit."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from avb_service.fitting import Fit
from avb_service.records import LikelihoodRecord
from avb_service.report import assess
from tests import answers

AVB = str(Path(sys.executable).with_name("avb"))
DATA = {
    "data": {"name": "digits", "binarisation": "dynamic", "validation": 50, "test": 120},
    "training.rounds": 30, "training.report_every": 30, "likelihood.test_data": 120,
    "likelihood.pilot": {"temperatures": 10, "chains": 4}, "likelihood.ais": {"temperatures": 5, "chains": 4},
    "likelihood.ais_prior": {"temperatures": 10, "chains": 4}, "likelihood.certificate": {"real": 10},
    "likelihood.corrected": {"rounds": 10, "moment_draws": 64, "elbo_draws": 8}, "likelihood.adversary_data": 30,
    "likelihood.parzen_samples": 200, "likelihood.memory_mib": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("scoring")
    for method in ("vae", "avb"):
        experiment = Fit(small(method, DATA), place / method)
        experiment.run()
        replace(experiment.model, card="# card", likelihood=assess(experiment.model)).write(place / f"{method}-model")
    return place


def avb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run([AVB, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def told(folder: Path, model: str, *arguments: str) -> dict:
    done = avb(folder, "evaluate", model, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return answers.told("evaluate", done.stdout)


def estimates(folder: Path, *arguments: str) -> list[dict]:
    return told(folder, "vae-model", *arguments)["estimates"]


ALL = ("avb-model", "--estimator", "ais", "--estimator", "elbo_corrected", "--estimator", "parzen")


def test_the_numbers_are_the_same_on_any_number_of_workers_and_after_an_interruption(folder):
    alone = told(folder, *ALL, "--keep", "kept")["estimates"]
    assert [found["estimator"] for found in alone] == ["ais", "elbo_corrected", "parzen", "parzen_training"]
    assert {found["n_data"] for found in alone} == {120}
    assert alone[0]["recipe"]["temperatures"] == 5 and alone[0]["recipe"]["start"] == "refined"
    kept = {name: sorted((folder / "kept").rglob(f"{name}-*/*.block")) for name in ("ais", "parzen")}
    assert all(len(blocks) > 1 for blocks in kept.values())
    untouched = kept["ais"][0].stat().st_mtime_ns
    for blocks in kept.values():
        blocks[1].unlink()
    assert told(folder, *ALL, "--keep", "kept")["estimates"] == alone
    assert kept["ais"][0].stat().st_mtime_ns == untouched
    assert all(blocks[1].exists() for blocks in kept.values())
    assert told(folder, *ALL, "--workers", "2")["estimates"] == alone


def test_an_adversary_is_put_to_the_test_as_it_was_when_the_model_was_published(folder):
    found = told(folder, "avb-model", "--budget", "certified", "--limit", "40")
    data = {each["estimator"]: each["n_data"] for each in found["estimates"]}
    assert data["elbo_corrected"] == 30 and data["ais"] == data["elbo_adversarial"] == 40
    assert {each["estimator"]: each["seconds"] > 0 for each in found["seconds"]} == dict.fromkeys(data, True)
    names = [check["name"] for check in found["adversary"]["checks"]]
    assert names == ["floor_violation", "unverifiable", "log_normaliser", "excess"]
    record = LikelihoodRecord.from_json((folder / "avb-model/likelihood.json").read_bytes())
    assert found["adversary"]["diagnosis"] == asdict(record.diagnosis)
    assert {"test/adversary.unverifiable", "test/adversary.not_a_bound"} <= record.metrics().keys()


def test_a_certified_budget_says_what_passed(folder):
    everything = told(folder, "vae-model", "--budget", "certified", "--limit", "20")
    certificate = everything["certificate"]
    assert certificate["verdict"] in ("PASS", "lower bound only")
    assert "no upper bound holds for real data" in certificate["meaning"]
    assert {"gap", "gap_95", "drift", "starts", "ess"} <= {check["name"] for check in certificate["checks"]}
    kinds = {found["estimator"]: found["kind"] for found in everything["estimates"]}
    assert kinds["ais"] == kinds["elbo"] == "lower_bound"
    assert kinds["elbo_ceiling"] == "upper_bound"
    assert everything["adversary"] is None and "elbo_corrected" not in kinds, "it has no adversary"


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
        (("--estimator", "aiz"), "'aiz' is not one of 'quadrature', 'enumeration'"),
        (("--estimator", "elbo_adversarial"), "adversary"),
        (("--estimator", "quadrature"), "at most 2 latent dimensions"),
        (("--estimator", "enumeration"), "enumeration"),
        (("--budget", "lavish"), "'lavish' is not one of 'quick', 'standard', 'certified'"),
        (("--budget", "certified", "--estimator", "elbo"), "give either"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, arguments, message):
    refused = avb(folder, "evaluate", "vae-model", *arguments)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.replace("│", " ").split())


def test_two_models_are_compared_datum_by_datum(folder):
    done = avb(folder, "compare", "vae-model", "avb-model", "--json")
    assert done.returncode == 0, done.stderr
    compared = answers.told("compare", done.stdout)
    records = [LikelihoodRecord.from_json((folder / f"{m}-model/likelihood.json").read_bytes()) for m in ("vae", "avb")]
    first, second = (record.held_out.per_datum for record in records)
    assert compared["difference"] == pytest.approx((first - second).mean())
    assert compared["stderr"] == pytest.approx((first - second).std(ddof=1) / len(first) ** 0.5)
    assert compared["n_data"] == len(first) == 120
