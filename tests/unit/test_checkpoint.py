"""Checkpoints and model folders: whole or absent, verified, and bit-equal."""

import errno
import itertools
import json
import logging
import math
import os
import random
import resource
import shutil
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avb_service import storage
from avb_service.checkpoint import CheckpointStore
from avb_service.distributed import train
from avb_service.errors import DataError, UserError
from avb_service.fitting import Fit
from avb_service.folder import ModelFolder
from avb_service.manifest import read_folder, read_manifest
from avb_service.storage import write_folder

CONFIG = {"algorithm": {"name": "avb", "lr": 1e-5}, "seeds": [1, 2]}


def state(value: float = 1.0) -> dict:
    return {"model": {"layer.weight": torch.full((2, 3), value)}, "round": 5, "lr": 0.1}


def save(store: CheckpointStore, round_: int, **metrics: float) -> Path:
    return store.save(round_, state(round_), metrics, CONFIG)


def rounds(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name[-8:]) for path in store.folder.iterdir())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@contextmanager
def files_at_most(size: int):
    """A disk that is full after `size` bytes, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "bfloat16": base.bfloat16(),
        "bool": base > 0,
        "int64": torch.tensor([2**62]),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(base),
        "tied": base,
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
        "uint8": torch.arange(5, dtype=torch.uint8),
    }
    kept = {"tensors": tensors, "a/b~c.d": {"": [1, [None, True], {"x": "ü"}, base[0]]}, "none": None, "empty": {}}
    path = CheckpointStore(tmp_path / "run").save(500, kept, {"loss": 0.1, "bad": math.nan}, CONFIG)
    assert path.name == "round-00000500"
    loaded = CheckpointStore(tmp_path / "run").latest()
    assert (loaded.round, loaded.path, loaded.config, loaded.skipped) == (500, path, CONFIG, ())
    assert loaded.metrics["loss"] == 0.1 and math.isnan(loaded.metrics["bad"])
    assert list(loaded.state) == list(kept) and list(loaded.state["tensors"]) == list(tensors)
    for name, tensor in tensors.items():
        read = loaded.state["tensors"][name]
        assert read.dtype == tensor.dtype and torch.equal(read.nan_to_num(7), tensor.detach().nan_to_num(7))
    nested = loaded.state["a/b~c.d"][""]
    assert nested[:3] == [1, [None, True], {"x": "ü"}] and torch.equal(nested[3], base[0])
    assert loaded.state["none"] is None and loaded.state["empty"] == {}


def test_loaded_tensors_can_be_trained_on(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    weight = store.latest().state["model"]["layer.weight"]
    assert torch.equal(weight.add_(1), torch.full((2, 3), 2.0))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(), st.floats(width=32))
def test_floats_are_bit_equal(tmp_path, double, single):
    kept = {"double": double, "single": torch.tensor(single)}
    (store := CheckpointStore(tmp_path)).save(1, kept, {"m": double}, {"c": double})
    loaded = store.latest()
    doubles = [loaded.state["double"], loaded.metrics["m"], loaded.config["c"]]
    assert all(struct.pack("d", read) == struct.pack("d", double) or math.isnan(double) for read in doubles)
    assert loaded.state["single"].view(torch.int32) == kept["single"].view(torch.int32)


@pytest.mark.parametrize(
    ("leaf", "where"),
    [
        ({"a": {"b": object()}}, "/a/b: object"),
        ({"a": [1, (2, 3)]}, "/a/1: tuple"),
        ({"a": {3: 1.0}}, "/a: a dictionary whose keys"),
        ({"a": {"x/y": b"1"}}, "/a/x~1y: bytes"),
    ],
)
def test_anything_else_in_a_state_is_refused_by_its_path(tmp_path, leaf, where):
    with pytest.raises(TypeError, match=f"^state {where}"):
        CheckpointStore(tmp_path).save(1, leaf, {}, CONFIG)
    assert not list(tmp_path.iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, best_by="score")
    for round_, score in [(1, 0.2), (2, 0.9), (3, math.nan), (4, 0.5), (5, 0.9), (6, 0.1), (7, 0.0)]:
        save(store, round_, score=score)
    assert rounds(store) == [2, 6, 7]
    assert (store.latest().round, store.best().round) == (7, 2)


def test_without_the_metric_nothing_is_best(tmp_path):
    save(CheckpointStore(tmp_path), 1, score=1.0)
    assert CheckpointStore(tmp_path).best() is None
    assert CheckpointStore(tmp_path, best_by="other").best() is None
    save(store := CheckpointStore(tmp_path / "nan", best_by="score"), 1, score=math.nan)
    assert store.best() is None


def test_an_empty_store_has_no_latest(tmp_path):
    assert CheckpointStore(tmp_path / "absent").latest() is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "config.yaml", "metrics.json"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, caplog, name):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    damage(save(store, 2) / name)
    with caplog.at_level(logging.WARNING):
        loaded = store.latest()
    assert loaded.round == 1 and loaded.state["model"]["layer.weight"][0, 0] == 1
    assert len(loaded.skipped) == 1 and f"round-00000002/{name}" in loaded.skipped[0]
    assert f"round-00000002/{name}" in caplog.text


def test_when_all_are_damaged_each_is_named(tmp_path):
    store = CheckpointStore(tmp_path)
    (save(store, 1) / "state.json").unlink()
    (save(store, 2) / "manifest.json").write_text('{"sha256"')
    with pytest.raises(UserError, match="all checkpoints are damaged") as error:
        store.latest()
    assert "round-00000001/state.json: No such file" in str(error.value)
    assert "round-00000002/manifest.json is not valid JSON" in str(error.value)


def test_resuming_before_a_damaged_checkpoint_heals_the_store(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best_by="score")
    save(store, 100, score=2.0)
    damage(save(store, 200, score=1.0) / "state.json")
    store.save(150, state(-1), {"score": 3.0}, CONFIG)
    assert rounds(store) == [150]
    store.save(150, state(-2), {"score": 3.0}, CONFIG)
    assert store.latest().state["model"]["layer.weight"][0, 0] == -2


def test_leftovers_of_interrupted_writes_are_no_checkpoints_and_are_swept(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    for name in (".round-00000002.new.part", ".round-00000009.old.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    assert store.latest().round == 1
    save(store, 2)
    assert rounds(store) == [1, 2]


def test_a_write_that_is_cut_short_changes_nothing(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    before = read_folder(tmp_path / "round-00000001")
    for round_ in (1, 2):
        with files_at_most(100), pytest.raises(UserError, match="cannot write .*File too large.*Make room"):
            save(store, round_)
    assert rounds(store) == [1] and read_folder(tmp_path / "round-00000001") == before


@pytest.fixture
def failing(monkeypatch):
    """A file layer that fails as told: a function from the number of the write to an error number, or none."""
    monkeypatch.setattr(storage, "WAITS", (0,) * len(storage.WAITS))
    sync, calls = os.fsync, itertools.count()

    def install(fault) -> None:
        def fsync(descriptor: int) -> None:
            if number := fault(next(calls)):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        monkeypatch.setattr(storage.os, "fsync", fsync)

    return install


def test_storage_that_fails_one_write_in_ten_costs_nothing(tmp_path, failing, caplog):
    chance = random.Random(0)
    failing(lambda call: errno.EIO if chance.random() < 0.1 else None)
    store = CheckpointStore(tmp_path, keep=2)
    for round_ in range(1, 41):
        save(store, round_)
        assert store.latest().round == round_
    assert rounds(store) == [39, 40]
    assert caplog.text.count("trying again") > 20


def test_a_disk_that_stays_full_is_named_with_the_room_that_is_needed_and_what_is_left_is_whole(tmp_path, failing):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    before = read_folder(tmp_path / "round-00000001")
    failing(lambda call: errno.ENOSPC)
    named = rf"cannot write {tmp_path}/round-00000002: No space left on device: 0.0 MiB are needed and \d+\.\d MiB free"
    with pytest.raises(UserError, match=rf"{named} on the disk of {tmp_path};.* round-00000001, is whole"):
        save(store, 2)
    assert rounds(store) == [1] and read_folder(tmp_path / "round-00000001") == before
    with pytest.raises(UserError, match="there is none before it"):
        save(CheckpointStore(tmp_path / "new"), 1)


def test_a_disk_that_has_room_again_is_written_to(tmp_path, failing):
    failing(lambda call: errno.ENOSPC if call < 3 else None)
    save(store := CheckpointStore(tmp_path), 1)
    assert store.latest().round == 1


def test_a_checkpoint_is_not_lost_where_the_one_that_replaces_it_fails_at_the_last_moment(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        if ".new." in source.name:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="round-00000001, is whole"):
        patched.setattr(Path, "rename", fail)
        save(store, 1)
    assert rounds(store) == [1] and store.latest().round == 1
    (tmp_path / "round-00000001").rename(tmp_path / ".round-00000001.old.part")  # a crash at that moment
    assert store.latest().round == 1


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/run.*Not a directory"):
        save(CheckpointStore(tmp_path / "file" / "run"), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_place_is_the_users_to_mend(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        save(CheckpointStore(tmp_path), 1)


def test_a_model_folder_comes_back_as_it_was_written(tmp_path):
    tied = torch.randn(3, generator=torch.Generator().manual_seed(1))
    ModelFolder({"a": tied, "b": tied}, CONFIG, "# Ü").write(tmp_path / "model")
    read = ModelFolder.read(tmp_path / "model")
    assert torch.equal(read.weights["a"], tied) and torch.equal(read.weights["b"], tied)
    assert (read.config, read.card) == (CONFIG, "# Ü")
    assert set(read_manifest(tmp_path / "model")) == {"weights.safetensors", "config.yaml", "card.md"}


@pytest.mark.parametrize("name", ["weights.safetensors", "config.yaml", "card.md"])
def test_a_tampered_model_folder_is_refused_by_file(tmp_path, name):
    folder = ModelFolder({"a": torch.zeros(2)}, CONFIG, "card").write(tmp_path / "model")
    damage(folder / name)
    with pytest.raises(DataError, match=f"model/{name} does not match its checksum"):
        ModelFolder.read(folder)


def test_a_file_that_the_manifest_leaves_out_is_not_read(tmp_path):
    folder = ModelFolder({"a": torch.zeros(2)}, CONFIG, "card").write(tmp_path / "model")
    checksums = read_manifest(folder)
    del checksums["config.yaml"]
    (folder / "manifest.json").write_text(json.dumps({"sha256": checksums}))
    with pytest.raises(DataError, match="does not list config.yaml"):
        ModelFolder.read(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "", "sub/file", "manifest.json"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    folder = write_folder(tmp_path / "model", {"a": b"1"})
    (folder / "manifest.json").write_text(json.dumps({"sha256": {name: "0" * 64}}))
    with pytest.raises(DataError, match="expected plain names"):
        read_folder(folder)


def test_the_last_report_is_that_of_the_newest_checkpoint_that_was_made_at_one(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.last_report() == (0, {})
    save(store, 1, loss=2.0)
    save(store, 2)  # between two reports
    assert store.last_report() == (1, {"loss": 2.0})
    (tmp_path / "checkpoints" / "round-00000002" / "metrics.json").write_text("{")
    assert store.last_report() == (1, {"loss": 2.0})


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="Directory not empty"):
        write_folder(tmp_path / "mine", {"a": b"1"})
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_no_file_is_a_pickle(tmp_path):
    path = save(CheckpointStore(tmp_path), 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json", ".yaml"}
    assert not any(p.read_bytes().startswith((b"\x80", b"PK")) for p in path.iterdir())


class Tags(dict):
    """A recorder that is told of nothing else."""

    set_tags = dict.update


def test_workers_that_fail_too_often_are_the_end_of_a_run_and_no_traceback(small, tmp_path, monkeypatch):
    from ray.train import TrainingFailedError

    def fail(job, callbacks):
        raise TrainingFailedError("Worker group failed:\n[Rank 0] the process has died. Some common causes: ...")

    closed = []
    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(train.Job, "close", lambda job, status, reason: closed.append((status, reason)))
    job = train.Job.alone(small("vae"), "mine", tmp_path / "mine", "sqlite://")
    assert not (tmp_path / "mine").exists(), "what is refused before it is trained leaves its name free"
    with pytest.raises(UserError, match=r"allows, which is 2: \[Rank 0\] the process has died. The same"):
        train.train_alone(job, [])
    assert [status for status, _ in closed] == ["FAILED"]


def test_a_damaged_newest_is_named_where_training_is_started_and_in_its_run(small, tmp_path, caplog):
    config, tags = small("vae"), Tags()
    store = Fit(config, tmp_path / "mine" / "checkpoints")
    store.run()
    newest = sorted(store.store.folder.iterdir())[-1]
    shutil.copytree(newest, store.store.folder / "round-00009999")
    damage(store.store.folder / "round-00009999" / "tensors.safetensors")
    train.Job.alone(config, "mine", tmp_path / "mine", "sqlite://")
    assert "round-00009999/tensors.safetensors" in caplog.text
    Fit(config, store.store.folder, recorder=tags).resume()
    assert "round-00009999/tensors.safetensors" in tags["avb.checkpoints_skipped"]
