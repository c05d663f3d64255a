"""Digits that are translated to MNIST's hand without labels or pairs are read as what they were."""

import pytest

from avb_service.data.datasets import DataConfig
from benchmarks.translated_digits import read

RAW = DataConfig(name="mnist").folder / "MNIST" / "raw"
pytestmark = [
    pytest.mark.science,
    pytest.mark.skipif(not RAW.is_dir(), reason=f"no {RAW}: AVB_DATA_ROOT has to name the folder that holds MNIST/raw"),
]


def test_translation_keeps_what_a_digit_is():
    """By support vectors, 0.750 after 500 rounds and 0.420 as they are were seen with this seed, 0.712 with another."""
    found = read(["training.rounds=500"])
    print(found)
    assert found.as_they_are < 0.5
    assert found.translated > 0.6
