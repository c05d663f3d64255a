"""What would go wrong on the hosts of a cluster file, said before `ray up`; and afterwards, what each of them has.

Floor 8. Each host is asked over one SSH connection, by the program in probe.py, which is sent along.
"""

import base64
import json
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from avb_service.distributed import probe
from avb_service.distributed.cluster_file import ClusterFile
from avb_service.distributed.hosts import misplaced, not_shared, occupied, unreached, wanting

RAY, MLFLOW = 6379, 5000  # on the head, as in ray_cluster.yaml
NODE = tuple(range(6380, 6386))  # on each host, as in deploy/install.sh; others connect to the first two
LOCAL = (6386, 6387, 8265, 10001)  # on the head alone
ANY = 0  # a port that is free
SECONDS = 60  # for an answer; a host that is busy takes some to start Python
CONNECT = 10
START = "import base64, sys; exec(base64.b64decode(sys.argv.pop(1)))"

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
    head = cluster.hosts[0]
    with asking(cluster, marks) as asked:
        hosts = asked("facts")
        problems = [*wanting(cluster, hosts), *not_shared(cluster, marks, asked("marks"))]
        members = asked("members", of=[head]).get(head) or None
        failed = asked("given_up", of=[head]).get(head) or []
        own = asked("listen", head_ports, of=[head]).get(head)
        open_ports = [(host, port) for host, (port,) in asked("listen", [ANY]).items()]
        fixed = [(head, port) for port in head_ports if own]
        if members is None:
            of_nodes = asked("listen", [*node_ports])
            fixed += [(host, port) for host, opened in of_nodes.items() for port in opened[:2] if port is not None]
            problems += occupied({head: own} if own else {}, head_ports)
            problems += occupied(of_nodes, node_ports)
            problems += occupied(asked("listen", [*local_ports], of=[head]), local_ports)
        closed = asked("closed", [*fixed, *open_ports])
        problems += unreached({host: [(*each,) for each in shut] for host, shut in closed.items()}, fixed)
    if members is not None:
        problems += misplaced(cluster, members, failed, serving=own is not None and own[1] is None)
    return Report(hosts, members, [*asked.lost, *problems])


class Asking:
    """Questions to several hosts at once; one that gives no answer is not asked again.

    Args:
        connections: by host.
        pool: a thread for each.
    """

    def __init__(self, connections: dict[str, Connection], pool: ThreadPoolExecutor) -> None:
        self._connections, self._pool = connections, pool
        self.lost: list[str] = []

    def __call__(self, question: str, *given: Any, of: Iterable[str] | None = None) -> dict[str, Any]:  # noqa: ANN401
        """The answers of those that give any, of all or of some."""
        hosts = [host for host in (self._connections if of is None else of) if host in self._connections]
        asked = {host: self._pool.submit(self._connections[host].ask, question, *given) for host in hosts}
        answers = {}
        for host, answer in asked.items():
            try:
                answers[host] = answer.result()
            except Lost as lost:
                self.lost.append(f"{host}: {lost}")
                del self._connections[host]
        return answers


@contextmanager
def asking(cluster: ClusterFile, marks: Mapping[str, str]) -> Iterator[Asking]:
    """Be logged in on all hosts, where each leaves its mark in the shared folder."""
    with ExitStack() as stack, ThreadPoolExecutor(len(marks)) as pool:
        yield Asking({host: stack.enter_context(Connection(cluster, host, mark)) for host, mark in marks.items()}, pool)
