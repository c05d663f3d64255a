"""What all tests share."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings

from avb_service.algorithms import TABLE
from avb_service.settings import ExperimentConfig
from tests.small import small_config


def pytest_configure() -> None:
    """One thread: on small tensors, threads cost more than they bring. And other work on the machine is no failure."""
    torch.set_num_threads(1)
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `method` runs once for each line of the table."""
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", sorted(TABLE))


@pytest.fixture(scope="session")
def small() -> Callable[..., ExperimentConfig]:
    """`small_config`."""
    return small_config
