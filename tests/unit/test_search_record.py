"""What a search may be continued with, and what has to be a new one."""

import pytest

from avb_service.errors import UserError
from avb_service.tuning import record
from avb_service.tuning.space import SpaceConfig

SPACE = {
    "name": "digits",
    "preset": "vae_digits",
    "trials": 2,
    "space": {"algorithm.latent_dim": {"choice": [2, 4]}},
}


def space(**changes) -> SpaceConfig:
    return SpaceConfig.parse({**SPACE, **changes})


def test_the_same_space_and_code_continue_the_newest_search(tmp_path, monkeypatch):
    folder = record.new_folder(space(), tmp_path)
    assert record.folder_to_resume(space(), tmp_path) == folder


def test_a_changed_space_is_refused_by_its_lines_and_branching_is_named(tmp_path):
    record.new_folder(space(), tmp_path)
    with pytest.raises(UserError, match=r"trials: 2 -> 4(.|\n)*--branch NAME") as told:
        record.folder_to_resume(space(trials=4), tmp_path)
    assert "code" not in str(told.value).split("differing:")[1].split("Give")[0]


def test_changed_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "code_version", lambda packages: "0.1.0+before")
    record.new_folder(space(), tmp_path)
    monkeypatch.setattr(record, "code_version", lambda packages: "0.1.0+after")
    with pytest.raises(UserError, match=r"code: 0.1.0\+before -> 0.1.0\+after"):
        record.folder_to_resume(space(), tmp_path)


def test_code_that_computes_the_same_under_another_version_continues_it(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "code_version", lambda packages: "0.1.0+n0123456789ab")
    folder = record.new_folder(space(), tmp_path)
    monkeypatch.setattr(record, "code_version", lambda packages: "0.2.0+n0123456789ab")
    assert record.folder_to_resume(space(), tmp_path) == folder


def test_a_search_of_a_version_that_counted_bytes_is_continued_and_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(record, "code_version", lambda packages: "0.1.0+0123456789ab")
    folder = record.new_folder(space(), tmp_path)
    monkeypatch.setattr(record, "code_version", lambda packages: "0.2.0+n0123456789ab")
    assert record.folder_to_resume(space(), tmp_path) == folder
    assert "begun by an earlier version (0.1.0+0123456789ab)" in caplog.text and "--branch NAME" in caplog.text


def test_a_branch_is_the_space_under_a_name_of_its_own(tmp_path):
    origin = record.new_folder(space(), tmp_path)
    changed = space(trials=4)
    assert record.newest_folder(changed, tmp_path) == origin
    branched = record.branch(changed, "digits-more")
    assert branched.tree() == {**changed.tree(), "name": "digits-more"}
    folder = record.new_folder(branched, tmp_path)
    assert record.folder_to_resume(branched, tmp_path) == folder
    for name in ("digits", "../elsewhere", ""):
        with pytest.raises(UserError, match="--branch"):
            record.branch(changed, name)


def test_there_has_to_be_something_to_continue(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} holds no search 'digits'"):
        record.folder_to_resume(space(), tmp_path)
