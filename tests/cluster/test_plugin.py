"""The example package, installed from its wheel beside ours: trained, searched, registered, pulled, and missed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

import avb_service
from avb_service.errors import UserError
from avb_service.testing import methods
from tests.answers import told

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
AVB = ["-c", "from avb_service.cli import main; main()"]
FEW = {"algorithm.mixing_draws": 4, **methods.FEW, "data.limit": 300}
SPACE = {
    "preset": "sivi_rings",
    "set": FEW,
    "space": {"algorithm.decoder.width": {"choice": [16, 32]}},
    "trials": 1,
}


class Desk:
    """A directory to work in, and an environment of its own in which the package is installed and ours can be seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, str(folder / "env" / "bin" / "python")
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
        # A cluster that happens to run on this machine is not ours to use.
        self.environment = {**kept, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
        venv.create(folder / "env")
        paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        site = Path(sysconfig.get_path("purelib", "venv", paths))
        (site / "beside.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")

    def install(self, wheel: Path) -> None:
        subprocess.run([*PIP, "--python", self.python, "install", "--no-deps", "--no-index", wheel], check=True)

    def run(self, *arguments: str, where: str = ".") -> str:
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder / where,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    # pip builds where the sources are, and leaves things there.
    source = shutil.copytree(ROOT / "examples" / "plugin", desk.folder / "source")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", desk.folder, source], check=True)
    (wheel,) = desk.folder.glob("*.whl")
    desk.install(wheel)
    return desk


def test_its_own_tests_pass_where_it_is_installed(desk):
    assert " passed" in desk.run("-m", "pytest", where="source")


def test_it_is_listed_with_its_package_and_what_its_method_can_do(desk):
    (row,) = told("methods", desk.run(*AVB, "methods", "sivi", "--json"))
    assert row["package"] == "avb-sivi 0.1.0" and row["presets"] == ["sivi_digits", "sivi_rings"]
    assert row["encodes"] and "lower_bound" in row["log_likelihood"]
    assert "rings" in [row["name"] for row in told("datasets", desk.run(*AVB, "datasets", "--json"))]


def test_a_preset_of_its_own_is_trained_and_registered(desk):
    settings = [word for path, value in FEW.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    assert "models:/sivi-digits/1" in desk.run(*AVB, "train", "sivi_digits", *settings)


def test_what_a_search_over_its_settings_has_found_is_pulled_and_missed_where_it_is_not_installed(desk):
    (desk.folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    rows = told("tune", desk.run(*AVB, "tune", "--space", "space.yaml", "--json"))
    assert [(row["method"], row["model"].split("/")[1]) for row in rows if row["new"]] == [("sivi", "sivi-rings")]
    desk.run(*AVB, "pull", "models:/sivi-rings/1", "pulled")
    drawn = desk.run("-c", "import avb_service; print(*avb_service.load('pulled').sample(3, seed=0).shape)")
    assert drawn.split() == ["3", "1", "1", "2"]
    assert "avb-sivi" in (desk.folder / "pulled" / "card.md").read_text()
    with pytest.raises(UserError, match=r"avb-sivi 0\.1\.0, which is not installed: pip install avb-sivi==0\.1\.0"):
        avb_service.load(desk.folder / "pulled")
