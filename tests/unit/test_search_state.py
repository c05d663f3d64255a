"""What Ray Tune leaves of a search that was killed: gone on from where it is whole, and of one moment."""

import json
from types import SimpleNamespace

import pytest
from ray.tune.search import BasicVariantGenerator

from avb_service.tuning.search import restorable


@pytest.fixture
def stage(tmp_path):
    """A folder in which all that Tune writes says that three trials have begun."""
    (tmp_path / "tuner.pkl").touch()
    (tmp_path / "experiment_state-2026-11-21_10-00-00.json").write_text(json.dumps({"trial_data": [["", ""]] * 3}))
    remember(tmp_path, 3)
    return tmp_path


def remember(folder, trials):
    generator = BasicVariantGenerator()
    generator.set_state({"_iterators": []})
    generator._iterators = [SimpleNamespace(lazy_eval=False, counter=trials)]
    generator.save_to_dir(str(folder), "2026-11-21_10-00-00")


def test_a_whole_state_is_gone_on_from(stage):
    assert restorable(stage)


def test_a_folder_without_a_search_is_not(tmp_path):
    assert not restorable(tmp_path)


@pytest.mark.parametrize("begun", [2, 4])
def test_parts_of_different_moments_are_not(stage, begun):
    remember(stage, begun)
    assert not restorable(stage)


@pytest.mark.parametrize("name", ["experiment_state-*.json", "basic-variant-state-*.json"])
def test_a_part_that_is_torn_or_missing_is_noticed(stage, name):
    (part,) = stage.glob(name)
    whole = part.read_bytes()
    for size in (len(whole) // 2, 0):
        part.write_bytes(whole[:size])
        assert not restorable(stage)
    part.unlink()
    assert not restorable(stage)


def test_a_state_without_trials_is_not(stage):
    (stage / "experiment_state-2026-11-21_10-00-00.json").write_text(json.dumps({"trial_data": []}))
    remember(stage, 0)
    assert not restorable(stage)
