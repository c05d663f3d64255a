"""Settings that were called otherwise: understood, and said."""

import logging

import pytest

from avb_service.errors import UserError
from avb_service.settings import read_config, say_renamed


@pytest.fixture(autouse=True)
def nothing_said_yet():
    say_renamed.cache_clear()


@pytest.mark.parametrize(
    ("preset", "old", "new", "value"),
    [
        ("vae_digits", "tracking.figures_every", "tracking.plots_every", 3),
        ("infogan_digits", "algorithm.distortion", "algorithm.augmentation", {"shear": 0.25}),
    ],
)
def test_a_key_of_an_earlier_release_is_understood_and_said(caplog, preset, old, new, value):
    with caplog.at_level(logging.WARNING):
        before, now = (read_config(preset, {path: value}) for path in (old, new))
    (said,) = caplog.messages
    assert before == now and read_config(preset, [f"{old}={value}"]) == now
    assert old.rpartition(".")[2] in said and new.rpartition(".")[2] in said
    assert old.rpartition(".")[2] not in now.to_yaml()


def test_it_is_said_once_for_each_name(caplog):
    with caplog.at_level(logging.WARNING):
        for value in (3, 3, 4):
            read_config("vae_digits", {"tracking.figures_every": value})
        read_config("infogan_digits", {"algorithm.distortion": {"shear": 0.25}})
    assert ["plots_every" in message for message in caplog.messages] == [True, False]


@pytest.mark.parametrize("value", ["soon", -1])
def test_what_is_wrong_with_it_is_named_as_ever(value):
    with pytest.raises(UserError, match="plots_every"):
        read_config("vae_digits", {"tracking.figures_every": value})


def test_both_names_at_once_are_one_too_many():
    with pytest.raises(UserError, match="figures_every: unknown key"):
        read_config("vae_digits", {"tracking.figures_every": 3, "tracking.plots_every": 4})
