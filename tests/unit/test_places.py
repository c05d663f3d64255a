"""A home that cannot be written, or is not there, stops nobody; what finds no other place is named before any work."""

import getpass
import json
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from avb_service import build, cli, places
from avb_service.distributed import cluster, own
from avb_service.errors import UserError
from avb_service.tuning import search

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
KEPT = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    """Where nothing is settled yet, and temporary files have a short path of their own."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in KEPT:
        os.environ.pop(name, None)
    (tmp_path / "home").mkdir()
    os.environ["HOME"] = str(tmp_path / "home")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.chdir(tmp_path)
        yield


def nobody(monkeypatch) -> None:
    """Be a user whom the system does not know, and who has no home."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in (*NAMES, "HOME"):
        os.environ.pop(name, None)


def no_home(kind: str, monkeypatch, tmp_path) -> None:
    """Have a home of that kind."""
    if kind == "unknown":
        nobody(monkeypatch)
    elif kind == "a file":
        (tmp_path / "file").touch()
        os.environ["HOME"] = str(tmp_path / "file")
    elif kind == "below a file":
        (tmp_path / "file").touch()
        os.environ["HOME"] = str(tmp_path / "file" / "home")
    elif kind == "of the kernel":
        os.environ["HOME"] = "/proc/1"
    elif kind == "caches of somebody else":
        for name in (".cache", ".config"):
            (tmp_path / "home" / name).touch()


HOMES = ("unknown", "a file", "below a file", "of the kernel", "caches of somebody else")
as_user = pytest.mark.parametrize("home", HOMES)


@as_user
def test_libraries_are_given_places_that_can_be_written(home, monkeypatch, tmp_path):
    no_home(home, monkeypatch, tmp_path)
    if home == "unknown":
        monkeypatch.setattr(places, "writable", lambda folder: not str(folder).startswith("/."))  # root may write there
    places.settle()
    assert getpass.getuser() and Path.home()
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        place = Path(os.environ[name])
        assert place.is_relative_to(places.private_folder())
        place.mkdir(parents=True, exist_ok=True)
    settled = dict(os.environ)
    places.settle()
    assert dict(os.environ) == settled


def test_a_home_that_can_be_written_and_what_the_user_has_set_are_left(tmp_path, monkeypatch):
    before = dict(os.environ)
    places.settle()
    assert dict(os.environ) == before and not list(Path(tempfile.gettempdir()).iterdir())
    os.environ.update(HOME="/proc/1", MPLCONFIGDIR="/mine", XDG_CACHE_HOME="/mine/too")
    before = dict(os.environ)
    places.settle()
    assert dict(os.environ) == before


def run(code: str) -> str:
    """What a process says that settles first, all that it prints of itself included."""
    told = subprocess.run(
        [sys.executable, "-c", f"from avb_service.places import settle; settle()\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
    )
    assert told.returncode == 0, told.stderr
    return told.stdout + told.stderr


def test_matplotlib_makes_no_noise():
    os.environ["HOME"] = "/proc/1"
    place = Path(tempfile.gettempdir()) / f"avb-{os.getuid()}" / "matplotlib"
    assert run("import matplotlib; print(matplotlib.get_cachedir())") == f"{place}\n"


@pytest.mark.parametrize("library", ["mlflow", "ray.train", "avb_service.tracking"])
def test_libraries_that_ask_for_the_home_when_they_are_imported_find_one(library):
    unknown = "import pwd, os\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"
    code = f"import avb_service.places as p\n{unknown}for name in {(*NAMES, 'HOME')}: os.environ.pop(name, None)\n"
    run(f"{code}p.settle()\nimport {library}, pathlib\nassert str(pathlib.Path.home()) == '/'")


def test_the_private_folder_is_private_and_stays_the_same():
    folder = places.private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and places.private_folder() == folder


@pytest.mark.parametrize("laid", ["a link", "a file", "open to others"])
def test_a_folder_that_somebody_else_may_have_laid_there_is_not_used(laid, tmp_path):
    place = Path(tempfile.gettempdir()) / f"avb-{os.getuid()}"
    if laid == "a link":
        place.symlink_to(tmp_path / "home")
    elif laid == "a file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(UserError, match=f"{place}.*TMPDIR"):
        places.private_folder()


def test_no_place_for_temporary_files_at_all_is_named(monkeypatch):
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(UserError, match=r"No usable temporary directory .*Name one with TMPDIR"):
        places.private_folder()


@as_user
def test_ray_needs_no_home(home, monkeypatch, tmp_path):
    no_home(home, monkeypatch, tmp_path)
    os.environ["RAY_AUTH_MODE"] = "token"
    places.settle()
    own.prepare()
    token, place = os.environ["RAY_AUTH_TOKEN"], Path(os.environ["RAY_TMPDIR"])
    assert len(token) == 64 and place == places.private_folder()
    own.prepare()
    assert os.environ["RAY_AUTH_TOKEN"] == token, "the same for all processes of this one"


def test_a_token_that_the_user_keeps_is_used_and_nobody_else_may_read_it(tmp_path):
    os.environ["RAY_AUTH_MODE"] = "token"
    kept = tmp_path / "home" / ".ray" / "auth_token"
    kept.parent.mkdir()
    kept.write_text("of mine")
    kept.chmod(0o644)
    own.prepare()
    assert "RAY_AUTH_TOKEN" not in os.environ and stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("")
    own.prepare()
    assert "RAY_AUTH_TOKEN" in os.environ, "an empty file holds none"


def test_where_no_token_is_asked_for_none_is_made():
    os.environ["RAY_AUTH_MODE"] = "disabled"
    own.prepare()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_temporary_files_with_a_long_path_leave_ray_a_short_one(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    asked = []
    monkeypatch.setattr(own, "private_folder", lambda within: asked.append(within) or tmp_path / "home")
    monkeypatch.setattr(own, "LONGEST", 1000)
    own.prepare()
    os.environ.pop("RAY_TMPDIR")
    monkeypatch.setattr(own, "LONGEST", 90)
    with suppress(UserError):  # where the folder of the test has a long path itself
        own.prepare()
    assert asked == [long, Path("/tmp")]


def test_a_long_path_that_the_user_has_named_is_refused(tmp_path):
    os.environ["RAY_TMPDIR"] = str(tmp_path / ("x" * 100))
    with pytest.raises(UserError, match=f"Ray cannot keep sockets in .* has {own.LONGEST} at most"):
        own.prepare()


def test_the_longest_path_that_is_let_through_holds_rays_sockets():
    """By Ray's own check, and its own names."""
    from ray._private.utils import validate_socket_filepath

    session = f"{'x' * own.LONGEST}/ray/session_2026-11-29_08-17-55_560001_{2**22}/sockets"
    validate_socket_filepath(f"{session}/plasma_store.1")
    with pytest.raises(OSError, match="length"):
        validate_socket_filepath(f"{session}/plasma_store.10")


BAD = {
    "RAY_TMPDIR": ("/proc/1", "Ray cannot keep sockets and logs in /proc/1/ray"),
    "RAY_AUTH_TOKEN_PATH": ("/proc/1/none", "RAY_AUTH_TOKEN_PATH=/proc/1/none: it cannot be read"),
    "AVB_STORAGE": ("/proc/1/runs", "cannot write /proc/1/runs/"),
    "MLFLOW_TRACKING_URI": ("sqlite:////proc/1/mlflow.db", "cannot write the tracking file /proc/1/mlflow.db"),
}  # fmt: skip
MOVED_BY = {"AVB_STORAGE": "--storage"}
COMMANDS = {"train": ["train", "vae_digits"], "tune": ["tune", "--space", "mine.yaml"]}


@pytest.fixture
def store(tmp_path, new_store) -> None:
    """Tables where a command would make them."""
    new_store(tmp_path / "runs" / "mlflow.db")


def left(monkeypatch, capsys, command: str) -> tuple[int, str]:
    """Run a command as from the shell: its exit code and what it says."""
    domain = {"algorithm.latent_dim": {"choice": [2]}}
    Path("mine.yaml").write_text(json.dumps({"preset": "vae_digits", "space": domain}))
    monkeypatch.setattr(sys, "argv", ["avb", *COMMANDS[command]])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variable", BAD)
def test_what_cannot_be_written_is_named_before_data_are_read(monkeypatch, capsys, command, variable):
    def read(*given: object, **more: object) -> None:
        pytest.fail("data were read")

    for module, name in ((build, "load_data"), (search, "load")):
        monkeypatch.setattr(module, name, read)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ[variable], expected = BAD[variable]
    code, said = left(monkeypatch, capsys, command)
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert expected in said and MOVED_BY.get(variable, variable) in said


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("command", COMMANDS)
@as_user
def test_commands_come_to_the_start_of_ray_without_a_home(home, monkeypatch, capsys, tmp_path, command):
    no_home(home, monkeypatch, tmp_path)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("RAY_AUTH_MODE", None)

    def interrupted(*given: object, **more: object) -> None:
        assert os.environ["RAY_TMPDIR"] == str(places.private_folder()) and os.environ["RAY_AUTH_TOKEN"]
        raise UserError("as far as that")

    monkeypatch.setattr(cluster, "cluster", interrupted)
    code, said = left(monkeypatch, capsys, command)
    assert code == 2 and said.endswith("error: as far as that\n"), said


def test_a_ray_that_does_not_start_is_one_message(monkeypatch):
    import ray

    def fails(**options: object) -> None:
        raise RuntimeError("The current node timed out during startup.\nThis could happen.")

    os.environ.pop("RAY_ADDRESS", None)
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(UserError, match=r"Ray does not start here: The current node timed .* logs are in /.*/ray/sess"):
        with cluster.cluster():
            pass
    assert "RAY_ADDRESS" not in os.environ


def test_a_cluster_that_asks_for_a_token_is_named_with_what_holds_it(monkeypatch):
    import ray
    from ray.exceptions import AuthenticationError

    def refuses(**options: object) -> None:
        raise AuthenticationError("Token authentication is enabled but Ray couldn't find an authentication token.")

    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    monkeypatch.setattr(ray, "init", refuses)
    connection = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(cluster.socket, "create_connection", lambda *where: connection)
    with pytest.raises(UserError, match="RAY_ADDRESS=127.0.0.1:1 asks for its token.*RAY_AUTH_TOKEN_PATH"):
        with cluster.cluster():
            pass
