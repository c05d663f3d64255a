"""Where runs are tracked: a server on the network, or a SQLite file with a folder of artifacts beside it.

Floor 7.
"""

import logging
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from avb_service.errors import UserError
from avb_service.places import settle
from avb_service.tracking import login

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
PATIENCE = 5  # seconds for a server to answer; MLflow itself would go on asking for minutes

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one for each small file, also where nobody looks
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the command, which may print JSON
    "PGCONNECT_TIMEOUT": str(PATIENCE),  # libpq's own is minutes
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are not those of the directory it is published from
}


def tracking_uri(uri: str | None = None) -> str:
    """The absolute tracking URI: as given, else MLFLOW_TRACKING_URI, else a SQLite file under ./runs.

    Workers run in directories of their own, so a relative path is resolved here, once.

    Raises:
        UserError: it is no address; or it holds a password, which would be in logs, files and lists of processes.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}runs/mlflow.db"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UserError(f"MLFLOW_TRACKING_URI: that is no address: {error}") from error
    if parts.password is not None or (parts.username is not None and parts.scheme in ("http", "https")):
        raise UserError(
            f"MLFLOW_TRACKING_URI, of {parts.hostname}, shows a password or token to whoever reads logs or lists "
            "processes. Leave it out, and give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a file that "
            "only you can read: ~/.mlflow/credentials for a server, ~/.pgpass for PostgreSQL"
        )
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):  # MLflow's former folders
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri}, expected the address of a server, such as http://HOST:5000, of a file, "
            f"such as {SQLITE}runs/mlflow.db, or of a database, such as postgresql://HOST/NAME"
        )
    return f"{SQLITE}{quote(str(database_path(uri)), safe='/ ')}" if uri.startswith(SQLITE) else uri.rstrip("/")


def artifact_root(uri: str) -> Path | None:
    """The folder of artifacts beside a SQLite file; None where a server decides."""
    return database_path(uri).parent / "artifacts" if uri.startswith(SQLITE) else None


def connect(uri: str) -> "MlflowClient":
    """A client that is bound to a URI and not to MLflow's global state."""
    _prepare()
    from mlflow import MlflowClient

    if not uri.startswith(SQLITE):
        return MlflowClient(uri, registry_uri=uri)
    with _alone(database_path(uri)):
        return MlflowClient(uri, registry_uri=uri)


def check_server(uri: str | None = None) -> str:
    """Make sure that runs can be tracked, before anything expensive starts.

    Returns:
        The absolute tracking URI.

    Raises:
        UserError: nothing answers there within seconds, it refuses us, or the file cannot be written.
    """
    uri = tracking_uri(uri)
    if uri.startswith(("http://", "https://")):
        _check_http(uri)
    elif not uri.startswith(SQLITE):
        _check_database(uri)
    with refusals(f"cannot track runs at {uri}"):
        connect(uri).search_experiments(max_results=1)
    return uri


def page(url: str, what: str) -> str:
    """Where a browser finds a server's `experiments` or `models`; its own start page is for prompts and agents."""
    return f"{url}/#/{what}?workflowType=machine_learning"


def check_port(host: str, port: int) -> None:
    """Make sure that a server can listen; MLflow's would say so amid its log, and end as if all were well.

    Raises:
        UserError: another listens there, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no obstacle
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}. Choose another --port or --host, or end "
            "what listens there"
        ) from error


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Tell the user what MLflow refused to do, and why."""
    _prepare()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"{what}: {error.message}") from error


@contextmanager
def existing_is_fine() -> Iterator[None]:
    """Make something that another process may just have made."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def every(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401
    """All results of one of MLflow's searches, page by page."""
    token: str | None = ""
    while token is not None:
        page = search(*args, page_token=token or None, **kwargs)
        yield from page
        token = page.token or None


class ServerCommand(NamedTuple):
    """A command line, and what its environment needs on top of ours."""

    arguments: list[str]
    environment: dict[str, str]


def server_command(
    host: str = "127.0.0.1",
    port: int = 5000,
    uri: str | None = None,
    *,
    secrets: Path | None = None,
    artifacts: str | None = None,
) -> ServerCommand:
    """The command that serves the MLflow UI for a SQLite file or another database.

    Args:
        host: the address that it listens on.
        port: where it listens.
        uri: the database, as `tracking_uri` reads it.
        secrets: a folder that `read_secrets` reads; with it, the server asks for a login.
        artifacts: a folder or bucket; beside a SQLite file unless given.

    Raises:
        UserError: the tracking URI is a server already or shows a password, the secrets cannot be used, or nobody says
            where artifacts go.
    """
    uri = tracking_uri(uri)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"{uri} is a server already: open it in a browser")
    root = artifact_root(uri)
    place = artifacts or (root.as_uri() if root else None)
    if place is None:
        raise UserError(f"{uri} holds no artifacts: name a folder or bucket for them with --artifacts")
    # Job execution would start eight processes of 225 MB each, for services that we do not offer.
    environment = {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if secrets is not None:
        users = f"{SQLITE}{quote(str(database_path(uri).parent / login.DATABASE), safe='/ ')}" if root else uri
        environment |= login.read_secrets(secrets) | login.write_settings(secrets, users)
    arguments = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        uri,
        "--artifacts-destination",
        place,
        *(login.ARGUMENTS if secrets is not None else ()),
    ]
    return ServerCommand(arguments, environment)


def _prepare() -> None:
    """Settle what MLflow reads from the environment when it is imported, unless the user has settled it."""
    settle()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # which tables it creates is no news to anybody


def database_path(uri: str) -> Path:
    """The file that a SQLite URI names."""
    return Path(unquote(uri.removeprefix(SQLITE))).absolute()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Open a file as its only user: MLflow makes its tables without a lock, and trials that start together collide.

    It is opened for writing here first, since MLflow would retry a folder that cannot be written for two minutes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # a lock would wait for ever where none can be made
            pass
        with FileLock(path.with_suffix(".lock")):
            with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
                database.execute("BEGIN IMMEDIATE")
            yield
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"cannot write the tracking file {path}: {error}. "
            "Run from a directory that can be written, or name another place with MLFLOW_TRACKING_URI"
        ) from error


def _check_http(uri: str) -> None:
    _prepare()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    ask = "/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        response = http_request(get_default_host_creds(uri), ask, "GET", max_retries=0, timeout=PATIENCE)
    except MlflowException as error:
        raise UserError(
            f"no MLflow server answers at {uri} within {PATIENCE} s: start it (avb ui), mend the address in "
            "MLFLOW_TRACKING_URI, or unset that to track into a local file"
        ) from error
    if response.status_code in (401, 403):
        raise UserError(f"the MLflow server at {uri} {login.refusal(uri, response.status_code, response.text)}")
    if response.status_code != 200 or "json" not in response.headers.get("Content-Type", ""):
        raise UserError(
            f"what answers at {uri} is no MLflow server: status {response.status_code}, expected a list of "
            "experiments; mend the address in MLFLOW_TRACKING_URI"
        )


def _check_database(uri: str) -> None:
    """Connect once: MLflow would go on trying for minutes, also with a wrong password."""
    _prepare()
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from sqlalchemy.exc import SQLAlchemyError

    if not uri.startswith(tuple(DATABASE_ENGINES)):
        return  # MLflow itself says what it does not know
    try:
        engine = create_sqlalchemy_engine(uri)
        engine.connect().close()
        engine.dispose()
    except ImportError as error:
        raise UserError(
            f"{uri} needs a driver that is not installed here ({error}): pip install 'avb-service[postgres]' for "
            "PostgreSQL"
        ) from error
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UserError(
            f"cannot use the database at {uri}: {reason}. Start it, mend the address in MLFLOW_TRACKING_URI, or unset "
            "that to track into a local file"
        ) from error
