"""Hosts that a cluster of `ray up` lacks: those that may still come, and those on which Ray does not start.

Floor 8. Ray's autoscaler, on the head, tries to start a host once, notes in its log that it has failed, and never tries
again; nor does it tell anybody else.
"""

import socket
from collections.abc import Collection
from pathlib import Path

import yaml

from avb_service.distributed import probe

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # what `ray up` leaves on the head
WHY = "ray exec ray_cluster.yaml 'tail -n 100 $RAY_TMPDIR/session_latest/logs/monitor.*'"


def line(host: str, failed: Collection[str]) -> str:
    """What is said of a host that has not joined.

    Args:
        host: as the cluster file names it.
        failed: those on which Ray does not start.
    """
    if host in failed:
        return f"{host}: Ray does not start there, and is not tried again. {WHY} says why; mend that, then ray up"
    return f"{host}: has not joined the cluster: wait while it installs, a quarter of an hour at most. {WHY} shows how"


def failed(present: Collection[str]) -> tuple[list[str], int | None]:
    """Hosts on which Ray does not start, and how many the cluster can have without them.

    Args:
        present: addresses of those that have joined.

    Returns:
        The hosts, as the cluster file names them, and the number; none and None on any machine but the head.
    """
    try:
        provider = yaml.safe_load(Path(BOOTSTRAP).expanduser().read_text(encoding="utf-8"))["provider"]
        hosts = [provider["head_ip"], *provider["worker_ips"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return [], None
    if not joined(hosts[0], present):  # another cluster than the one that is used
        return [], None
    lost = [host for host in probe.given_up() if host in hosts and not joined(host, present)]
    return lost, len(hosts) - len(lost)


def joined(host: str, present: Collection[str]) -> bool:
    """Whether a host, which may be given by its name, is among addresses."""
    return host in present or address(host) in present


def address(host: str) -> str:
    """Of a name; the name itself where it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host
