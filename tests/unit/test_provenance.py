"""The code that decides numbers is told by what it computes."""

import pytest

from avb_service.provenance import BY_BYTES, code_version, computes, same_numbers

FORMULA = """
def kl(mean, variance):
    return 0.5 * (variance + mean**2 - 1 - variance.log())
"""


def of(text: str, path: str = "maths.py") -> str:
    return computes({path: text})


@pytest.mark.parametrize(
    "same",
    [
        "# nats\n" + FORMULA,
        '"""Maths."""\n' + FORMULA,
        FORMULA.replace(":\n", ':\n    """KL."""\n'),
        FORMULA.replace("mean**2", "mean ** 2").replace(":\n", ":\n\n"),
    ],
    ids=["comment", "docstring of the file", "docstring of the function", "blanks"],
)
def test_how_a_formula_is_written_and_explained_does_not_matter(same):
    assert of(same) == of(FORMULA)


@pytest.mark.parametrize(
    "other",
    [FORMULA.replace("0.5", "0.25"), FORMULA.replace("+ mean", "- mean"), FORMULA + "    kl = None\n", ""],
    ids=["number", "operator", "statement", "none"],
)
def test_another_formula_is_another_code(other):
    assert of(other) != of(FORMULA)


def test_the_words_of_a_refusal_do_not_matter_and_that_there_is_one_does():
    refusing = "def f(x):\n    if x < 0:\n        raise DataError(f'given {x}')\n    return x\n"
    assert of(refusing) == of(refusing.replace("given {x}", "{x} is below 0"))
    assert of(refusing) != of(refusing.replace("raise DataError(f'given {x}')", "x = 0"))
    assert of(refusing) != of(refusing.replace("x < 0", "x < 1"))


def test_a_text_that_is_used_matters():
    assert of("NAME = 'adam'") != of("NAME = 'sgd'")


@pytest.mark.parametrize("path", ["cli/models.py", "tracking/runs.py", "figures/grids.py"])
def test_what_decides_no_number_is_left_out(path):
    assert of(FORMULA, path) == of("", path)


@pytest.mark.parametrize("path", ["networks/encoders.py", "algorithms/vae.py", "likelihood/ais.py", "data/stream.py"])
def test_what_decides_numbers_counts(path):
    assert of(FORMULA, path) != of("", path)


def test_a_code_is_compared_by_what_it_computes_and_not_by_its_version():
    now = code_version()
    assert same_numbers(now, now) is True
    assert same_numbers("0.0.1+" + now.partition("+")[2], now) is True
    assert same_numbers("0.0.1+n0123456789ab", now) is False
    assert same_numbers("None", now) is False


def test_nobody_can_tell_of_a_version_that_counted_bytes():
    assert same_numbers("0.1.0+e9c90029d69c", code_version()) is None
    assert not BY_BYTES.fullmatch(code_version())
