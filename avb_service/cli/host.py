"""Commands about where all is kept and runs: the MLflow server, its store, a cluster.

Floor 10. What a command needs is imported when it runs, so that help answers at once.
"""

import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from avb_service import rows, tables
from avb_service.cli.options import (
    Json,
    say,
)
from avb_service.display import Display
from avb_service.errors import UserError

app = typer.Typer()
clusters = typer.Typer(help="Look at the hosts of a cluster.", no_args_is_help=True)
app.add_typer(clusters, name="cluster")


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 5000,
    secrets: Annotated[Path | None, typer.Option(help="Ask for a login; deploy/secrets.sh makes this folder.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(envvar="AVB_ARTIFACTS", help="A folder or bucket; beside a SQLite file unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the MLflow UI for the tracking file, or for the database in MLFLOW_TRACKING_URI."""
    from avb_service.tracking import check_server, server_command
    from avb_service.tracking.server import check_port, page

    command = server_command(host, port, secrets=secrets, artifacts=artifacts)
    os.environ.update(command.environment)  # the way into the database may be among the secrets
    check_port(host, port)
    url = f"http://{host}:{port}"
    row = {"url": url, "runs": page(url, "experiments"), "models": page(url, "models"), "recorded_at": check_server()}
    text = f"runs and plots: {row['runs']}\nmodels: {row['models']}"
    say(as_json, row, partial(Display().note, text))
    sys.stdout.flush()
    os.dup2(2, 1)  # the server's log is no JSON
    os.execvp(command.arguments[0], command.arguments)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Made by this; absent or empty.")], as_json: Json = False
) -> None:
    """Copy the runs, models and users of a tracking file into a folder, also while a server runs on it."""
    from avb_service.tracking.backup import backup as save

    saved = save(folder)
    say(as_json, asdict(saved), f"{saved} are in {folder}; avb restore {folder} brings them back")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="What `avb backup` made.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put aside what is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a backup back, verified, to where MLFLOW_TRACKING_URI says; stop the server there first."""
    from avb_service.tracking.backup import restore as bring_back

    restored = bring_back(folder, replace=replace)
    say(as_json, asdict(restored), f"{restored} are back at {restored.place}")


@clusters.command()
def check(
    file: Annotated[Path, typer.Argument(help="The cluster file.")] = Path("ray_cluster.yaml"), as_json: Json = False
) -> None:
    """Before `ray up`: what would go wrong, and on which host. After it: what each host has."""
    from avb_service.distributed.check import check as look
    from avb_service.distributed.cluster_file import ClusterFile

    cluster = ClusterFile.read(file)
    report = look(cluster)
    hosts = [rows.host(address, has, report.members) for address, has in report.hosts.items()]
    told = {"up": report.members is not None, "hosts": hosts, "problems": list(report.problems)}
    say(as_json, told, partial(tables.hosts, hosts) if hosts else None)
    if report.problems:
        count = "1 problem" if len(report.problems) == 1 else f"{len(report.problems)} problems"
        raise UserError("\n".join([f"{file}: {count}", *(f"  {problem}" for problem in report.problems)]))
    state = f"{len(cluster.hosts)} hosts are ready for `ray up`" if report.members is None else "the cluster is up"
    Display().note(state)
