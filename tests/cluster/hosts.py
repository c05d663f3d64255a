"""Several hosts on one machine: each has its own network, process table, name, home, /tmp/ray and sshd.

Linux namespaces, so root is needed, and Debian's iproute2, openssh-server and rsync. To look at them by hand:
`python tests/cluster/hosts.py FOLDER N` keeps N of them until Enter is pressed.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = f"10.78.{os.getpid() % 254 + 1}"  # tests of two checkouts do not meet
TOOLS = ("ip", "unshare", "mount", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
SSH_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5")
SSHD = """Port 22
ListenAddress {address}
HostKey {folder}/hostkey
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxStartups 100
"""
# What a host sees in the place of the machine's own: its home by way of /etc/passwd, so that nothing below the real
# one disappears.
BOOT = """set -e
hostname {name}
mount --make-rprivate /
mkdir -p /tmp/ray /run/sshd
mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
mount -t tmpfs -o size=2g tmpfs /dev/shm
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""


def objection() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "hosts of our own need root"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"hosts of our own need {', '.join(lacking)}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "--mount", "true"], capture_output=True, text=True)
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Hosts:
    """Hosts that can reach each other, and this machine; gone when the block ends.

    Args:
        folder: for what they keep; `shared` below it is a disk that all of them have.
        names: of the hosts; the first has the address NETWORK.11.
        path: goes first on their PATH.
    """

    def __init__(self, folder: Path, names: Sequence[str], path: Path) -> None:
        self.folder, self.names, self.path = folder, tuple(names), path
        self.bridge = f"avb{os.getpid()}"
        self.shared, self.key = folder / "shared", folder / "key"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start all of them."""
        self.shared.mkdir(parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        try:
            _run("ip", "link", "add", self.bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", self.bridge)
            _run("ip", "link", "set", self.bridge, "up")
            for name in self.names:
                self.start(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of them, whatever runs there."""
        for name in self.names:
            self.kill(name)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def address(self, name: str) -> str:
        """Of a host."""
        return f"{NETWORK}.{11 + self.names.index(name)}"

    def start(self, name: str) -> None:
        """Switch a host on; what its home held is still there."""
        folder = self.folder / name
        if not folder.exists():
            self._furnish(name, folder)
        namespace, link = self._network(name)
        _run("ip", "netns", "add", namespace)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "e0", "netns", namespace)
        _run("ip", "link", "set", link, "master", self.bridge, "up")
        for command in (
            f"addr add {self.address(name)}/24 dev e0",
            "link set e0 up",
            "link set lo up",
            f"route add default via {NETWORK}.1",
        ):
            _run("ip", "-n", namespace, *command.split())
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc"]
        with (folder / "sshd.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *apart, "bash", "-c", BOOT.format(name=name, folder=folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_plain(),
            )
        for _ in range(50):
            if self.ssh(name, "true").returncode == 0:
                return
            time.sleep(0.2)
        raise RuntimeError(f"{name} does not come up: {(folder / 'sshd.log').read_text()}")

    def kill(self, name: str) -> None:
        """Pull a host's plug: all its processes are gone at once, its disk stays."""
        if (process := self._running.pop(name, None)) is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        namespace, link = self._network(name)
        subprocess.run(["ip", "link", "del", link], capture_output=True)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def ssh(self, name: str, command: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run a command in a login shell of a host."""
        options = [word for option in SSH_OPTIONS for word in ("-o", option)]
        return subprocess.run(
            ["ssh", "-i", str(self.key), *options, f"root@{self.address(name)}", f"bash -lc {shlex.quote(command)}"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    def processes(self, name: str) -> dict[int, list[str]]:
        """The command lines of what runs on a host, by process id as this machine counts them."""
        namespace, _ = self._network(name)
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
        found = {}
        for pid in map(int, listed):
            with suppress(OSError):  # it has just ended
                if words := Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0"):
                    found[pid] = words
        return found

    def _network(self, name: str) -> tuple[str, str]:
        """What its network is called, and its link to the others."""
        return f"{self.bridge}-{name}", f"v{os.getpid()}-{self.names.index(name)}"

    def _furnish(self, name: str, folder: Path) -> None:
        home = folder / "home"
        for part in (home, folder / "ray"):
            part.mkdir(parents=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "hostkey"))
        lines = [f"{self.address(each)} {each}" for each in self.names]
        root = f"root:x:0:0:root:{home}:/bin/bash"
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        for file, text in {
            "sshd_config": SSHD.format(address=self.address(name), folder=folder),
            "authorized_keys": self.key.with_suffix(".pub").read_text(),
            "hosts": "\n".join(["127.0.0.1 localhost", *lines, ""]),
            "resolv.conf": "options timeout:1 attempts:1\n",  # no name server there: do not wait for one
            "passwd": "\n".join([root, *others, ""]),
            "home/.bashrc": f"export PATH={self.path}:$PATH\n",
            "home/.bash_profile": ". ~/.bashrc\n",
        }.items():
            (folder / file).write_text(text)


def _plain() -> dict[str, str]:
    """An environment in which nothing says where this project is, or which Ray runs."""
    return {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | {"USER": "root"}


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    place, count = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    with Hosts(place, [f"host{i}" for i in range(1, count + 1)], Path(sys.executable).parent) as hosts:
        for host in hosts.names:
            print(f"ssh -i {hosts.key} root@{hosts.address(host)}    # {host}")
        input("Enter ends them all. ")
