"""What the tests of servers and stores share: passwords, and a small model to keep."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from behind_a_login import SECRETS

from avb_service.experiment import Experiment
from avb_service.likelihood import LikelihoodRecord


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([SECRETS, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def password(secrets) -> Iterator[str]:
    """The admin's, used by whatever runs here meanwhile."""
    word = (secrets / "mlflow_password").read_text().strip()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_USERNAME", "avb")
        patched.setenv("MLFLOW_TRACKING_PASSWORD", word)
        yield word


@pytest.fixture(scope="module")
def vae_folder(small, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    trained = Experiment(small("vae"), place / "checkpoints")
    trained.fit()
    return trained.publish(place / "model", "# VAE", LikelihoodRecord({"data_sha256": "ab"}, (), None))
