import numpy as np
import pytest
import torch

from avb_service.data.datasets import DataConfig, load
from avb_service.data.stream import Stream, fixed
from avb_service.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig(name="digits"))


def stream(data, binarisation="none", **options):
    options = {"batch_size": 32, "seed": 5, **options}
    return Stream(data.train, data.spec, binarisation=binarisation, **options)


def numbered(tmp_path, count, gib=2.0):
    """Data that are their own positions in the file, so that a batch shows which data it holds."""
    path = tmp_path / f"numbers{count}.npy"
    np.save(path, np.arange(count, dtype=np.float32)[:, None] + 0.5)
    return load(DataConfig(name="file", path=str(path), resident_gib=gib))


@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_batches_are_epochs_one_after_the_other(tmp_path, batch_size):
    data = numbered(tmp_path, 13)
    batches = stream(data, batch_size=batch_size)
    n, members = len(data.train), sorted(data.train.pixels.flatten().tolist())
    count = -(-50 * n // batch_size)
    seen = torch.cat([batches.slice(k)[0] for k in range(count)]).flatten()[: 50 * n].view(50, n)
    assert all(sorted(epoch.tolist()) == members for epoch in seen)
    assert len({tuple(epoch.tolist()) for epoch in seen}) > 40


def test_order_does_not_depend_on_the_batch_size(digits):
    small, large = stream(digits, batch_size=16), stream(digits, batch_size=128)
    assert torch.equal(torch.cat([small.slice(k)[0] for k in range(16, 24)]), large.slice(2)[0])


def test_batches_across_a_block_of_epochs_are_whole(tmp_path):
    data = numbered(tmp_path, 10_000)
    n = len(data.train)
    batches = stream(data, batch_size=3000)
    seen = torch.cat([batches.slice(k)[0] for k in range(6)]).flatten()
    assert len(seen[:n].unique()) == n and len(seen[n : 2 * n].unique()) == n
    assert not torch.equal(seen[:n], seen[n : 2 * n])


@pytest.mark.parametrize("binarisation", ["none", "dynamic"])
def test_slices_make_up_the_batch_and_are_scaled(digits, binarisation):
    whole, parts = stream(digits, batch_size=24), stream(digits, binarisation, batch_size=24, logical_workers=4)
    x, labels = whole.slice(70)
    slices = [parts.slice(70, worker) for worker in range(4)]
    assert x.dtype == torch.float32 and x.shape == (24, 1, 8, 8) and slices[0][0].shape == (6, 1, 8, 8)
    assert torch.equal(torch.cat([y for _, y in slices]), labels)
    seen = torch.cat([part for part, _ in slices])
    if binarisation == "none":
        assert torch.equal(seen, x) and x.max() == 1 and torch.equal((x * 16).round(), x * 16)
    else:
        assert set(seen.unique().tolist()) == {0.0, 1.0}
        assert not seen[x == 0].any() and seen[x == 1].all()


@pytest.mark.parametrize("gib", [2.0, 0.0])
def test_a_slice_is_a_function_of_seed_index_and_worker(gib):
    data = load(DataConfig(name="digits", resident_gib=gib))
    one, other = (stream(data, "dynamic", logical_workers=2) for _ in range(2))
    asked = [(0, 0), (0, 1), (1, 0), (9, 1), (1, 0), (90, 1), (3, 0), (0, 1)]
    forwards = {place: one.slice(*place) for place in asked}
    for place in reversed(asked):
        x, labels = other.slice(*place)
        assert torch.equal(x, forwards[place][0]) and torch.equal(labels, forwards[place][1])
    assert not torch.equal(stream(data, "dynamic", seed=6).slice(0)[0], stream(data, "dynamic").slice(0)[0])


def test_dynamic_noise_differs_from_batch_to_batch_and_from_worker_to_worker(tmp_path):
    np.save(tmp_path / "grey.npy", np.full((5, 64), 0.5))
    data = load(DataConfig(name="file", path=str(tmp_path / "grey.npy"), binarisation="dynamic"))
    batches = stream(data, "dynamic", logical_workers=2)
    slices = [batches.slice(index, worker)[0] for index in range(3) for worker in range(2)]
    assert len({bytes(row.numpy().tobytes()) for part in slices for row in part}) == 3 * 32
    ones = torch.stack(slices)
    assert abs(ones.mean() - 0.5) < 5 * 0.5 / ones.numel() ** 0.5


@pytest.mark.parametrize("binarisation", ["none", "dynamic"])
def test_streamed_data_give_the_batches_of_resident_data(binarisation):
    resident, mapped = (load(DataConfig(name="digits", resident_gib=gib)) for gib in (2.0, 0.0))
    for place in [(0, 0), (0, 1), (1, 0), (1, 1), (5, 0), (44, 1)]:
        expected = stream(resident, binarisation, logical_workers=2).slice(*place)
        given = stream(mapped, binarisation, logical_workers=2).slice(*place)
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_real_values_pass_unchanged_in_the_wanted_precision(tmp_path):
    data = numbered(tmp_path, 20)
    x, labels = stream(data, dtype=torch.float64).slice(0)
    assert labels is None and x.dtype == torch.float64
    assert set(x.flatten().tolist()) == set(data.train.pixels.flatten().tolist())


def test_batches_do_not_share_memory_with_the_data(digits):
    batches = stream(digits)
    before = batches.slice(0)[0].clone()
    batches.slice(0)[0].zero_()
    assert torch.equal(batches.slice(0)[0], before)


def test_indivisible_batches_are_refused(digits):
    with pytest.raises(UserError, match=r"batch_size 32 .*logical_workers 5"):
        stream(digits, logical_workers=5)


@pytest.mark.parametrize("binarisation", ["none", "static", "dynamic"])
def test_fixed_is_the_split_in_order_seen_once(binarisation):
    data = load(DataConfig(name="digits", binarisation=binarisation))
    arguments = (data.train, data.spec, binarisation)
    x, labels = fixed(*arguments, seed=1)
    again, _ = fixed(*arguments, seed=1)
    other, _ = fixed(*arguments, seed=2)
    assert torch.equal(x, again) and torch.equal(labels, data.train.labels)
    assert torch.equal(x, other) == (binarisation != "dynamic")
    few, few_labels = fixed(*arguments, seed=1, limit=33)
    assert torch.equal(few, x[:33]) and torch.equal(few_labels, labels[:33])
    grey = data.train.pixels.float() / data.spec.levels
    if binarisation == "dynamic":
        assert set(x.unique().tolist()) == {0.0, 1.0} and not x[grey == 0].any() and x[grey == 1].all()
    else:
        assert torch.equal(x, grey)


def test_fixed_noise_goes_on_across_parts(tmp_path):
    np.save(tmp_path / "grey.npy", np.full((9000, 3), 0.5))
    data = load(DataConfig(name="file", path=str(tmp_path / "grey.npy"), binarisation="dynamic", test=1, validation=1))
    x, _ = fixed(data.train, data.spec, "dynamic", seed=0)
    few, _ = fixed(data.train, data.spec, "dynamic", seed=0, limit=4099)
    assert torch.equal(few, x[:4099]) and not torch.equal(x[:4096], x[4096:8192])
