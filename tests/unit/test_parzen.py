"""Parzen windows against densities that are known, and another implementation."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import PCA, data
from sklearn.neighbors import KernelDensity
from torch import Tensor
from torch.distributions import Independent, Normal

from avb_service.errors import DataError, UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig, Task
from avb_service.likelihood.parzen import Windows, best_bandwidth, log_densities, parzen
from avb_service.likelihood.scoring import estimate, serially
from avb_service.records import NATS, Estimate
from avb_service.seeding import seeded

MODEL = PCA(2)


def drawn(n: int, *seed: str, scale: float = 1.0) -> Tensor:
    with seeded("parzen", *seed):
        return scale * torch.randn(n, 1, 2, 3)


def windows(samples: Tensor, x: Tensor, bandwidth: float) -> Estimate:
    return estimate(Task(MODEL, lambda _: parzen(samples, bandwidth), x, 0, 64))


def rows(model: PCA, parts: tuple[Tensor, ...], samples: int, **options) -> tuple[Estimate, Estimate]:
    """Of test, training and validation data."""
    x, train, validation = parts
    return Evaluator(model, LikelihoodConfig(parzen_samples=samples), **options).parzen(train, validation, x)


def tried(centres: Tensor, validation: Tensor, bandwidths: tuple[float, ...]) -> Estimate:
    return estimate(Task(MODEL, Windows("tried", centres, bandwidths), validation, 0, 64))


def test_one_centre_is_the_gaussian_density():
    x, centre = drawn(30, "x"), drawn(1, "centre")
    result = windows(centre, x, 0.3)
    expected = Independent(Normal(centre[0].double(), 0.3), 3).log_prob(x.double())
    np.testing.assert_allclose(result.per_datum, expected, rtol=0, atol=1e-10)
    assert (result.name, result.kind) == ("parzen", "estimate")
    assert set(result.metrics("test")) == {"test/parzen", "test/parzen.stderr", "test/parzen.bandwidth"}
    assert result.diagnostics == {"bandwidth": pytest.approx(0.3)}


def test_permuting_the_data_changes_nothing():
    x, centres = drawn(200, "x"), drawn(50, "centres")
    with seeded("order"):
        order = torch.randperm(200)
    result, permuted = windows(centres, x, 0.3), windows(centres, x[order], 0.3)
    np.testing.assert_allclose(permuted.per_datum, torch.from_numpy(result.per_datum)[order], rtol=0, atol=1e-12)
    assert permuted.value == pytest.approx(result.value, abs=1e-12)
    assert permuted.stderr == pytest.approx(result.stderr, abs=1e-12)


@pytest.mark.parametrize("centres_at_a_time", [1, 7, 10_000])
def test_many_centres_are_a_kernel_density(monkeypatch, centres_at_a_time):
    monkeypatch.setitem(parzen.__globals__, "CENTRES", centres_at_a_time)
    x, centres = drawn(20, "x"), drawn(30, "centres") + 100  # far from the origin, where digits could be lost
    reference = KernelDensity(bandwidth=0.4).fit(centres.flatten(1).double())
    expected = torch.from_numpy(reference.score_samples((x + 100).flatten(1).double()))
    np.testing.assert_allclose(windows(centres, x + 100, 0.4).per_datum, expected, rtol=0, atol=1e-8)


def test_several_bandwidths_at_once_are_each_by_itself():
    x, centres = drawn(20, "x"), drawn(30, "centres").flatten(1).double()
    both = log_densities(x, centres, [0.2, 0.9])
    torch.testing.assert_close(both[0], log_densities(x, centres, [0.2])[0])
    torch.testing.assert_close(both[1], log_densities(x, centres, [0.9])[0])
    assert not torch.allclose(both[0], both[1])


def test_the_bandwidth_is_the_one_under_which_validation_data_are_most_likely(caplog):
    centres, validation = drawn(400, "centres"), drawn(100, "validation")
    bandwidths = (0.05, 0.2, 0.5, 1.0, 3.0)
    values = {h: windows(centres, validation, h).value for h in bandwidths}
    best = best_bandwidth(tried(centres, validation, bandwidths), bandwidths)
    assert values[best] == max(values.values())
    assert best not in (bandwidths[0], bandwidths[-1]) and not caplog.text
    assert best_bandwidth(tried(centres, validation, bandwidths[:2]), bandwidths[:2]) == 0.2
    assert "0.2, is at the end of those tried" in caplog.text


def test_the_training_set_s_own_number_stands_beside_the_model_s():
    parts = data(MODEL, 3000).split([100, 2800, 100])
    mine, training = rows(MODEL, parts, 500)
    assert (mine.name, training.name) == ("parzen", "parzen_training")
    assert mine.kind == training.kind == "estimate"
    assert mine.value == pytest.approx(training.value, abs=0.5), "the model is the truth here"
    assert mine.value < MODEL.exact(parts[0]).mean(), "samples are few"
    wrong = PCA(2)
    wrong.mu = wrong.mu + 3
    off, same = rows(wrong, parts, 500)
    assert off.value < training.value - 1
    assert same.value == training.value


def test_both_rows_have_as_many_centres(monkeypatch):
    counts: list[int] = []
    parts = data(MODEL, 300).split([100, 100, 100])
    monkeypatch.setattr(model := PCA(2), "sample", lambda n: (counts.append(n), MODEL.sample(n))[1])
    few = rows(model, parts, 10_000)[1]
    assert sum(counts) == 100
    h = few.diagnostics["bandwidth"]
    assert few.value == pytest.approx(windows(parts[1], parts[0], h).value, abs=1e-9), "all there are"


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_is_positive(bandwidth):
    with pytest.raises(UserError, match="positive bandwidth, given"):
        parzen(drawn(3), bandwidth)


def test_bad_samples_are_named():
    broken = drawn(5)
    broken[3, 0, 1, 1] = math.nan
    with pytest.raises(DataError, match="sample 3 for Parzen windows is not finite"):
        parzen(broken, 0.3)
    with pytest.raises(DataError, match="no samples.*given 0"):
        parzen(broken[:0], 0.3)
    with pytest.raises(DataError, match="no data to score"):
        tried(drawn(5), broken[:0], (0.2, 0.3))


def test_kept_blocks_are_found_again_and_those_of_other_samples_are_not(tmp_path):
    scored: list[tuple[str, range]] = []

    def noting(task: Task, blocks):
        for block, columns in serially(task, blocks):
            scored.append((task.make.name, block))
            yield block, columns

    parts, options = data(MODEL, 900).split([300, 300, 300]), {"run": noting, "store": tmp_path}
    undisturbed = rows(MODEL, parts, 200)
    for kept in (rows(MODEL, parts, 200, **options), rows(MODEL, parts, 200, **options)):
        for one, other in zip(kept, undisturbed, strict=True):
            assert np.array_equal(one.per_datum, other.per_datum)
        assert len(scored) == len(set(scored)) == 8, "validation and test data of both rows, two blocks each"
    rows(MODEL, parts, 150, **options)
    assert len(scored) == 16


def test_nats_are_per_datum_and_not_per_pixel():
    assert parzen(drawn(1), 1.0).score(torch.zeros(1, 1, 2, 3))[NATS].item() < -0.5 * 6 * math.log(2 * math.pi)
