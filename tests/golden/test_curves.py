"""Training computes what it computed when the golden curves were written."""

import json
import math
from typing import Any

import pytest

from avb_service.algorithms import METHODS
from avb_service.fitting import Fit
from tests.golden.record import CURVES, KEPT, curve, of_method, of_preset, presets, resumed

TOLERANCE = 1e-9


def assert_golden(name: str, found: dict[str, Any]) -> None:
    """Every number as it was written, but for the rounding of another processor."""
    written = json.loads((CURVES / f"{name}.json").read_text(encoding="utf-8"))
    assert len(found["terms"]) == len(written["terms"])
    for i, (round_, golden) in enumerate(zip(found["terms"], written["terms"], strict=True)):
        assert round_ == pytest.approx(golden, rel=TOLERANCE, abs=TOLERANCE), f"loss terms of round {i}"
    assert found["state"].keys() == written["state"].keys()
    for tensor, sums in found["state"].items():
        assert sums == pytest.approx(written["state"][tensor], rel=TOLERANCE, abs=TOLERANCE), tensor


@pytest.mark.parametrize("preset", presets())
def test_a_preset_begins_as_it_did(preset, tmp_path):
    assert_golden(f"preset-{preset}", curve(Fit(of_preset(preset), tmp_path)))


def test_a_method_with_two_slices_begins_as_it_did(method, tmp_path):
    assert_golden(f"method-{method}", curve(Fit(of_method(method), tmp_path)))


@pytest.mark.parametrize("kept", KEPT)
def test_a_checkpoint_of_the_first_release_goes_on_as_it_did(kept, tmp_path):
    assert_golden(f"resumed-{kept}", resumed(kept, tmp_path))


def test_every_golden_curve_is_held():
    names = {
        *(f"preset-{p}" for p in presets()),
        *(f"method-{m}" for m in METHODS.own),
        *(f"resumed-{m}" for m in KEPT),
    }
    assert {path.stem for path in CURVES.iterdir()} == names
    for path in CURVES.iterdir():
        written = json.loads(path.read_text(encoding="utf-8"))
        assert written["terms"] and all(math.isfinite(v) for round_ in written["terms"] for v in round_.values())
