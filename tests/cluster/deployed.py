"""The project on hosts of their own, as somebody at a laptop would bring it there: five lines edited, `ray up`."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Hosts

ROOT = Path(__file__).parents[2]
CHECKOUT = ("avb_service", "deploy", "tune_spaces", "pyproject.toml", "ray_cluster.yaml", "tune_avb.py")
LAPTOP, HEAD, WORKERS = "laptop", "head", ("worker1", "worker2")
EDITS = {
    "head_ip: 192.168.1.10": "head_ip: {head}",
    "worker_ips: [192.168.1.11, 192.168.1.12]": "worker_ips: [{worker1}, {worker2}]",
    "~/.ssh/id_ed25519": "{key}",
    "/mnt/avb": "{shared}",
}


class Deployed:
    """A checkout on the laptop, and the hosts that its cluster file names.

    Args:
        hosts: the laptop, the head and the workers.
        spaces: further search spaces, by name.
    """

    def __init__(self, hosts: Hosts, spaces: Mapping[str, str]) -> None:
        self.hosts = hosts
        checkout = hosts.folder / LAPTOP / "home" / "checkout"
        checkout.mkdir()
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, checkout / name)
        for name, text in spaces.items():
            (checkout / "tune_spaces" / f"{name}.yaml").write_text(text)
        file = checkout / "ray_cluster.yaml"
        text = file.read_text()
        values = {name: hosts.address(name) for name in hosts.names} | {"key": hosts.key, "shared": hosts.shared}
        for old, new in EDITS.items():
            if old not in text:
                raise RuntimeError(f"ray_cluster.yaml has no line with {old!r}")
            text = text.replace(old, new.format(**values))
        file.write_text(text)

    def do(self, host: str, command: str) -> str:
        """Run a command that must succeed."""
        done = self.hosts.ssh(host, command)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def at_home(self, command: str) -> str:
        """Run a command in the checkout."""
        return self.do(LAPTOP, f"cd checkout && export PYTHONPATH=$PWD && {command}")

    def secret(self, name: str) -> str:
        """One of those that the cluster was installed with."""
        return (self.hosts.shared / "secrets" / name).read_text().strip()

    @property
    def login(self) -> str:
        """What a command must be preceded by to reach MLflow."""
        address = self.hosts.address(HEAD)
        values = {"URI": f"http://{address}:5000", "USERNAME": "avb", "PASSWORD": self.secret("mlflow_password")}
        return " ".join(f"MLFLOW_TRACKING_{name}={value}" for name, value in values.items())

    def left(self, host: str) -> str:
        """What still runs there of ours."""
        mine = "ps -eo args | grep -E '[r]ay|[m]lflow|[a]vb_service'"
        return self.do(host, f"for _ in $(seq 30); do {mine} > /dev/null || break; sleep 1; done; {mine} || true")


@contextmanager
def deployed(folder: Path, spaces: Mapping[str, str] | None = None) -> Iterator[Deployed]:
    """Hosts for a block, with nothing running on them yet.

    Args:
        folder: for what they keep.
        spaces: further search spaces, by name.
    """
    with Hosts(folder, (LAPTOP, HEAD, *WORKERS), Path(sys.executable).parent) as hosts:
        yield Deployed(hosts, spaces or {})
