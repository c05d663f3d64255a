"""What the release before has left on disk goes on to be used: models, runs, a search, and the registry of them.

Asked as a user asks: by commands, `avb_service.load`, and folders. What the release itself said is beside its folders.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import avb_service
from avb_service import cli
from tests.answers import told
from tests.fixtures.make import ARRAY, ASKED, BEST, MODELS, OTHER, RELEASE, RUNS, SAID, SPACE, unpacked

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
CLOSE = {"rel": 1e-3, "abs": 1e-4}  # processors round differently
CHAMPIONS = {MODELS["vae"], MODELS["searched"]}
HOW_LONG = {"seconds", "train_seconds"}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder as it was when the release had been used in it."""
    monkeypatch.delenv("AVB_DATA_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unpacked(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(*words: str) -> Any:  # noqa: ANN401  any JSON value
    """What a command tells."""
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return told(words[0], done.stdout)


def said(name: str) -> Any:  # noqa: ANN401  any JSON value
    """What the release told."""
    return json.loads((RELEASE / SAID / f"{name}.json").read_text())


def same(now: Any, before: Any, where: str = "") -> None:  # noqa: ANN401  any JSON value
    """All that was told is told again; there may be more."""
    if isinstance(before, dict):
        for key in before.keys() - HOW_LONG:
            same(now[key], before[key], f"{where}.{key}")
    elif isinstance(before, list):
        assert len(now) == len(before), where
        for index, (one, other) in enumerate(zip(now, before, strict=True)):
            same(one, other, f"{where}[{index}]")
    elif isinstance(before, float):
        assert now == pytest.approx(before, **CLOSE), where
    else:
        assert now == before, where


def champions() -> set[str]:
    return {row["model"] for row in answer("leaderboard") if "champion" in row["aliases"]}


def search(place: Path) -> Path:
    (found,) = (place / RUNS).glob("search-*")
    return found


def interrupted(run: Path) -> Path:
    """A run or trial as if it had been killed after its last but one report; gives the checkpoint that it has lost."""
    newest = max((run / "checkpoints").glob("round-*"))
    shutil.rmtree(newest)
    (run / "outcome.json").unlink(missing_ok=True)
    return newest


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(checkpoint / "tensors.safetensors")


@pytest.mark.parametrize("name", ASKED)
def test_commands_say_of_its_models_what_it_said(place, name):
    moved = ["--data-root", "."] if name.startswith("evaluate") else []  # registered models keep the path that was
    same(answer(*ASKED[name], *moved), said(name))


@pytest.mark.parametrize("name", MODELS)
def test_its_models_are_pulled_loaded_and_sampled(place, name):
    expected = np.load(RELEASE / SAID / f"{name}.npy")
    folder = answer("pull", MODELS[name], str(place / "pulled"))["folder"]
    for model in (avb_service.load(MODELS[name]), avb_service.load(folder)):
        assert model.sample(4, means=True).numpy() == pytest.approx(expected, **CLOSE)
        assert model.log_likelihood(model.sample(4))
    answer("sample", folder, "x.png", "-n", "4")
    assert answer("evaluate", folder, "--data-root", ".")["estimates"]


def test_what_it_published_is_beside_its_runs_too(place):
    for path in (place / RUNS / BEST / "model", *search(place).glob("trials/*/model")):
        assert avb_service.load(path).likelihood is not None
        assert answer("evaluate", str(path))["other_data"] is None


def test_a_model_is_scored_where_its_data_have_moved(place):
    (place / "moved").mkdir()
    shutil.move(place / ARRAY, place / "moved" / ARRAY)
    found = answer("evaluate", MODELS["vae"], "--data-root", str(place / "moved"))
    assert found["other_data"] is None
    same(found["estimates"], said("evaluate-vae")["estimates"])


def test_its_champions_stay_until_a_better_model_is_published(place, no_ray):
    trained = answer("train", f"{OTHER}.yaml", "--name", "worse")
    assert (trained["model"], trained["alias"]) == ("models:/of-array/3", "challenger")
    assert champions() == CHAMPIONS
    assert answer("compare", trained["model"], MODELS["vae"])["better"] is False
    for model in (trained["model"], MODELS["vae"]):
        answer("promote", model, "--override", "for a test")
        assert champions() == {model, MODELS["searched"]}


@pytest.mark.parametrize("name", [BEST, OTHER])
def test_its_run_goes_on_where_it_was_interrupted_and_ends_as_it_would_have(place, no_ray, name):
    lost = interrupted(place / RUNS / name)
    before = weights(RELEASE / lost.relative_to(place))
    published = answer("train", f"{name}.yaml", "--name", name)
    assert published["model"].startswith("models:/of-array/")
    after = weights(lost)
    assert after.keys() == before.keys()
    for key, expected in before.items():
        assert after[key] == pytest.approx(expected, rel=1e-2, abs=1e-3), key
    assert champions() == CHAMPIONS


def test_its_run_is_not_continued_with_other_settings(place, no_ray):
    done = CliRunner().invoke(cli.app, ["train", f"{BEST}.yaml", "--name", BEST, "--set", "training.seed=1"])
    assert done.exit_code != 0 and "training.seed: 0 -> 1" in str(done.exception)


def test_its_search_is_resumed(place, no_ray, monkeypatch, caplog, fit_trials: Callable):
    folder = search(place)
    lost = interrupted(sorted(folder.glob("trials/*"))[-1])
    monkeypatch.setattr("avb_service.tuning.search.run_search", fit_trials)
    board = answer("tune", "--space", SPACE, "--resume")
    assert lost.is_dir() and champions() == CHAMPIONS
    assert [row["model"] for row in board if row["new"]] == [MODELS["searched"]]
    assert f"{folder.name} was begun by an earlier version" in caplog.text
    assert [path.name for path in (place / RUNS).glob("search-*")] == [folder.name]


def test_its_search_is_not_resumed_with_another_space(place, no_ray):
    space = yaml.safe_load((place / SPACE).read_text())
    (place / SPACE).write_text(yaml.safe_dump({**space, "trials": 4}))
    done = CliRunner().invoke(cli.app, ["tune", "--space", SPACE, "--resume"])
    assert done.exit_code != 0 and "trials: 2 -> 4" in str(done.exception)
