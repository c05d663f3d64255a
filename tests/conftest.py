"""What all tests share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from avb_service.algorithms import METHODS
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
        metafunc.parametrize("method", sorted(METHODS.own))


@pytest.fixture(scope="session")
def small() -> Callable[..., ExperimentConfig]:
    """`small_config`."""
    return small_config


@pytest.fixture(scope="session")
def new_store(tmp_path_factory) -> Callable[[Path], str]:
    """A function that lays an empty tracking file and gives its URI; MLflow takes seconds to make the tables of one."""
    from avb_service.tracking import check_server

    made = tmp_path_factory.mktemp("tables") / "mlflow.db"
    check_server(f"sqlite:///{made}")

    def lay(file: Path) -> str:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, file)
        return f"sqlite:///{file}"

    return lay
