"""What is wrong with hosts, by what they say of themselves: a line for each fault, with what to do.

Floor 8.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from avb_service.distributed import absent, probe
from avb_service.distributed.cluster_file import ClusterFile

PYTHON = (3, 11)


def wanting(cluster: ClusterFile, hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the hosts lack, by what they say of themselves."""
    found = []
    for host, has in hosts.items():
        version = ".".join(map(str, has["python"]))
        if tuple(has["python"]) < PYTHON:
            found.append(f"{host}: python3 is {version}: install 3.11 or newer, the same minor version everywhere")
        if not has["venv"] and not has["versions"]:
            found.append(f"{host}: python3 has no venv: install it (Debian: apt install python3-venv)")
        if has["lacks"]:
            found.append(f"{host}: lacks {', '.join(has['lacks'])}: install (Debian: rsync, util-linux, procps)")
        if has["open"]:
            found.append(
                f"{host}: others may write {cluster.storage}, and by it run code as {cluster.user}: there, "
                f"chmod go-w {cluster.storage}"
            )
        if has["ray"]:
            found.append(
                f"{host}: {has['ray']}, where Ray would keep sockets and code, is somebody else's: have it removed, or "
                "export AVB_TMP=FOLDER in ~/.bashrc there"
            )
        if has["storage"]:
            found.append(f"{host}: {cluster.user} cannot write {cluster.storage}: {has['storage']}")
        if not has["resolves"] or ip_address(has["resolves"]).is_loopback:
            where = f"resolves to {has['resolves']}" if has["resolves"] else "has no address"
            found.append(
                f"{host}: its name {has['hostname']} {where} there, so workers of one model on several hosts would not "
                f"find each other: in its /etc/hosts, write {host} before {has['hostname']}"
            )
    minors = {host: ".".join(map(str, has["python"][:2])) for host, has in hosts.items()}
    kinds = {"python3": minors}
    plugins = {package for has in hosts.values() for package in has["versions"]} - {*probe.PACKAGES}
    for package in probe.PACKAGES:
        kinds[package] = {host: has["versions"][package] for host, has in hosts.items() if package in has["versions"]}
    for package in sorted(plugins):
        kinds[package] = {host: has["versions"].get(package, "none") for host, has in hosts.items() if has["versions"]}
    return [*found, *mixed(kinds)]


def mixed(kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is not the same on all hosts, by what it is and by host."""
    return [
        f"{kind}: {', '.join(f'{version} on {host}' for host, version in versions.items())}: install the same version "
        "everywhere"
        for kind, versions in kinds.items()
        if len(set(versions.values())) > 1
    ]


def not_shared(cluster: ClusterFile, marks: Mapping[str, str], seen: Mapping[str, Sequence[str]]) -> list[str]:
    """Hosts whose shared folder is not the one that the first of them has."""
    if not seen:
        return []
    first = next(iter(seen))
    return [
        f"{host}: {cluster.storage} is not the folder that {first} has: mount the same disk on both, or name another "
        "folder in setup_commands"
        for host in seen
        if marks[first] not in seen[host] or marks[host] not in seen[first]
    ]


def unreached(closed: Mapping[str, Iterable[tuple[str, int]]], fixed: Collection[tuple[str, int]]) -> list[str]:
    """Connections that were tried in vain."""
    found = []
    for host, shut in closed.items():
        for address, port in shut:
            what = f"port {port}" if (address, port) in fixed else "the ports that Ray chooses"
            found.append(f"{host}: cannot connect to {what} of {address}: open it in the firewall between the hosts")
    return found


def occupied(opened: Mapping[str, Sequence[int | None]], ports: Sequence[int]) -> list[str]:
    """Ports that another program has, before `ray up`: those that a host could not open."""
    return [
        f"{host}: another program has port {port}: end it, or the Ray that was left there (ray down)"
        for host, got in opened.items()
        for port, mine in zip(ports, got, strict=True)
        if mine is None
    ]


def misplaced(cluster: ClusterFile, members: Mapping[str, Any], failed: Collection[str], serving: bool) -> list[str]:
    """After `ray up`: hosts that have not joined, and a head whose MLflow is not serving."""
    found = [absent.line(host, failed) for host in cluster.hosts if not absent.joined(host, members)]
    idle = [] if serving else [f"{cluster.hosts[0]}: MLflow does not run: see ~/avb-service/mlflow.log there"]
    return [*found, *idle]
