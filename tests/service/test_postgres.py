"""The server on PostgreSQL, as deploy/compose.yaml has it, and the backup that docs/operations.md describes."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import urllib3
from behind_a_login import samples, serving

from avb_service.tracking import Run, register

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))  # Debian keeps it off the PATH
USER = "postgres" if os.geteuid() == 0 else None  # it refuses to be started by root


@dataclass
class Postgres:
    """A database of our own, whose only password is among the secrets."""

    place: Path
    port: int

    def run(self, program: str, *arguments: str, **more: Any) -> None:
        """One of its programs, which asks for no password."""
        here = {"PGPASSFILE": str(self.place / "pgpass"), "PGHOST": "127.0.0.1", "PGPORT": str(self.port)}
        environment = {**os.environ, **here, "PGUSER": "mlflow"}
        subprocess.run([BIN / program, *arguments], env=environment, cwd=self.place, check=True, user=USER, **more)

    def uri(self, database: str) -> str:
        """As in deploy/compose.yaml."""
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/{database}"


@pytest.fixture
def postgres(secrets) -> Iterator[Postgres]:
    if not (BIN / "initdb").exists():
        pytest.skip("needs PostgreSQL's server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        database = Postgres(Path(tempfile.mkdtemp(prefix="avb-postgres-")), probe.getsockname()[1])
    for name in ("pgpass", "postgres_password"):
        shutil.copy(secrets / name, database.place)
    if USER:
        for path in (database.place, *database.place.iterdir()):
            shutil.chown(path, USER)
    settings = f"-F -c listen_addresses=127.0.0.1 -c port={database.port} -c unix_socket_directories="
    quiet = {"stdout": subprocess.DEVNULL}
    try:
        password = ("--auth=scram-sha-256", "--pwfile=postgres_password")
        database.run("initdb", "--pgdata=data", "--username=mlflow", *password, "--no-sync", **quiet)
        database.run("pg_ctl", "--wait", "--pgdata=data", "--log=log", f"--options={settings}", "start", **quiet)
        database.run("createdb", "mlflow")
        yield database
    finally:
        database.run("pg_ctl", "--wait", "--pgdata=data", "--mode=immediate", "stop", **quiet)
        shutil.rmtree(database.place)


def test_a_store_in_postgresql_is_dumped_and_restored(postgres, vae_folder, secrets, password, tmp_path, monkeypatch):
    artifacts, log, dump = tmp_path / "artifacts", tmp_path / "server.log", postgres.place / "mlflow.dump"
    with serving(postgres.uri("mlflow"), secrets, log, str(artifacts)) as uri:
        assert urllib3.request("GET", uri, retries=False).status == 401
        run = Run.start("kept", "run", {"seed": 1}, uri=uri)
        register("kept", vae_folder, run.run_id, aliases=["champion"], uri=uri)
        expected = samples(uri, monkeypatch)
        postgres.run("pg_dump", "--format=custom", f"--file={dump}", "mlflow")
    assert (secrets / "postgres_password").read_text().strip() not in log.read_text()

    shutil.copytree(artifacts, tmp_path / "copied")
    shutil.rmtree(artifacts)
    postgres.run("createdb", "another")
    for _ in range(2):  # into an empty database, and over what is there
        postgres.run("pg_restore", "--dbname=another", "--clean", "--if-exists", "--single-transaction", str(dump))
    with serving(postgres.uri("another"), secrets, log, str(tmp_path / "copied")) as uri:
        assert urllib3.request("GET", uri, retries=False).status == 401
        assert torch.equal(samples(uri, monkeypatch), expected)
