"""What a model carries of its likelihoods, and how two models are compared."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from avb_service.errors import DataError, UserError
from avb_service.fitting import Fit
from avb_service.records import Certificate, Check, Diagnosis, Estimate, Key, LikelihoodRecord
from avb_service.records.key import from_json, read_older, to_json
from avb_service.report import assess

BASIS = {"data": "digits", "data_sha256": "ab", "split": "test", "binarisation": "dynamic", "seed": "0"}


def estimate(
    values: ArrayLike, estimator: str = "ais", kind: str = "lower_bound", draws: int | None = None, **columns: ArrayLike
) -> Estimate:
    return Estimate.of(Key(estimator, draws), kind, {"nats": values, **columns})


def certificate(gap: float) -> Certificate:
    return Certificate((Check("gap", gap, "<=", 0.2, "mean gap"), Check("ess", 6.0, ">=", 4.0, "chains")), -24.0, -23.9)


def record(values: Tensor, gap: float = 0.1, **options: object) -> LikelihoodRecord:
    usual = {"basis": BASIS, "estimates": (estimate(values),), "certificate": certificate(gap)}
    return LikelihoodRecord(**{**usual, **options})


HARD = torch.linspace(-60, -10, 40, dtype=torch.float64)  # data differ by far more than models


def test_a_paired_comparison_sees_what_two_error_bars_do_not():
    ahead, behind = record(HARD + 0.5 + 0.1 * torch.sin(HARD)), record(HARD)
    comparison = ahead.against(behind)
    assert comparison.better
    assert comparison.difference == pytest.approx(0.5, abs=0.05)
    assert comparison.stderr < 0.02 < 2 < ahead.estimates[0].stderr
    assert not behind.against(ahead).better


def test_a_difference_within_two_standard_errors_is_none():
    noisy = record(HARD + 0.1 + torch.sin(7 * HARD))
    comparison = noisy.against(record(HARD))
    assert 0 < comparison.difference < 2 * comparison.stderr
    assert not comparison.better


def test_models_scored_on_other_data_are_not_compared():
    other = record(HARD, basis={**BASIS, "binarisation": "static"})
    with pytest.raises(UserError, match="binarisation: dynamic and static"):
        record(HARD).against(other)


def test_logs_of_probabilities_and_of_a_density_are_not_compared(small, tmp_path):
    """On the same grey data: 64 pixels of 17 levels, so that a density is larger by 64 log 16 = 177 nats."""
    records = []
    for name in ("gaussian", "discretised_logistic"):
        settings = {"data.binarisation": "none", "algorithm.observation": {"name": name}}
        experiment = Fit(small("vae", settings), tmp_path / name)
        experiment.run()
        records.append(assess(experiment.model))
    assert [made.basis["measure"] for made in records] == ["a density", "probabilities of levels"]
    with pytest.raises(UserError, match="another measure.*measure: a density and probabilities of levels"):
        records[0].against(records[1])
    assert "measure" not in assess(Fit(small("vae"), tmp_path / "binary").model).basis, "binary data have but one"


def test_masks_that_were_levels_to_an_older_version_are_compared():
    older = record(HARD, basis={**BASIS, "measure": "probabilities of levels"})
    assert older.against(record(HARD - 1)).difference == record(HARD).against(record(HARD - 1)).difference == 1
    with pytest.raises(UserError, match="measure: probabilities of levels and a density"):
        record(HARD).against(record(HARD, basis={**BASIS, "measure": "a density"}))


def test_nothing_is_said_of_the_measure_of_models_of_different_data():
    """Real values have a density alone, and their basis does not say so."""
    real = record(HARD, basis={**BASIS, "data_sha256": "1" * 64})
    with pytest.raises(UserError, match="data_sha256: ") as caught:
        real.against(record(HARD, basis={**BASIS, "data_sha256": "2" * 64, "measure": "a density"}))
    assert "probabilities" not in str(caught.value)


def test_models_without_a_common_estimate_are_not_compared():
    other = record(HARD, estimates=(estimate(HARD, "elbo_adversarial", "estimate"),), basis={})
    with pytest.raises(UserError, match="one of the two has no exact value or lower bound of log p"):
        record(HARD).against(other)
    loose = record(HARD, estimates=(estimate(HARD, "elbo"),), certificate=None)
    with pytest.raises(UserError, match="no exact value or lower bound in common"):
        record(HARD).against(loose)


def test_what_can_be_believed_of_either_is_compared_and_not_a_bound_that_is_loose_for_one():
    """An annealed model whose own encoder has collapsed, and one with discrete codes, 9 nats behind it."""
    annealed = record(
        HARD,
        estimates=(
            estimate(HARD, "ais"),
            estimate(HARD - 0.3, "iwae_refined", draws=256),
            estimate(HARD - 17, "iwae", draws=256),
        ),
    )
    values = HARD - 9
    exact = (
        estimate(values, "iwae", draws=256),
        estimate(values - 1, "elbo"),
        estimate(values, "enumeration", "exact"),
    )
    comparison = annealed.against(record(HARD, estimates=exact, certificate=None))
    assert comparison.estimator == "ais and enumeration"
    assert comparison.difference == pytest.approx(9)
    loose = record(HARD, estimates=annealed.estimates, gap=3.0).against(record(HARD, estimates=exact, certificate=None))
    assert (loose.estimator, loose.difference) == ("iwae_256", pytest.approx(-8)), "what both have, draw for draw"


def test_an_exact_value_of_all_data_is_the_estimate_and_one_of_some_is_not():
    bound, few = estimate(HARD - 0.02), estimate(HARD[:10], "quadrature", "exact")
    whole = estimate(HARD, "quadrature", "exact")
    assert record(HARD, estimates=(bound, few)).held_out.name == "ais"
    made = record(HARD, estimates=(bound, whole), certificate=None)
    assert made.held_out == whole and made.objection is None
    unsettled = estimate(HARD, "quadrature", "estimate")
    assert record(HARD, estimates=(unsettled, bound)).held_out == bound


def test_which_bound_is_the_estimate_does_not_depend_on_how_high_it_is():
    names = ["elbo", "iwae", "iwae_mixture", "ais"]
    for best in range(4):
        values = [HARD - abs(best - number) for number in range(4)]
        made = [estimate(each, name) for each, name in zip(values, names, strict=True)]
        for count in range(1, 5):
            assert record(HARD, estimates=tuple(made[:count])).held_out.key == Key(names[count - 1])


def test_an_estimate_that_another_valid_bound_is_above_is_not_believed_and_that_is_said():
    """Weak pilots: iwae agrees with what is exact on some of the data, and ais is a thousand nats below."""
    low = estimate(HARD - 1e3, variance=torch.ones(40))
    high = estimate(HARD, "iwae", draws=9, variance=torch.ones(40))
    exact, belief = estimate(HARD[:10], "quadrature", "exact"), estimate(HARD + 5e3, "elbo_adversarial", "estimate")
    made = record(HARD, estimates=(low, high, exact, belief))
    assert made.held_out.name == "ais" and made.certificate.passed
    assert made.objection == "ais is too low: iwae_9, as valid a bound, is 1000.00 nats above it on the same 40 data"
    few = record(HARD, estimates=(low, exact, belief)).shortfall
    assert (few.bound, few.data, few.difference) == (Key("quadrature"), 10, pytest.approx(1000))
    assert made.standing < record(HARD - 2000).standing
    assert made.excess.bound == Key("iwae", 9), (
        "an adversary is held against what is known, and not against that estimate"
    )
    assert record(HARD).shortfall is None


@pytest.mark.parametrize(("difference", "variance", "short"), [
    (0.04, 0.0, False), (0.06, 0.0, True), (0.06, 1.0, False), (0.6, 1.0, False), (0.7, 1.0, True), (-1.0, 0.0, False),
])  # fmt: skip
def test_a_bound_that_is_above_by_luck_shows_nothing(difference, variance, short):
    """Of 40 data, each with that variance by either estimator: three standard errors are 3 sqrt(2 / 40) = 0.67."""
    own = torch.full((40,), variance)
    made = record(
        HARD,
        estimates=(
            estimate(HARD, variance=own),
            estimate(HARD + difference, "iwae_mixture", draws=512, variance=own),
        ),
    )
    assert (made.shortfall is not None) == short
    assert (made.objection is None) != short


def test_a_bound_whose_own_error_nobody_knows_has_that_of_the_data():
    made = [record(HARD, estimates=(estimate(HARD), estimate(HARD + above, "elbo"))) for above in (1.0, 30.0)]
    assert [each.shortfall is None for each in made] == [True, False]
    single = record(HARD, estimates=(estimate(HARD[:1], variance=torch.zeros(1)), estimate(HARD[:1] + 9, "elbo")))
    assert single.shortfall is None, "of one datum that is not known either"


def older() -> LikelihoodRecord:
    """As a version wrote it that knew no mixture: under the certificate's checks of then."""
    return record(
        HARD,
        estimates=(
            estimate(HARD),
            estimate(HARD - 0.1, "iwae_refined", draws=256),
            estimate(HARD - 0.3, "iwae", draws=256),
        ),
    )


def without_keys(made: LikelihoodRecord) -> bytes:
    """The file as versions wrote it in which a name was all that an estimate was known by."""
    tree = json.loads(made.to_json())
    for each in tree["estimates"]:
        del each["key"]
    return json.dumps(tree).encode()


def test_a_record_of_an_older_version_is_read_believed_and_compared():
    read = LikelihoodRecord.from_json(without_keys(older()))
    assert read.objection is None and read.by("iwae_refined").key == Key("iwae_refined", 256)
    newer = record(
        HARD,
        estimates=(
            estimate(HARD - 1),
            estimate(HARD - 1, "iwae_mixture", draws=512),
            estimate(HARD - 1.3, "iwae", draws=256),
        ),
    )
    assert read.against(newer).estimator == "ais" and read.against(newer).difference == pytest.approx(1)
    quick = [record(HARD, estimates=made.estimates[1:], certificate=None) for made in (read, newer)]
    assert quick[0].against(quick[1]).estimator == "iwae_256", "which both have"
    assert quick[0].against(quick[0]).estimator == "iwae_refined_256"


def test_an_estimator_is_asked_for_by_its_key():
    noisy = Estimate.of(Key("iwae", 9, noise=0.1), "lower_bound", {"nats": HARD - 2})
    made = record(HARD, estimates=(estimate(HARD, "ais_prior"), estimate(HARD - 1, "iwae_refined", draws=9), noisy))
    assert made.by("ais") is None
    assert made.by("iwae") is noisy
    assert made.by("iwae_refined").name == "iwae_refined_9"


@pytest.mark.parametrize(("key", "name"), [
    (Key("ais"), "ais"), (Key("ais_prior"), "ais_prior"), (Key("iwae", 256), "iwae_256"),
    (Key("iwae_mixture", 512, 0.1), "iwae_mixture_512.noise_0.1"), (Key("quadrature", noise=2.0), "quadrature.noise_2"),
    (Key("parzen"), "parzen"), (Key("elbo_adversarial"), "elbo_adversarial"),
    (Key("ais", noise=1e-7), "ais.noise_1e-07"),
])  # fmt: skip
def test_names_are_what_they_were_and_those_of_older_records_are_understood(key, name):
    assert str(key) == name and read_older(name) == key
    made = Estimate.of(key, "lower_bound", {"nats": HARD})
    assert f"test/log_likelihood.{name}.lower_bound" in made.metrics("test")
    read = LikelihoodRecord.from_json(without_keys(record(HARD, estimates=(made,))))
    assert read.estimates[0].key == key


def test_two_estimates_of_one_estimator_with_other_draws_are_not_the_same_bound():
    few, many = (record(HARD, estimates=(estimate(HARD, "iwae", draws=k),), certificate=None) for k in (8, 256))
    assert few.against(few).estimator == "iwae_8"
    with pytest.raises(UserError, match="no exact value or lower bound in common"):
        few.against(many)


@pytest.mark.parametrize("text", ["", "4", "[1]", '[{"estimator": "ais", "colour": 1}]'])
def test_keys_that_somebody_has_changed_are_refused(text):
    keys = [Key("ais"), Key("iwae", 8, 0.5)]
    assert from_json(to_json(keys)) == keys
    with pytest.raises(ValueError):
        from_json(text)


@pytest.mark.parametrize(
    ("made", "objection"),
    [
        (record(HARD), None),
        (record(HARD, gap=0.3), "the certificate failed: mean gap: 0.3, expected <= 0.2"),
        (record(HARD, gap=math.nan), "the certificate failed"),
        (record(HARD, certificate=None), "ais has no certificate"),
        (record(HARD, estimates=(estimate(HARD, "enumeration", "exact"),), certificate=None), None),
        (record(HARD, estimates=()), "defines no p"),
        (record(HARD, estimates=(estimate(HARD, "elbo_adversarial", "estimate"),)), "defines no p"),
    ],
)
def test_what_stands_in_the_way_of_a_champion(made, objection):
    assert made.objection is None if objection is None else objection in made.objection


def test_an_adversarys_belief_is_never_the_held_out_estimate():
    belief = estimate(HARD + 9, "elbo_adversarial", "estimate")
    made = record(HARD, estimates=(belief, estimate(HARD, "iwae", draws=256)))
    assert made.held_out.name == "iwae_256"


def test_a_record_survives_its_file_to_the_bit():
    values = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = record(values, estimates=(estimate(values, "ais", "lower_bound", ess=values.exp()),))
    read = LikelihoodRecord.from_json(made.to_json())
    assert read.basis == made.basis
    assert read.certificate == made.certificate
    (one,), (other,) = made.estimates, read.estimates
    assert dataclasses.replace(one, columns={}) == dataclasses.replace(other, columns={})
    assert np.array_equal(one.per_datum, other.per_datum)
    assert np.array_equal(one.columns["ess"], other.columns["ess"])


def test_the_file_is_json_also_of_what_is_no_number_and_older_files_are_read():
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.5], dtype=torch.float64)
    diagnosis = Diagnosis(10.0, 12.5, 2.5, math.nan, 0.3, 0.9, 0.05)
    made = record(
        HARD,
        gap=math.nan,
        estimates=(estimate(HARD[:4], "ais", doubling=odd), estimate(HARD[:1], "elbo")),
        diagnosis=diagnosis,
    )

    def refuse(literal: str) -> float:
        raise AssertionError(f"{literal} is no JSON")

    tree = json.loads(made.to_json(), parse_constant=refuse)
    assert tree["estimates"][0]["columns"]["doubling"] == [None, "Infinity", "-Infinity", 1.5]
    older = tree | {
        "estimates": json.loads(
            json.dumps(tree["estimates"])
            .replace("null", "NaN")
            .replace('"Infinity"', "Infinity")
            .replace('"-Infinity"', "-Infinity")
        )
    }
    for each in older["estimates"]:
        del each["key"]
    for content in (made.to_json(), json.dumps(older).encode()):
        read = LikelihoodRecord.from_json(content)
        assert torch.equal(torch.from_numpy(read.estimates[0].columns["doubling"]).nan_to_num(7), odd.nan_to_num(7))
        assert math.isnan(read.estimates[1].stderr) and math.isnan(read.certificate.checks[0].value)
        assert math.isnan(read.diagnosis.floor_stderr) and read.diagnosis.kl == 10.0
        assert read.to_json() == made.to_json()
    assert (
        record(HARD, certificate=None).to_json()
        == LikelihoodRecord.from_json(record(HARD, certificate=None).to_json()).to_json()
    )


DIAGNOSIS = Diagnosis(10.0, 12.5, 2.5, 0.1, 0.3, 0.9, 0.05)


def test_what_speaks_against_an_adversary_is_recorded_and_survives_the_file():
    made = record(
        HARD, estimates=(estimate(HARD + 2, "elbo_adversarial", "estimate"), estimate(HARD)), diagnosis=DIAGNOSIS
    )
    read = LikelihoodRecord.from_json(made.to_json())
    assert read.diagnosis == DIAGNOSIS and read.doubts == made.doubts
    assert [check.name for check in made.doubts if not check.passed] == ["floor_violation", "unverifiable", "excess"]
    metrics = made.metrics("test")
    assert metrics["test/adversary.floor_violation"] == 2.5 and metrics["test/adversary.unverifiable"] == 0.3
    assert metrics["test/adversary.not_a_bound"] == 1.0
    assert record(HARD).doubts == (), "a model without an adversary"


def test_of_a_single_datum_nobody_knows_what_is_chance():
    one = HARD[:1]
    made = record(one, estimates=(estimate(one + 2, "elbo_adversarial", "estimate"), estimate(one)))
    assert made.excess and made.doubts == ()


def test_a_file_from_before_adversaries_were_diagnosed_is_read():
    tree = json.loads(record(HARD).to_json())
    del tree["diagnosis"], tree["estimates"][0]["recipe"]
    read = LikelihoodRecord.from_json(json.dumps(tree).encode())
    assert read.diagnosis is None and read.estimates[0].recipe == {}


def test_the_bytes_tell_the_recipe_and_not_how_long_it_took():
    slow = dataclasses.replace(estimate(HARD), recipe={"chains": 8}, seconds=9.0)
    fast = dataclasses.replace(slow, seconds=1.0)
    content = record(HARD, estimates=(slow,)).to_json()
    assert content == record(HARD, estimates=(fast,)).to_json()
    assert LikelihoodRecord.from_json(content).estimates[0].recipe == {"chains": 8}


def test_what_can_be_believed_stands_before_a_better_estimate_that_cannot():
    believed, better, none = record(HARD), record(HARD + 1, gap=0.5), record(HARD, estimates=(), certificate=None)
    assert sorted([none, better, believed], key=lambda each: each.standing, reverse=True) == [believed, better, none]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"basis": {}, "estimates": [{}], "certificate": null}'])
def test_a_file_that_is_something_else_is_refused(content):
    with pytest.raises(DataError, match="no record of likelihoods"):
        LikelihoodRecord.from_json(content)
