import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avb_service.tuning.space import read_space

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "ray_cluster.yaml"
REQUIREMENTS = ROOT / "deploy" / "requirements.py"


def requirements(pyproject: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the check says of this Python and a project that needs something else."""
    (folder / "deploy").mkdir()
    (folder / "deploy" / "requirements.py").write_text(REQUIREMENTS.read_text())
    (folder / "pyproject.toml").write_text(pyproject)
    return subprocess.run([sys.executable, folder / "deploy" / "requirements.py"], capture_output=True, text=True)


def test_every_folder_and_script_that_the_cluster_needs_is_sent_there():
    cluster = yaml.safe_load(CLUSTER.read_text())
    mounts = cluster["file_mounts"]
    assert all((ROOT / local).exists() for local in mounts.values())
    for section in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[section]:
            for word in command.split():
                if word.startswith("~/avb-service/"):
                    folder, script = word.rsplit("/", 1)
                    assert (ROOT / mounts[folder] / script).is_file(), word


def test_the_lines_to_edit_stand_above_all_others():
    marked = [number for number, line in enumerate(CLUSTER.read_text().splitlines()) if "# EDIT" in line]
    keys = list(yaml.safe_load(CLUSTER.read_text()))
    assert keys[:3] == ["provider", "auth", "setup_commands"]
    assert len(marked) == 5 and marked[-1] - marked[0] < 10


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ["AVB_NODES=${AVB_NODES:-4}"]),  # the head, and those that Ray is to start
        ({"RAY_HEAD_IP": "10.9.8.7"}, ["MLFLOW_TRACKING_URI=http://10.9.8.7:5000"]),  # as `ray up` calls it on a worker
    ],
)
def test_a_host_that_has_everything_learns_where_it_is(tmp_path, more, expected):
    project = installed(tmp_path, **more)
    written = (project / "env.sh").read_text().split()
    assert [word for word in written if word in expected] == expected
    assert any(word.startswith("AVB_NODES=") for word in written) == (not more)
    assert (tmp_path / ".bashrc").read_text().count("env.sh; fi") == 1


RAY = """#!/bin/bash
echo "$@" >> "$ASKED"
[ "$1" != start ] || [ "$(grep -c ^start "$ASKED")" -gt "$FAILS" ]
"""


def started(tmp_path: Path, fails: int = 0) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Ray, started as on a host, where it fails so many times; and what it was told."""
    asked, programs = tmp_path / "asked", tmp_path / "bin"
    programs.mkdir()
    for name, text in {"ray": RAY, "sleep": "#!/bin/bash\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(tmp_path / "ray"),
        "ASKED": str(asked),
        "FAILS": str(fails),
        "AVB_RAY_PORTS": "",
    }
    command = ["bash", str(ROOT / "deploy" / "start.sh"), "--head"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    return done, asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_ray_is_started_three_times_and_leaves_nothing_where_it_fails(tmp_path, fails):
    done, told = started(tmp_path, fails)
    assert [line.split()[0] for line in told] == [*["start", "stop"] * fails, *["start"] * (fails < 3)]
    assert done.returncode == (fails == 3)
    assert ("Ray did not start" in done.stderr) == (fails == 3)


@pytest.mark.parametrize("laid", [False, True], ids=["nothing there", "a link laid for us"])
def test_ray_starts_below_a_folder_of_ours_alone_or_not_at_all(tmp_path, laid):
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "ray"
    elsewhere.mkdir(mode=0o755)
    if laid:
        place.symlink_to(elsewhere)
    done, told = started(tmp_path)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    if laid:
        assert done.returncode == 1 and not told
        assert f"{place} is somebody else's: have it removed, or export AVB_TMP=FOLDER" in done.stderr
    else:
        assert told == [f"start --temp-dir={place}/ray --disable-usage-stats --head"]
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


def installed(tmp_path: Path, **more: str) -> Path:
    """The project, installed twice on a host that has all packages; it writes the same again."""
    types = {"head": {"min_workers": 0}, "cpu": {"min_workers": 2}, "gpu": {"min_workers": 1, "max_workers": 3}}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"available_node_types": types}))
    project = tmp_path / "avb-service"
    shutil.copytree(ROOT / "deploy", project / "deploy")
    shutil.copy(ROOT / "pyproject.toml", project)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": path,
        "RAY_HEAD_IP": "",
        **more,
    }
    for _ in range(2):
        subprocess.run(["bash", project / "deploy" / "install.sh", tmp_path / "shared"], env=environment, check=True)
    return project


@pytest.mark.parametrize("script", sorted(ROOT.glob("deploy/*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


def test_this_python_has_what_the_project_needs(tmp_path):
    checked = requirements((ROOT / "pyproject.toml").read_text(), tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_what_a_python_lacks_is_named(tmp_path):
    checked = requirements('[project]\ndependencies = ["numpy>=2", "numpy<1", "no-such-package-of-ours"]', tmp_path)
    assert checked.returncode == 1
    assert "lacks numpy<1, no-such-package-of-ours" in checked.stderr


def test_the_smoke_search_is_a_search():
    assert read_space(ROOT / "tune_spaces" / "digits_smoke.yaml").trials == 4
