"""Bad input: one clear message, exit code 2, no traceback, nothing launched."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from rich.console import Console
from typer.core import TyperGroup
from typer.testing import CliRunner

from avb_service import cli, lock, rows, tables
from avb_service.cli import options as cli_options
from avb_service.cli.options import Budget
from avb_service.errors import UserError
from avb_service.tracking import RegisteredVersion
from tests.pictures import write_images

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("AVB_DATA_ROOT", raising=False)


def refused(capsys, monkeypatch, *arguments: str) -> str:
    """Run a command as from the shell, and give its message."""
    monkeypatch.setattr(sys, "argv", ["avb", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "vae_digit"], ["vae_digit: neither a file nor a preset", "vae_digits"]),
        (["train", "vae_digits", "--set", "algorithm.latent_dims=3", "--set", "training.rounds=many"],
         ["2 problems", "did you mean latent_dim?", "training.rounds: given 'many'"]),
        (["train", "vae_digits", "--set", "training.seed", "--set", "algorithm.latent_dim=[", "--set",
          "training.rounds=many"],
         ["3 problems", "training.seed: expected PATH=VALUE", "latent_dim is not valid YAML", "given 'many'"]),
        (["train", "vae_digits", "--set", "algorithm.latent_dim=99999999999"],
         ["algorithm.latent_dim: given 99999999999, expected less than or equal to 65536"]),
        (["train", "vae_digits", "--set", "algorithm.observation=gaussian"],
         ["algorithm.observation: given 'gaussian', expected a section, such as {name: gaussian}"]),
        (["train", "vae_digits", "--set", "algorithm.model=Adam"],
         ["algorithm.model: given 'Adam', expected a section, with keys among steps, lr"]),
        (["train", "vae_digits", "--set", "algorithm.model.options=x"],
         ["algorithm.model.options: given 'x', expected a mapping, such as {key: value}"]),
        (["train", "vae_digits", "--set", "tracking.model=a/b"],
         ["tracking.model: given 'a/b', expected a name, such as avb-digits, with none of /"]),
        (["train", "vae_digits", "--set", "algorithm.model={lr: 1.0e-3, lr: 1.0e-2}"], ["key 'lr' is given twice"]),
        (["train", "vae_digits", "--set", "data.binarisation=none"], ["bernoulli needs binary data"]),
        (["train", "avb_ac_digits", "--set", "algorithm.encoder.name=noise_input"], ["encoder.name", "noise_basis"]),
        (["train", "vae_digits", "--set", "training.logical_workers=3"], ["logical_workers: 3 do not divide"]),
        (["train", "vae_digits", "--set", "scaling.workers=2"], ["do not divide training.logical_workers 1"]),
        (["train", "vae_digits", "--set", "algorithm.model.optimizer=Adamm"], ["optimizer", "Adam"]),
        (["train", "vae_digits", "--set", "algorithm.model.options={momentum: 0.9}"], ["not momentum"]),
        (["train", "vae_digits", "--set", "data.name=mnist", "--set", "data.download=false"],
         ["not found", "--set data.root=FOLDER"]),
        (["tune", "--space", "nowhere.yaml"], ["has no file nowhere.yaml"]),
        (["train", "vae_digits", "--name", "/tmp/outside"], ["--name: given '/tmp/outside'"]),
        (["train", "vae_digits", "--name", ""], ["--name: given ''"]),
        (["sample", "models:/none@champion", "x.gif"], [".png or .npy"]),
        (["evaluate", "models:/none@champion", "--plot", "x.pdf"], ["x.pdf", "ends in .png"]),
        (["evaluate", "models:/none@champion", "--plot", "/dev/null/x.png"], ["cannot write /dev/null/x.png"]),
        (["evaluate", "models:/none@champion", "--figure", "x.pdf"], ["x.pdf", "ends in .png"]),  # as it was called
        (["evaluate", "."], [". has no manifest.json: expected a model folder"]),
        (["pull", ".", "there"], [". has no manifest.json: expected a model folder"]),
        (["sample", "models:/none@champion", "/proc/x/y.png"], ["cannot write /proc/x/y.png"]),
        (["sample", "models:/none@champion", "/proc/y.npy"], ["cannot write /proc/y.npy"]),
        (["plots", "models:/none@champion", "/proc/x"], ["cannot write /proc/x/samples.png"]),
        (["plots", "models:/none@champion", "/etc/passwd"], ["/etc/passwd is no folder"]),
        (["ui", "--port", "99999"], ["--port", "less than or equal to 65535"]),
        (["ui", "--host", "192.0.2.1"], ["cannot listen at 192.0.2.1, port 5000"]),
        (["pull", "models:/none@champion", "there"], ["there is no model models:/none@champion"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input_is_one_clear_message(capsys, monkeypatch, arguments, expected):
    message = refused(capsys, monkeypatch, *arguments)
    assert all(part in " ".join(message.split()) for part in expected), message


def test_a_port_that_is_taken_is_named(capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refused(capsys, monkeypatch, "ui", "--port", port)
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in message


def test_the_server_is_described_for_programs(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(os, "dup2", lambda *ends: None)
    monkeypatch.setattr(os, "execvp", lambda program, arguments: started.append(arguments))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(sys, "argv", ["avb", "ui", "--json", "--port", str(port)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = json.loads(capsys.readouterr().out)
    assert left.value.code == 0 and str(port) in started[0]
    assert told["url"] == f"http://127.0.0.1:{port}" and told["runs"].startswith(f"{told['url']}/#/experiments?")
    assert told["recorded_at"].startswith("sqlite:////")


def commands(group: TyperGroup, *names: str) -> dict[str, set[str]]:
    """The options of every command below a group, by its words."""
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= commands(command, *names, name)
        else:
            found[" ".join([*names, name])] = {option for each in command.params for option in each.opts}
    return found


def parameters(group: TyperGroup, *names: str) -> Iterator[tuple[str, Any]]:
    """Every argument and option of every command below a group, with the command's words."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from parameters(command, *names, name)
        yield from ((" ".join([*names, name]), each) for each in command.params)


def test_every_option_of_every_command_says_what_it_is():
    known = list(parameters(typer.main.get_command(cli.app)))
    assert len(known) > 40
    silent = [f"{command} {each.name}" for command, each in known if each.name != "help" and not each.help]
    assert not silent


def test_estimators_and_budgets_that_the_command_names_are_those_that_there_are():
    from avb_service.likelihood import BUDGETS, ESTIMATORS

    assert cli_options.ESTIMATORS == (*ESTIMATORS.own, "parzen")
    assert get_args(Budget) == tuple(BUDGETS)


def test_an_estimator_that_there_is_none_of_is_refused_with_those_that_there_are(capsys, monkeypatch):
    message = refused(capsys, monkeypatch, "evaluate", "models:/none@champion", "--estimator", "iwea")
    assert "iwea" in message and all(name in message for name in cli_options.ESTIMATORS)
    message = refused(capsys, monkeypatch, "evaluate", "models:/none@champion", "--estimator", "iwae_refined")
    message = " ".join(message.replace("│", " ").split())  # out of its box
    assert "iwae_refined is no more: iwae_mixture has taken its place" in message
    helped = CliRunner().invoke(cli.app, ["evaluate", "--help"]).output
    assert all(name in helped for name in cli_options.ESTIMATORS)


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory) -> dict[str, Path]:
    """A published model of each kind."""
    from avb_service.build import build, load_data
    from avb_service.model import Model
    from avb_service.records import LikelihoodRecord

    found = {}
    for method in ("vae", "gan"):
        config = small(method)
        algorithm = build(config, load_data(config).spec)
        folder = tmp_path_factory.mktemp("models") / method
        found[method] = Model(algorithm, config, 5, "", LikelihoodRecord({}, ())).write(folder)
    return found


@pytest.mark.parametrize(
    ("kind", "options", "shows"), [("vae", [], "draws"), ("vae", ["--means"], "means"), ("gan", [], "draws")]
)
def test_samples_can_be_seen_and_say_what_they_show(folders, tmp_path, kind, options, shows):
    for name in ("sheet.png", "numbers.npy"):
        done = CliRunner().invoke(cli.app, ["sample", str(folders[kind]), name, *options, "--json"])
        assert json.loads(done.stdout)["shows"] == shows
        told = CliRunner().invoke(cli.app, ["sample", str(folders[kind]), name, *options]).stdout
        assert f"64 {'means of p(x|z)' if shows == 'means' else 'draws'} of" in told
    numbers = np.load("numbers.npy")
    assert numbers.shape == (64, 1, 8, 8)
    assert (set(np.unique(numbers)) == {0.0, 1.0}) == (kind == "vae" and shows == "draws")
    with Image.open("sheet.png") as sheet:
        assert min(sheet.size) > 500


def test_means_of_what_a_method_does_not_define_are_refused(folders, capsys, monkeypatch):
    message = refused(capsys, monkeypatch, "sample", str(folders["gan"]), "x.png", "--means")
    assert "gan defines no p(x|z) that means could be of; ask for draws" in message


def test_every_command_prints_json_for_programs():
    options = commands(typer.main.get_command(cli.app))
    assert len(options) > 10 and not [name for name, known in options.items() if "--json" not in known]


def test_a_corrupt_npz_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    message = refused(capsys, monkeypatch, "train", "vae_digits", "--set", "data.name=file", "--set", "data.path=x.npz")
    assert "x.npz" in message and "numpy" in message


def test_an_unreachable_server_is_named(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "no MLflow server answers at http://127.0.0.1:9" in refused(capsys, monkeypatch, "train", "vae_digits")


@pytest.mark.parametrize(
    "uri", ["localhost:5000", "127.0.0.1:5000", "./mlruns", "runs/mlflow.db", "file:///tmp/mlruns"]
)
@pytest.mark.parametrize("command", [["leaderboard"], ["ui"]], ids=lambda words: words[0])
def test_an_address_of_no_kind_is_refused_with_those_that_there_are(capsys, monkeypatch, uri, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refused(capsys, monkeypatch, *command)
    assert f"MLFLOW_TRACKING_URI is {uri}, expected" in message and "sqlite:///runs/mlflow.db" in message
    assert "migrate" not in message


@pytest.mark.parametrize("uri", ["postgresql://127.0.0.1:9/x", "postgresql+psycopg://127.0.0.1:9/x"])
def test_an_unreachable_database_is_named(capsys, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refused(capsys, monkeypatch, "train", "vae_digits")
    assert f"cannot use the database at {uri}" in message and "Connection refused" in message


@pytest.mark.parametrize(
    "uri", ["http://ann:s3cret@mlflow:5000", "https://s3cret@mlflow", "postgresql://ann:s3cret@db/mlflow"]
)
@pytest.mark.parametrize("command", [["leaderboard"], ["train", "vae_digits"], ["ui"]], ids=lambda words: words[0])
def test_a_password_in_an_address_is_refused_and_not_repeated(capsys, monkeypatch, uri, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refused(capsys, monkeypatch, *command)
    assert "s3cret" not in message
    assert "MLFLOW_TRACKING_PASSWORD" in message and ("mlflow" in message or "db" in message)


def test_a_place_that_cannot_be_written_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "runs").write_text("a file where a folder should be")
    assert "cannot write" in refused(capsys, monkeypatch, "train", "vae_digits")


@pytest.mark.parametrize("arguments", [("train", "vae_digits", "--name", "mine"), ("tune", "--space", "mine.yaml")])
def test_what_somebody_else_is_at_work_on_is_refused(capsys, monkeypatch, tmp_path, arguments):
    domain = {"algorithm.latent_dim": {"choice": [2]}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"preset": "vae_digits", "space": domain}))
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with lock.owned(tmp_path / "runs" / ".mine.lock", "mine", print):
        message = refused(capsys, monkeypatch, *arguments)
    assert "mine is in use by" in message and str(os.getpid()) in message


def test_a_search_is_begun_continued_and_branched_from(capsys, monkeypatch, tmp_path):
    """Up to the trials, which are interrupted as they begin; no Ray."""
    from avb_service.distributed import cluster
    from avb_service.tracking.server import connect
    from avb_service.tuning import record, search

    space = {"preset": "vae_digits", "space": {"algorithm.latent_dim": {"choice": [2]}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(space))
    begun: list[record.Search] = []

    def interrupted(started: record.Search, *rest: object) -> None:
        begun.append(started)
        assert (tmp_path / "runs" / f".{started.space.name}.lock").exists()
        raise KeyboardInterrupt

    def tune(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["avb", "tune", "--space", "mine.yaml", *options])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        return f"{left.value.code} {said[re.search('^(search|error)', said, re.MULTILINE).start() :]}"

    monkeypatch.setattr(search, "run_search", interrupted)
    monkeypatch.setattr(cluster, "cluster", lambda note, fits: nullcontext(cluster.Capacity((cluster.Node(4, 0),))))
    monkeypatch.setattr("avb_service.distributed.reclaim.check_dashboard", lambda: None)
    for options in ([], ["--resume"]):
        assert tune(*options).startswith("130 search mine-20")
    monkeypatch.setattr(record, "code_version", lambda packages: "0.2.0+later")
    refused = tune("--resume")
    assert (
        refused.startswith("2 error: --resume: the space, or what the code computes, has changed")
        and "0.2.0+later" in refused
    )
    assert tune("--branch", "other").startswith("130 search other-20")
    assert tune("--branch", "other", "--resume").startswith("130 search other-20")
    first, again, other, same = begun
    assert same.folder == other.folder
    assert first.run.run_id == again.run.run_id and first.folder == again.folder
    tags = connect(other.tracking_uri).get_run(other.run.run_id).data.tags
    assert tags["avb.branched_from"] == first.folder.name
    assert not list((tmp_path / "runs").glob(".*.lock"))


def test_the_traceback_is_there_for_those_who_ask_and_changes_nothing_else(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["avb", "--traceback", "train", "vae_digit"])
    monkeypatch.setenv("AVB_TRACEBACK", "")
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert "Traceback" in told and "error: vae_digit: neither a file nor a preset" in told


def test_settings_are_explained_under_the_paths_that_set_takes():
    listed = CliRunner().invoke(cli.app, ["settings", "avb_ac_digits", "--set", "algorithm.jitter=0.5", "--json"])
    found = {row["setting"]: row for row in json.loads(listed.stdout)}
    assert found["algorithm.jitter"]["value"] == 0.5 and "Cholesky" in found["algorithm.jitter"]["about"]
    assert found["algorithm.kl_warmup"]["about"].startswith("rounds over which the weight of the KL rises")
    assert all(row["about"] for row in found.values())


def test_settings_are_shown_as_they_are_written(monkeypatch):
    values = {"trunk": {"hidden": [64, 64]}, "trunk.hidden": [64, 64], "options": {"fused": True}, "clip_norm": None}
    listed = [{"setting": path, "value": value, "about": "of [bold] letters"} for path, value in values.items()]
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    tables.settings(listed, "Settings")
    lines = [line.split() for line in tables.out.file.getvalue().splitlines()[4:8]]
    about = ["of", "[bold]", "letters"]
    assert lines == [
        ["trunk", *about], ["trunk.hidden", "[64,", "64]", *about], ["options", '{"fused":', "true}", *about],
        ["clip_norm", "null", *about],
    ]  # fmt: skip


def test_every_method_has_a_preset():
    listed = json.loads(CliRunner().invoke(cli.app, ["methods", "--json"]).stdout)
    assert all(row["presets"] for row in listed)


@pytest.mark.parametrize(("address", "mode"), [("local", "1"), ("auto", "0")])
def test_a_cluster_of_our_own_asks_for_a_token_and_another_is_asked_as_its_environment_says(address, mode):
    code = (
        "import typer\nfrom avb_service.cli import guarded\napp = typer.Typer()\n@app.command()\ndef tell():\n"
        "    from ray._raylet import get_authentication_mode\n    print(int(get_authentication_mode()))\nguarded(app)"
    )
    environment = {**os.environ, "RAY_ADDRESS": address}
    environment.pop("RAY_AUTH_MODE", None)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.strip() == mode


def test_help_imports_nothing_heavy():
    heavy = {"torch", "ray", "mlflow", "pydantic", "numpy"}
    code = f"import sys, avb_service.cli; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", ["train", "tune"])
def test_more_workers_than_this_machine_has_are_refused_before_ray_is_started(command, monkeypatch, capsys, tmp_path):
    many = ["training.batch_size=64", "training.logical_workers=64", "scaling.workers=64"]
    space = {
        "preset": "vae_digits",
        "space": {"algorithm.latent_dim": {"choice": [2]}},
        "set": dict(each.split("=") for each in many),
    }
    (tmp_path / "space.yaml").write_text(json.dumps(space).replace('"64"', "64"))
    arguments = {
        "train": ["vae_digits", *(word for each in many for word in ("--set", each))],
        "tune": ["--space", "space.yaml"],
    }
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = refused(capsys, monkeypatch, command, *arguments[command])
    assert "64 workers of 1 CPUs and 0 GPUs do not fit; the cluster has 1 node" in message


@pytest.mark.parametrize("command", ["train", "tune"])
def test_what_was_read_and_left_out_is_said_once_before_anything_starts(capsys, monkeypatch, tmp_path, command):
    def started(*arguments):
        raise UserError("a cluster was started")

    monkeypatch.setattr("avb_service.distributed.cluster.cluster", started)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "mine", [f"{i}.png" for i in range(20)], size=(8, 8))
    (tmp_path / "mine" / "README.txt").write_text("nothing to see")
    data = {"data.name": "file", "data.path": "mine", "data.validation": 4, "data.test": 4}
    if command == "train":
        changes = [part for path, value in data.items() for part in ("--set", f"{path}={value}")]
        message = refused(capsys, monkeypatch, "train", "vae_digits", *changes)
    else:
        space = yaml.safe_load((ROOT / "tune_spaces" / "digits_smoke.yaml").read_text())
        (tmp_path / "space.yaml").write_text(yaml.safe_dump({**space, "set": {**space.get("set", {}), **data}}))
        message = refused(capsys, monkeypatch, "tune", "--space", "space.yaml")
    read, started = message.index("mine: 20 grey images of 8x8"), message.index("a cluster was started")
    assert read < message.index("left out: 1 of other kinds (README.txt)") < started
    assert message.count("20 grey images") == 1


@pytest.mark.parametrize("trunk", ["mlp", "conv"])
@pytest.mark.parametrize("shape", [(28, 20), (7, 9, 5)], ids=["grey", "5 channels"])
def test_users_arrays_train_without_a_cluster(tmp_path, shape, trunk):
    from avb_service.figures.canvas import side_by_side
    from avb_service.fitting import Fit
    from avb_service.report import plots
    from avb_service.settings import read_config

    pixels = np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x=pixels)
    overrides = [
        "data.name=file",
        f"data.path={tmp_path / 'mine.npz'}",
        "data.validation=10",
        "data.test=10",
        "training.rounds=3",
        "training.report_every=3",
        "likelihood.validation_data=10",
        f"algorithm.encoder={{name: {trunk}}}",
        f"algorithm.decoder={{name: {trunk}}}",
    ]
    experiment = Fit(read_config("vae_digits", overrides), tmp_path / "checkpoints")
    experiment.run()
    drawn = experiment.engine.algorithm.sample(2)
    height, width, channels = (*shape, 1)[:3]
    assert drawn.shape == (2, channels, height, width)
    sheet = side_by_side(drawn)
    assert sheet.shape == (2, 1, height, channels * width)
    assert torch.equal(sheet[:, 0, :, -width:], drawn[:, -1])
    assert {"samples", "reconstructions", "latents"} <= plots(experiment.model).keys()


@pytest.mark.parametrize(("width", "absent"), [(80, {"gap", "params", "IWAE"}), (91, {"gap", "params"}), (132, set())])
def test_the_leaderboard_is_legible_on_any_terminal(monkeypatch, width, absent):
    metrics = {
        "test/log_likelihood": -22.0666,
        "test/log_likelihood.stderr": 0.2645,
        "certificate/gap": 0.0251,
        "test/log_likelihood.iwae_refined_256.lower_bound": -22.21,
        "test/log_likelihood.iwae_256.lower_bound": -23.5,
        "test/log_likelihood.elbo_adversarial.estimate": -122.5,
        "certificate/simulated.upper": -124.5,
    }
    tags = {
        "method": "avb_ac",
        "latent_dim": "16",
        "data": "digits",
        "certificate": "PASS",
        "parameters": "88000",
        "train_seconds": "194",
    }
    version = RegisteredVersion("digits-smoke", 12, ("champion",), None, 0.0, tags, metrics)
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=width, color_system=None))
    tables.leaderboard(rows.leaderboard([version], [version.uri]))
    heading, _, row = tables.out.file.getvalue().splitlines()[2:5]
    assert (
        row.split()[:7]
        == ["digits-smoke/12", "*", "champion", "avb_ac", *(["digits"] if not absent else []), "16", "-22.07", "±"][:7]
    )
    assert "…" not in row + heading
    assert {name for name in ("gap", "params", "certificate", "IWAE") if name not in heading} == absent
    assert ("-22.21" in row) == ("IWAE" not in absent) and "-23.50" not in row


def test_an_estimate_that_is_too_low_is_marked_and_the_mark_explained(monkeypatch):
    low = RegisteredVersion(
        "low",
        3,
        (),
        None,
        0.0,
        {"method": "vae", "data": "digits", "shortfall_by": "iwae_256"},
        {
            "test/log_likelihood": -43.6,
            "test/log_likelihood.shortfall": 15.62,
            "test/log_likelihood.iwae_mixture_512.lower_bound": -27.97,
        },
    )
    sound = RegisteredVersion("sound", 1, (), None, 0.0, {"method": "vae"}, {"test/log_likelihood": -27.98})
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    tables.leaderboard(rows.leaderboard([low, sound]))
    told = tables.out.file.getvalue()
    assert "-43.60 !" in told and "-27.97" in told and "-27.98 !" not in told
    assert "!: models:/low/3 has an estimate that is too low, by 15.62 at least, as iwae_256 shows." in told


def test_models_that_were_scored_on_other_data_stand_apart(monkeypatch):
    versions = [
        RegisteredVersion(name, 1, (), None, 0.0, {"method": "vae", "data": "digits", "scored_on": on},
                          {"test/log_likelihood": value})
        for name, on, value in (("a", "one", -30.0), ("b", "another", -20.0), ("c", "one", -10.0))
    ]  # fmt: skip
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    tables.leaderboard(rows.leaderboard(versions))
    lines = tables.out.file.getvalue().splitlines()
    names = [line.split()[0][0] if line.strip() else "" for line in lines[4:8]]
    assert names == ["b", "", "c", "a"], lines
    assert any("only such numbers can be compared" in line for line in lines)


def test_both_sides_of_a_bracket_are_shown_and_whose_data_they_are_of(monkeypatch):
    from torch import tensor

    from avb_service.records import Estimate, Key, LikelihoodRecord

    columns = {"nats": tensor([-24.0, -26.0]), "upper": tensor([-23.5, -25.0])}
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    record = LikelihoodRecord({}, (Estimate.of(Key("bdmc"), "lower_bound", columns, "simulated"),))
    tables.estimates(record, "a model")
    lower, upper = (line for line in tables.out.file.getvalue().splitlines() if "bdmc" in line)
    assert "-25.000" in lower and "lower bound on data that the model drew itself" in lower
    assert "-24.250" in upper and "upper bound on data that the model drew itself" in upper


def test_what_speaks_against_an_adversary_is_shown_below_its_numbers(monkeypatch):
    from torch import arange

    from avb_service.records import Diagnosis, Estimate, Key, LikelihoodRecord

    nats = arange(9.0) - 30
    found = (
        Estimate.of(Key("ais"), "lower_bound", {"nats": nats}),
        Estimate.of(Key("elbo_adversarial"), "estimate", {"nats": nats - 1}),
    )
    record = LikelihoodRecord({}, found, None, Diagnosis(10.0, 12.5, 2.5, 0.1, 0.0, 0.0, 0.05))
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    tables.estimates(record, "a model")
    lines = tables.out.file.getvalue().splitlines()
    assert any("What speaks against the adversary: its ELBO is not to be believed" in line for line in lines)
    judged = {line.split("│")[1].strip(): line.split("│")[4].strip() for line in lines if line.count("│") == 5}
    assert judged["KL below a Gaussian's with q's moments"] == "NO"
    assert judged["ELBO above ais"] == "yes"
    assert "do not acquit" in lines[-1]


def test_parzen_windows_stand_beside_those_of_the_training_data_and_in_a_column_of_their_own(monkeypatch):
    tags = {"method": "gan", "latent_dim": "16", "data": "digits", "certificate": "none"}
    metrics = {"test/parzen": 301.25, "test/parzen_training": 415.5}
    versions = [
        RegisteredVersion("gan", 1, (), None, 0.0, tags, metrics),
        RegisteredVersion("worse", 1, (), None, 0.0, tags, {"test/parzen": 12.0}),
        RegisteredVersion("best", 1, (), None, 0.0, tags, {"test/parzen": 400.0}),
        RegisteredVersion("vae", 1, (), None, 0.0, {"method": "vae"}, {"test/log_likelihood": -22.0}),
    ]
    monkeypatch.setattr(tables, "out", Console(file=io.StringIO(), width=120, color_system=None))
    tables.leaderboard(rows.leaderboard(versions))
    shown = tables.out.file.getvalue()
    assert "301.2 (415.5)" in shown and "no log p(x)" in shown
    ranked = [shown.index(f"{name}/1") for name in ("vae", "best", "gan", "worse")]
    assert ranked == sorted(ranked), "what has no likelihood is ranked below what has one, and among itself by Parzen"
    assert "log p(x) ~" not in shown, "nobody has an adversary here"
