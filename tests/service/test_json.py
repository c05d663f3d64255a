"""Every command tells programs what the schema in the docs says, and nothing else; on models of every kind."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import avb_service
from avb_service import cli, rows
from avb_service.cli import host
from avb_service.distributed import check
from avb_service.fitting import Fit
from avb_service.records import Certificate, Check, Diagnosis, Estimate, Key, LikelihoodRecord
from avb_service.report import assess
from avb_service.tracking import RegisteredVersion, Run, leaderboard
from avb_service.tracking.publish import Published, publish
from avb_service.tuning import concluding, search
from tests.answers import SCHEMA, told

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
ANNEALED = {
    "likelihood.pilot": {"temperatures": 5, "chains": 4}, "likelihood.ais": {"temperatures": 4, "chains": 4},
    "likelihood.ais_prior": {"temperatures": 4, "chains": 4}, "likelihood.certificate": {"real": 4},
    "likelihood.corrected": {"rounds": 3, "moment_draws": 32, "elbo_draws": 4}, "likelihood.adversary_data": 8,
    "likelihood.parzen_samples": 50,
}  # fmt: skip
FACTS = {"hostname": "one", "resolves": "10.0.0.1", "python": [3, 11, 7], "venv": True, "lacks": [], "storage": "",
         "ray": "", "open": False, "cpus": 2, "gpus": 0, "versions": {"ray": "2.60.0"}}  # fmt: skip
CLUSTER = """{"cluster_name": "avb", "provider": {"type": "local", "head_ip": "one", "worker_ips": ["two"]},
"auth": {"ssh_user": "ann", "ssh_private_key": "key"}, "setup_commands": ["bash deploy/install.sh /mnt/avb"]}"""


RELEASE = Path(__file__).parents[1] / "fixtures" / "release" / "runs"


@pytest.fixture(scope="module")
def models(small, tmp_path_factory) -> str:
    """A registry of a VAE (two versions), an AVB, a GAN, and a Bayesian model that has a single datum."""
    place = tmp_path_factory.mktemp("models")
    uri = f"sqlite:///{place}/mlflow.db"
    for number, method in enumerate(("vae", "vae", "avb", "gan", "avb_joint")):
        name = method.replace("_", "-")
        experiment = Fit(small(method, {"tracking.model": name, **ANNEALED}), place / f"{number}")
        experiment.run()
        run = Run.start("models", f"{method}-{number}", experiment.config.tree(), uri=uri)
        publish(replace(experiment.model, likelihood=assess(experiment.model)), run, place / f"{number}-model")
    return uri


@pytest.fixture(autouse=True)
def here(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models)


def answer(*words: str):
    """What a command tells."""
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    command = " ".join(words[:2]) if words[0] == "cluster" else words[0]
    return told(command, done.stdout)


def names(group: TyperGroup, *words: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from names(command, *words, name)
        else:
            yield " ".join([*words, name])


def objects(node: object) -> Iterator[dict]:
    """Every schema of an object that the schema holds."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for below in node.values():
            yield from objects(below)
    elif isinstance(node, list):
        for below in node:
            yield from objects(below)


def test_the_schema_has_every_command_and_explains_every_key():
    assert SCHEMA["properties"].keys() == set(names(typer.main.get_command(cli.app)))
    assert all("description" in each for each in SCHEMA["properties"].values())
    described = SCHEMA["$defs"]
    for each in [found for found in objects(SCHEMA) if found is not SCHEMA]:
        if properties := each.get("properties"):
            assert each["additionalProperties"] is False and set(each["required"]) == properties.keys()
            assert not [key for key in properties if not re.fullmatch("[a-z][a-z0-9_]*", key)]
            for key, value in properties.items():
                reference = described.get(value.get("$ref", "").rpartition("/")[2], {})
                assert "description" in value or "description" in reference, key
        else:
            assert each["propertyNames"], "keys that depend on something are words too"


def test_the_page_names_every_command():
    page = (Path(cli.__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    assert all(f"`{command}`" in page for command in SCHEMA["properties"])


@pytest.mark.parametrize("words", [("methods",), ("datasets",), ("settings", "avb_ac_digits")], ids=lambda w: w[0])
def test_lists(words):
    assert answer(*words)


def test_the_leaderboard_has_numbers_and_null():
    board = answer("leaderboard")
    assert {row["method"] for row in board} == {"vae", "avb", "gan", "avb_joint"}
    of = {row["name"]: row for row in board}
    assert of["vae"]["latent_dim"] == 8 and of["vae"]["parameters"] > 1000 and of["gan"]["log_likelihood"] is None
    assert of["avb-joint"]["log_likelihood"] is not None and of["avb-joint"]["log_likelihood_stderr"] is None
    assert not any(row["new"] or row["best_of_new"] for row in board)


def test_a_model_of_another_program_is_a_row_of_nulls():
    stranger = RegisteredVersion("theirs", 1, (), None, 0.0, {"latent_dim": "many", "parameters": ""}, {})
    (row,) = told("leaderboard", rows.as_json(rows.leaderboard([stranger])))
    unknown = {key for key, value in row.items() if value is None}
    assert {"method", "data", "latent_dim", "log_likelihood", "certificate", "parameters", "train_seconds"} <= unknown


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vae", ["--budget", "certified"]), ("avb", ["--budget", "certified"]), ("vae", ["--estimator", "parzen"]),
        ("gan", ["--noise", "0.1", "--estimator", "ais"]), ("gan", ["--estimator", "parzen"]),
        ("avb_joint", ["--budget", "standard"]), ("vae", ["--estimator", "bdmc", "--estimator", "elbo"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_evaluations(model, options):
    found = answer("evaluate", f"models:/{model.replace('_', '-')}/1", *options)
    assert found["estimates"] and all(isinstance(each["value"], float) for each in found["estimates"])
    assert [each["estimator"] for each in found["seconds"]] == [each["estimator"] for each in found["estimates"]]
    assert (found["certificate"] is not None) == ("certified" in options)
    assert (found["adversary"] is not None) == model.startswith("avb")
    assert found["other_data"] is None
    if model == "avb_joint":
        assert {each["stderr"] for each in found["estimates"]} == {None}, "a single datum has no standard error"


def test_an_evaluation_says_whose_estimate_is_the_models_and_whether_it_is_too_low():
    def of(key: Key, nats: float) -> Estimate:
        return Estimate.of(key, "lower_bound", {"nats": torch.full((9,), nats), "variance": torch.zeros(9)})

    sound, low = (LikelihoodRecord({}, (of(Key("ais"), -3.0), of(Key("iwae", 256), nats))) for nats in (-3.1, -1.0))
    found = [told("evaluate", rows.as_json(rows.evaluation(each, "m", "digits", 9))) for each in (sound, low)]
    assert [each["figure"]["estimator"] for each in found] == ["ais", "ais"] and found[0]["shortfall"] is None
    assert found[1]["shortfall"]["estimator"] == "iwae_256" and found[1]["shortfall"]["difference"] == 2.0
    nothing = told("evaluate", rows.as_json(rows.evaluation(LikelihoodRecord({}, ()), "m", "digits", 9, "others")))
    assert nothing["figure"] is None and nothing["other_data"] == "others"


def test_what_is_not_finite_is_null():
    nats = torch.tensor([-math.inf, -1.0])
    found = Estimate.of(Key("ais"), "lower_bound", {"nats": nats, "ess": nats})
    diagnosis = Diagnosis(*[math.nan] * 7)
    made = Certificate((Check("gap", math.nan, "<=", 0.2, "gap"),), -math.inf, math.inf)
    row = rows.evaluation(LikelihoodRecord({}, (found,), made, diagnosis), "m", "digits", 2)
    found = told("evaluate", rows.as_json(row))
    assert found["estimates"][0]["value"] is None and found["estimates"][0]["diagnostics"] == {"ess": None}
    assert found["certificate"]["simulated_upper"] is None and not found["certificate"]["passed"]
    assert found["certificate"]["checks"][0]["value"] is None


def test_models_are_compared_promoted_pulled_sampled_and_drawn(models):
    compared = answer("compare", "models:/vae/1", "models:/vae/2")
    assert compared["difference"] == 0 and compared["better"] is False and compared["n_data"] == 8
    assert answer("promote", "models:/vae/2", "--override", "it is newer")["model"] == "models:/vae/2"
    assert answer("leaderboard") and [row.aliases for row in leaderboard(models) if row.uri == "models:/vae/2"][0]
    assert Path(answer("pull", "models:/vae@champion", "champion")["folder"]).is_dir()
    for file in ("x.png", "x.npy"):
        drawn = answer("sample", "champion", file, "-n", "3")
        assert drawn["shape"] == [3, 1, 8, 8] and Path(drawn["file"]).is_file()
    for command in ("plots", "figures"):  # the second as in earlier releases
        drawn = answer(command, "champion", f"drawn-{command}")
        assert {"samples", "latents"} <= {each["figure"] for each in drawn}
        assert all(Path(each["file"]).is_file() for each in drawn)


def test_fetching_a_model_leaves_no_bars_behind(models, capfd):
    avb_service.load("models:/vae/1")
    assert "Downloading" not in capfd.readouterr().err


def test_a_store_is_saved_and_brought_back(monkeypatch, tmp_path):
    saved = answer("backup", "saved")
    assert saved["files"] > 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    assert answer("restore", "saved")["place"].endswith("elsewhere/mlflow.db")


def test_the_server(monkeypatch):
    monkeypatch.setattr(host.os, "environ", host.os.environ.copy())
    monkeypatch.setattr(host.os, "dup2", lambda *ends: None)
    monkeypatch.setattr(host.os, "execvp", lambda program, arguments: None)
    monkeypatch.setattr("avb_service.tracking.server.check_port", lambda host, port: None)
    assert answer("ui", "--port", "5011")["url"] == "http://127.0.0.1:5011"


@pytest.mark.parametrize("members", [None, {"10.0.0.1": [2, 0]}])
def test_hosts(monkeypatch, members):
    Path("cluster.yaml").write_text(CLUSTER)
    Path("key").touch()
    hosts = {"one": FACTS, "two": {**FACTS, "hostname": "two", "resolves": ""}}
    monkeypatch.setattr(check, "check", lambda file: check.Report(hosts, members, []))
    found = answer("cluster", "check", "cluster.yaml")
    assert found["up"] == (members is not None) and found["hosts"][0]["python"] == "3.11.7"
    assert [host["ray_cpus"] for host in found["hosts"]] == [members and 2, None]
    assert (found["hosts"][1]["ray"], found["hosts"][1]["torch"]) == ("2.60.0", None)


def test_a_search_is_looked_at():
    assert len(answer("search", "search", "--storage", str(RELEASE))["trials"]) == 2


def test_a_plan(small):
    Path("mine.yaml").write_text(small("vae").to_yaml())
    planned = answer("plan", "mine.yaml", "--workers", "2")
    assert [each["workers"] for each in planned["workers"]] == [1, 2] and planned["averaged_bytes"] > 0


def test_a_run_and_its_model(no_ray, small):
    Path("mine.yaml").write_text(small("vae", {"tracking.model": "trained"}).to_yaml())
    trained = answer("train", "mine.yaml", "--name", "mine")
    assert (trained["run"], trained["model"], trained["alias"]) == ("mine", "models:/trained/1", "challenger")
    assert {"test/log_likelihood", "test/log_likelihood.elbo.lower_bound"} <= {m["name"] for m in trained["metrics"]}


def test_a_search_tells_which_models_are_its_own(no_ray, monkeypatch):
    space = {"preset": "vae_digits", "space": {"algorithm.latent_dim": {"choice": [2]}}}
    Path("space.yaml").write_text(json.dumps(space))
    found = [Published(f"models:/vae/{version}", alias, "", {}) for version, alias in ((1, "champion"), (2, None))]
    monkeypatch.setattr(search, "run_search", lambda *given: None)
    monkeypatch.setattr(concluding, "conclude", lambda *given, **options: found)
    board = answer("tune", "--space", "space.yaml")
    assert {row["model"] for row in board if row["new"]} == {"models:/vae/1", "models:/vae/2"}
    assert [row["model"] for row in board if row["best_of_new"]] == ["models:/vae/1"]
