"""A login for the MLflow server: passwords and keys in files that nobody else can read; who is refused, and why.

Floor 7. The folder is made by deploy/secrets.sh. What is in it reaches the server through its environment, where
neither a process list nor a log shows it.
"""

import configparser
import os
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from avb_service.errors import UserError

CONTENTS = {"mlflow_password": "MLFLOW_AUTH_ADMIN_PASSWORD", "mlflow_session_key": "MLFLOW_FLASK_SERVER_SECRET_KEY"}
PATHS = {"pgpass": "PGPASSFILE", "s3_credentials": "AWS_SHARED_CREDENTIALS_FILE"}  # whoever needs them reads them
ARGUMENTS = ("--app-name", "basic-auth")
DATABASE = "mlflow_users.db"  # users and what they may do; beside a SQLite file of runs, within another database


def read_secrets(folder: Path) -> dict[str, str]:
    """What a server with a login needs in its environment.

    Args:
        folder: holds `mlflow_password` and `mlflow_session_key`; where needed, `pgpass` and `s3_credentials` too.

    Raises:
        UserError: a file is missing, empty, or others may read it.
    """
    if find_spec("flask_wtf") is None:
        raise UserError("a login needs more of MLflow than is installed here: pip install 'mlflow[auth]'")
    values = {variable: _read(folder / name) for name, variable in CONTENTS.items()}
    paths = {variable: folder / name for name, variable in PATHS.items() if (folder / name).exists()}
    for path in paths.values():
        _private(path)
    return values | {variable: str(path.absolute()) for variable, path in paths.items()}


def write_settings(folder: Path, users: str) -> dict[str, str]:
    """Write what MLflow wants to read of logins from a file; where it is, for the environment.

    Nobody may see what others have made unless they are given it.

    Args:
        folder: of the secrets of this server; where it cannot be written, as in a container, a temporary one serves.
        users: URI of the database of users.
    """
    settings = configparser.ConfigParser(interpolation=None)
    settings["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": users.replace("%", "%%"),  # MLflow interpolates
        "admin_username": "avb",
        "auth_cache_ttl_seconds": "60",  # a password is not hashed again for every point of a curve
    }
    place = folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="avb-login-"))
    path = place.absolute() / "basic_auth.ini"
    path.touch(mode=0o600)  # the database's address may tell more than its name
    with path.open("w", encoding="utf-8") as file:
        settings.write(file)
    return {"MLFLOW_AUTH_CONFIG_PATH": str(path)}


def refusal(uri: str, status: int, answer: str) -> str:
    """Why a server does not let us in, and what mends it, in one sentence without its subject.

    Args:
        uri: of the server.
        status: 401 or 403, that it answered with.
        answer: what it said besides.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    server, (user, password) = urlsplit(uri), read_mlflow_creds()
    if status == 403 and "host" in answer.lower():
        return (
            f"refuses to be called {server.netloc}: call it by a name that it knows, or start it with this one in "
            "MLFLOW_SERVER_ALLOWED_HOSTS (AVB_HOSTS of deploy/compose.yaml)"
        )
    if status == 403:
        return f"knows the user {user!r} and does not permit that: use another, or have whoever runs it permit it"
    if _is_here(server.hostname):
        kept = "it is in mlflow_password of the folder that `avb ui --secrets` was given"
    else:
        kept = (
            f"whoever runs {server.hostname} knows it; on the head of a cluster, ray exec ray_cluster.yaml 'cat "
            "$AVB_STORAGE/secrets/mlflow_password' prints it"
        )
    if not (user and password):
        lacking = " and ".join(
            name
            for name, value in (("MLFLOW_TRACKING_USERNAME", user), ("MLFLOW_TRACKING_PASSWORD", password))
            if not value
        )
        return f"asks for a login: set {lacking}, in the environment or ~/.mlflow/credentials. The password: {kept}"
    source = "MLFLOW_TRACKING_PASSWORD" if os.environ.get("MLFLOW_TRACKING_PASSWORD") else "~/.mlflow/credentials"
    return f"does not take the password of the user {user!r} that {source} holds: mend that. The password: {kept}"


def _is_here(host: str | None) -> bool:
    """Whether a name is this machine's: what can be bound to is."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    _private(path)
    content = path.read_text(encoding="utf-8").strip()
    if not content:
        raise UserError(f"{path} is empty: deploy/secrets.sh {path.parent} makes what is missing, once it is removed")
    return content


def _private(path: Path) -> None:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}. deploy/secrets.sh {path.parent} makes what is missing"
        ) from error
    if mode & 0o077:
        raise UserError(f"{path} may be read by others (mode {mode:o}): chmod 600 {path}")
