"""A login for the MLflow server, its passwords and keys read from files that nobody else can read.

Floor 7. The folder is made by deploy/secrets.sh. What is in it reaches the server through its environment, where
neither a process list nor a log shows it.
"""

import configparser
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

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
