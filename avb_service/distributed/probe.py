"""What runs on a host while `avb cluster check` looks at it: answers a line of JSON to each line of JSON.

Floor 8. It is sent as text to hosts where nothing is installed yet, so it needs an old Python's library alone. What it
has made is gone when the connection closes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec

MARK = "avb-probe "  # begins our lines, whatever else a login shell prints
PACKAGES = ("ray", "torch", "mlflow")
TOOLS = ("rsync", "flock", "setsid", "pgrep")
SECONDS = 3  # for a connection to another host
GIVEN_UP = re.compile(r"Terminating the node with id (\S+) and ip .*\(launch failed\)")  # what Ray's autoscaler notes


def facts(storage: str, token: str) -> dict[str, object]:
    """What the host has; leaves a mark in the shared folder, for the others to see."""
    return {
        "hostname": socket.gethostname(),
        "resolves": resolved(socket.gethostname()),
        "python": list(sys.version_info[:3]),
        "venv": all(find_spec(name) is not None for name in ("venv", "ensurepip")),
        "lacks": [tool for tool in TOOLS if shutil.which(tool) is None],
        "storage": mark(storage, token),
        "ray": foreign(os.environ.get("AVB_TMP") or "/tmp/ray"),
        "open": bool(os.path.isdir(storage) and os.stat(storage).st_mode & 0o022),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "versions": packages(),
    }


def packages() -> dict[str, str]:
    """The versions of what has to be the same on all hosts, so far as it is there."""
    found = {name: version for name in PACKAGES for version in [installed(name)] if version}
    return {**found, **plugins()}


def plugins() -> dict[str, str]:
    """The packages that add methods, networks or data to ours, and their versions."""
    try:
        from importlib.metadata import distributions
    except ImportError:
        return {}
    adds = (each for each in distributions() if any(p.group.startswith("avb_service.") for p in each.entry_points))
    return {each.metadata["Name"]: each.version for each in adds}


def resolved(name: str) -> str:
    """The address of a name; empty where it has none."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""


def mark(storage: str, token: str) -> str:
    """Why the shared folder cannot be written; empty where it can."""
    try:
        os.makedirs(storage, mode=0o700, exist_ok=True)
        with open(os.path.join(storage, token), "w"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def foreign(folder: str) -> str:
    """The folder, if it is there and not ours: Ray's sockets and code in it would be its owner's. Else empty."""
    try:
        found = os.lstat(folder)
    except OSError:
        return ""
    return folder if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() else ""


def gpus() -> int:
    """How many NVIDIA's driver knows."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return 0
    return listed.stdout.decode().count("GPU ") if listed.returncode == 0 else 0


def installed(name: str) -> str:
    """The version of a package; empty where it is not there."""
    try:
        from importlib.metadata import version

        return version(name)
    except ImportError:
        return ""


def listen(ports: list[int]) -> list[int | None]:
    """Accept connections on these ports, 0 for any; gives them, None where somebody else listens already."""
    opened: list[int | None] = []
    for port in ports:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            opened.append(None)
            continue
        server.listen(64)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        opened.append(server.getsockname()[1])
    return opened


def accept(server: socket.socket) -> None:
    """Let everybody in and out again."""
    while True:
        server.accept()[0].close()


def closed(targets: list[list]) -> list[list]:
    """Those of the targets [address, port] that cannot be connected to."""
    shut = []
    for address, port in targets:
        try:
            socket.create_connection((address, port), timeout=SECONDS).close()
        except OSError:
            shut.append([address, port])
    return shut


def members(storage: str) -> dict[str, list[float]]:
    """The hosts of the Ray cluster that runs here: address -> CPUs and GPUs; empty where none runs."""
    if not installed("ray"):
        return {}
    token = os.path.join(storage, "secrets", "ray_token")
    if os.path.exists(token):  # as deploy/install.sh has made it
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
    import ray

    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError:
        return {}
    alive = [node for node in ray.nodes() if node["Alive"]]
    return {node["NodeManagerAddress"]: [node["Resources"].get(key, 0) for key in ("CPU", "GPU")] for node in alive}


def given_up() -> list[str]:
    """Hosts on which Ray did not start, by what the autoscaler on this host, the head, has noted; none elsewhere."""
    log = os.path.join(os.environ.get("RAY_TMPDIR") or "/tmp/ray", "session_latest", "logs", "monitor.log")
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            noted = [GIVEN_UP.search(line) for line in file if "launch failed" in line]
    except OSError:
        return []
    return sorted({found.group(1) for found in noted if found})


def main(storage: str, token: str) -> None:
    """Answer until nobody asks."""
    storage = os.path.expanduser(storage)
    answers: dict[str, Callable[..., object]] = {
        "facts": lambda: facts(storage, token),
        "marks": lambda: [name for name in os.listdir(storage)] if os.path.isdir(storage) else [],
        "listen": listen,
        "closed": closed,
        "members": lambda: members(storage),
        "given_up": given_up,
    }
    try:
        for line in sys.stdin:
            question, *given = json.loads(line)
            print("\n" + MARK + json.dumps(answers[question](*given)), flush=True)
    finally:
        path = os.path.join(storage, token)
        if os.path.exists(path):
            os.remove(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
