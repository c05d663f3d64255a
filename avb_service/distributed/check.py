"""What would go wrong on the hosts of a cluster file, said before `ray up`; and afterwards, what each of them has.

Floor 8. Each host is asked over one SSH connection, by the program in probe.py, which is sent along.
"""

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import jsonschema

from avb_service.distributed import absent, probe
from avb_service.errors import ConfigError
from avb_service.trees import read_yaml

PYTHON = (3, 11)
RAY, MLFLOW = 6379, 5000  # on the head, as in ray_cluster.yaml
NODE = tuple(range(6380, 6386))  # on each host, as in deploy/install.sh; others connect to the first two
LOCAL = (6386, 6387, 8265, 10001)  # on the head alone
ANY = 0  # a port that is free
SECONDS = 60  # for an answer; a host that is busy takes some to start Python
CONNECT = 10
START = "import base64, sys; exec(base64.b64decode(sys.argv.pop(1)))"

# What begins with a dash would be an option of ssh.
ADDRESS, USER = r"[A-Za-z0-9][A-Za-z0-9_.:-]*", r"[A-Za-z0-9_][A-Za-z0-9_.-]*"

# What ssh says, and what to do about it.
REFUSALS = {
    "UNPROTECTED PRIVATE KEY": "ssh does not use {key}, which others may read: chmod 600 {key}",
    "Permission denied": "refuses {user} with the key {key}: ssh-copy-id -i {key} {user}@{host}",
    "Connection refused": "no sshd listens there: start it",
    "Could not resolve": "nobody knows that name: mend it in the cluster file, or give the address",
    "timed out": "does not answer: switch it on, or mend the address or the firewall (port 22)",
    "No route": "cannot be reached: switch it on, or mend the address",
    "unreachable": "cannot be reached: switch it on, or mend the address",
    "SyntaxError": "its python3 is far too old: install 3.11 or newer, the same minor version everywhere",
    "python3: not found": "has no python3: install 3.11 or newer, the same minor version everywhere",
}


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster file says of its hosts.

    Attributes:
        hosts: their addresses, the head first.
        user: who logs in.
        key: the private key.
        proxy: ssh's ProxyCommand; may be empty.
        storage: the folder that they share.
    """

    hosts: tuple[str, ...]
    user: str
    key: Path
    proxy: str
    storage: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file for `ray up` whose provider is local.

        Raises:
            ConfigError: it lacks what is needed, or the key is not there; names everything at once.
            UserError: it cannot be read, or is not YAML.
        """
        tree = read_yaml(path)
        provider, auth = _section(tree, "provider"), _section(tree, "auth")
        head: Any = provider.get("head_ip")
        workers: Any = provider.get("worker_ips")
        user: Any = auth.get("ssh_user")
        key: Any = auth.get("ssh_private_key")
        proxy: Any = auth.get("ssh_proxy_command")
        commands = tree.get("setup_commands")
        words = [_words(str(each)) for each in commands] if isinstance(commands, list) else []
        folders = [line[at + 1] for line in words for at, word in enumerate(line[:-1]) if word.endswith("/install.sh")]
        listed = isinstance(workers, list) and all(_is(ADDRESS, each) for each in workers)
        hosts = (head, *(workers if listed else ()))
        twice = [host for host, times in Counter(map(str, hosts)).items() if times > 1]
        wrong = {
            f"provider.type: given {provider.get('type')!r}, expected local": provider.get("type") != "local",
            f"provider.head_ip: given {head!r}, expected an address": not _is(ADDRESS, head),
            f"provider.worker_ips: given {workers!r}, expected a list of addresses": not listed,
            f"provider: {', '.join(twice)} is named twice": bool(twice),
            f"auth.ssh_user: given {user!r}, expected a name": not _is(USER, user),
            f"auth.ssh_private_key: there is no file {key}": not os.path.isfile(os.path.expanduser(str(key))),
            f"auth.ssh_private_key: {key} is the public half: name it without .pub": str(key).endswith(".pub"),
            f"auth.ssh_proxy_command: given {proxy!r}, expected a command": not isinstance(proxy, str | None),
            "setup_commands: expected bash .../deploy/install.sh SHARED_FOLDER": not folders,
            f"setup_commands: {' '.join(folders)} is no absolute path": any(f[0] not in "/~" for f in folders),
        }
        if problems := [text for text, is_so in wrong.items() if is_so] + refused_by_ray(tree, {"provider", "auth"}):
            raise ConfigError(problems, str(path))
        return cls(hosts, user, Path(key).expanduser(), proxy or "", folders[0])


def refused_by_ray(tree: Mapping[str, Any], apart: Collection[str]) -> list[str]:
    """What `ray up` would not take of a cluster file, by its own schema, apart from some sections."""
    schema = json.loads(files("ray").joinpath("autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft7Validator(schema).iter_errors(tree)
    return [
        ": ".join(filter(None, (".".join(map(str, error.absolute_path)), error.message)))
        for error in errors
        if not {*error.absolute_path} & {*apart}
    ]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        hosts: address -> what the host says of itself; those that can be reached.
        members: address -> CPUs and GPUs of the hosts in the Ray cluster; None where none runs.
        problems: one line each, with what to do.
    """

    hosts: Mapping[str, dict[str, Any]]
    members: Mapping[str, Sequence[float]] | None
    problems: Sequence[str]


class Lost(Exception):
    """A host gives no answer; the message says why."""


@dataclass
class Connection:
    """A host that is asked, until the block ends."""

    cluster: ClusterFile
    host: str
    token: str
    process: "subprocess.Popen[str]" = field(init=False)

    def __enter__(self) -> Self:
        """Log in."""
        program = base64.b64encode(Path(probe.__file__).read_bytes()).decode()
        # The shell is as Ray's, so that the same python3 is found.
        run = f'source ~/.bashrc; exec "${{AVB_PYTHON:-python3}}" -c {shlex.quote(START)} {program}'
        login = f"{run} {shlex.quote(self.cluster.storage)} {self.token}"
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT,
            "StrictHostKeyChecking": "no",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            **({"ProxyCommand": self.cluster.proxy} if self.cluster.proxy else {}),
        }
        self.process = subprocess.Popen(
            [
                "ssh",
                "-T",
                "-i",
                str(self.cluster.key),
                *(f"-o{name}={value}" for name, value in options.items()),
                f"{self.cluster.user}@{self.host}",
                f"bash --login -i -c {shlex.quote(login)}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up; the host removes what it has made."""
        try:
            self.process.communicate(timeout=CONNECT)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            self.process.kill()
            self.process.wait()

    def ask(self, question: str, *given: Any) -> Any:  # noqa: ANN401  any JSON
        """One of probe.py's answers.

        Raises:
            Lost: there is none; says why.
        """
        limit = threading.Timer(SECONDS, self.process.kill)
        limit.start()
        try:
            print(json.dumps([question, *given]), file=self.process.stdin, flush=True)
            for line in self.process.stdout or ():
                if line.startswith(probe.MARK):
                    return json.loads(line.removeprefix(probe.MARK))
        except BrokenPipeError:
            pass
        finally:
            limit.cancel()
        raise Lost(self._why())

    def _why(self) -> str:
        said = self.process.stderr.read() if self.process.stderr else ""
        for sign, remedy in REFUSALS.items():
            if sign in said:
                return remedy.format(key=self.cluster.key, user=self.cluster.user, host=self.host)
        last = said.strip().splitlines()[-1:] or [f"no answer within {SECONDS} s"]
        return f"could not be asked: {last[0]}"


def check(
    cluster: ClusterFile,
    head_ports: tuple[int, int] = (RAY, MLFLOW),
    node_ports: Sequence[int] = NODE,
    local_ports: Sequence[int] = LOCAL,
) -> Report:
    """Log in everywhere at once, look around, and try the connections that Ray will need.

    Args:
        cluster: whose hosts.
        head_ports: that the others must reach on the head: Ray's and MLflow's.
        node_ports: that Ray will have on each host, first the two that the others must reach.
        local_ports: that it will have on the head besides.
    """
    secret = secrets.token_hex(4)
    marks = {host: f".avb-check-{secret}-{index}" for index, host in enumerate(cluster.hosts)}
    head, problems = cluster.hosts[0], list[str]()
    with ExitStack() as stack, ThreadPoolExecutor(len(marks)) as pool:
        connections = {host: stack.enter_context(Connection(cluster, host, mark)) for host, mark in marks.items()}

        def ask(question: str, *given: Any, of: Iterable[str] = cluster.hosts) -> dict[str, Any]:  # noqa: ANN401
            """The answers of those that give any; who does not is a problem, and is not asked again."""
            asked = {host: pool.submit(connections[host].ask, question, *given) for host in of if host in connections}
            answers = {}
            for host, answer in asked.items():
                try:
                    answers[host] = answer.result()
                except Lost as lost:
                    problems.append(f"{host}: {lost}")
                    del connections[host]
            return answers

        hosts = ask("facts")
        problems += wanting(cluster, hosts)
        problems += not_shared(cluster, marks, ask("marks"))
        members = ask("members", of=[head]).get(head) or None
        failed = ask("given_up", of=[head]).get(head) or []
        own = ask("listen", head_ports, of=[head]).get(head)
        open_ports = [(host, port) for host, (port,) in ask("listen", [ANY]).items()]
        fixed = [(head, port) for port in head_ports if own]
        if members is None:
            of_nodes = ask("listen", [*node_ports])
            fixed += [(host, port) for host, opened in of_nodes.items() for port in opened[:2] if port is not None]
            problems += occupied({head: own} if own else {}, head_ports)
            problems += occupied(of_nodes, node_ports)
            problems += occupied(ask("listen", [*local_ports], of=[head]), local_ports)
        closed = ask("closed", [*fixed, *open_ports])
        problems += unreached({host: [(*each,) for each in shut] for host, shut in closed.items()}, fixed)
    if members is not None:
        problems += misplaced(cluster, members, failed, serving=own is not None and own[1] is None)
    return Report(hosts, members, problems)


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


def _is(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _words(command: str) -> list[str]:
    try:
        return [word for word in shlex.split(command) if word]
    except ValueError:  # a quote that is not closed
        return []


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}
