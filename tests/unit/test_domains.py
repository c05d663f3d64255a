"""What each domain draws, and how its values go to a searcher and come back."""

import math

import optuna
import pytest

from avb_service.errors import ConfigError
from avb_service.tuning.domains import DomainConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)
DOMAINS = [
    {"choice": [1, 2, 5]}, {"choice": [True, False]}, {"choice": ["Adam", "SGD", 0.5]},
    {"choice": [[64], [64, 64], [128]]}, {"choice": [{"name": "mlp"}, {"name": "mlp", "widths": [32]}]},
    {"uniform": [-1.0, 1.0]}, {"loguniform": [1e-5, 1e-1]}, {"randint": [1, 9]}, {"lograndint": [1, 1000]},
    {"quniform": [0.0, 0.3, 0.1]}, {"qloguniform": [0.001, 0.1, 0.001]}, {"qrandint": [16, 64, 16]},
    {"qlograndint": [10, 1000, 10]},
]  # fmt: skip


def domain(given: dict) -> DomainConfig:
    return DomainConfig.parse(given)


def draws(domain: DomainConfig, count: int = 200) -> list:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    return [domain.drawn(study.ask(), "x") for _ in range(count)]


@pytest.mark.parametrize("given", DOMAINS, ids=str)
def test_draws_are_of_the_domain_and_its_ends_are_drawn_where_they_can_be_counted(given):
    found = draws(domain(given))
    assert all(domain(given).contains(value) for value in found)
    if domain(given).finite and len(found) > 20 * len({str(value) for value in found}):
        assert all(end in found for end in domain(given).endpoints())


@pytest.mark.parametrize("given", DOMAINS, ids=str)
def test_a_value_that_is_asked_for_is_drawn(given):
    study = optuna.create_study()
    for value in draws(domain(given), 20):
        study.enqueue_trial({"x": domain(given).parameter(value)})
        assert domain(given).drawn(study.ask(), "x") == value


def test_multiples_are_written_as_a_person_would():
    assert {*draws(domain({"quniform": [0.0, 0.3, 0.1]}))} == {0.0, 0.1, 0.2, 0.3}
    assert {*draws(domain({"qrandint": [16, 64, 16]}))} == {16, 32, 48, 64}
    assert 9 not in draws(domain({"randint": [1, 9]}))


def test_logarithms_are_alike():
    for given in ({"loguniform": [1e-4, 1.0]}, {"lograndint": [1, 10001]}, {"qloguniform": [1e-4, 1.0, 1e-4]}):
        low, high = domain(given).endpoints()
        middle = math.sqrt(low * high)
        assert 0.35 < sum(value < middle for value in draws(domain(given))) / 200 < 0.65, given


@pytest.mark.parametrize(
    ("given", "value"),
    [({"choice": [1, 2]}, 3), ({"uniform": [0, 1]}, 2.0), ({"uniform": [0, 1]}, "a"), ({"randint": [1, 9]}, 9),
     ({"randint": [1, 9]}, 1.5), ({"quniform": [0.0, 1.0, 0.1]}, 0.25), ({"randint": [0, 2]}, True)],
)  # fmt: skip
def test_what_is_not_of_the_domain_is_known(given, value):
    assert not domain(given).contains(value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"quniform": [0.05, 1.0, 0.1]}, "multiples"), ({"qrandint": [2, 1, 1]}, "lower end first"),
     ({"choice": [1, 2, 1]}, "twice"), ({"quniform": [0.0, 1.0]}, "3"), ({"lograndint": [0, 2]}, "greater than")],
)  # fmt: skip
def test_what_is_no_domain_is_refused(given, reason):
    with pytest.raises(ConfigError, match=reason):
        domain(given)
