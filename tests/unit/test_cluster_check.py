"""What `avb cluster check` says of hosts; ssh is a script here, which runs the command in a home of each host's own."""

import json
import os
import socket
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from avb_service import cli
from avb_service.distributed import absent, probe
from avb_service.distributed.check import LOCAL, NODE, Report, check
from avb_service.distributed.cluster_file import ClusterFile
from avb_service.distributed.hosts import misplaced, not_shared, unreached, wanting
from avb_service.errors import ConfigError
from tests.answers import told

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "127.0.0.2", "127.0.0.3"
SSH = """#!/bin/bash
target=${@: -2:1}; home=HOSTS/${target#*@}
[ -f "$home/refuses" ] && { cat "$home/refuses" >&2; exit 255; }
HOME=$home exec bash -c "${@: -1}"
"""
PYTHON = f"""#!/bin/bash
exec {Path(sys.executable).resolve()} -S "$@"
"""  # without any package: a host before its installation
READY = {"hostname": "one", "resolves": "10.0.0.1", "python": [3, 11, 7], "venv": True, "lacks": [], "storage": "",
         "ray": "", "open": False, "cpus": 2, "gpus": 0, "versions": {}}  # fmt: skip
CLUSTER = ClusterFile(("one", "two"), "ann", Path("key"), "", "/mnt/avb")


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """Where the hosts have theirs."""
    programs = {"ssh": (tmp_path / "bin", SSH.replace("HOSTS", str(tmp_path)))}
    for host in (HEAD, WORKER):
        programs[host] = (tmp_path / host / "bin", PYTHON)
    for name, (folder, text) in programs.items():
        folder.mkdir(parents=True)
        path = folder / ("ssh" if name == "ssh" else "python3")
        path.write_text(text)
        path.chmod(0o755)
        if name != "ssh":
            (folder.parent / ".bashrc").write_text(f"echo hello; PATH={folder}:$PATH\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("AVB_TMP", str(tmp_path / "ray"))
    monkeypatch.delenv("AVB_PYTHON", raising=False)
    return tmp_path


@pytest.fixture
def cluster(homes):
    return ClusterFile((HEAD, WORKER), "ann", homes / "key", "", str(homes / "shared"))


def looked_at(cluster: ClusterFile, ports: tuple[int, int], *others: tuple[int, ...]) -> Report:
    """What `check` finds, without ports that this machine, which is all of the hosts, could open but once."""
    return check(cluster, ports, *(others or ((), ())))


def free_ports() -> tuple[int, int]:
    with closing(socket.socket()) as one, closing(socket.socket()) as two:
        one.bind(("", 0))
        two.bind(("", 0))
        return one.getsockname()[1], two.getsockname()[1]


def of_hosts(problems: list[str]) -> list[str]:
    """Without what may be true of the machine that runs the test."""
    return [line for line in problems if "its name" not in line and "lacks" not in line and "has no venv" not in line]


def test_hosts_that_are_ready_are_said_to_be(cluster, homes):
    report = looked_at(cluster, free_ports())
    assert of_hosts(report.problems) == []
    assert list(report.hosts) == [HEAD, WORKER] and report.members is None
    assert report.hosts[WORKER]["python"] == list(sys.version_info[:3]) and report.hosts[WORKER]["versions"] == {}
    assert list((homes / "shared").iterdir()) == [], "nothing is left behind"


def test_a_folder_that_is_not_shared_is_named(cluster, homes):
    apart = ClusterFile(cluster.hosts, cluster.user, cluster.key, "", "~/shared")  # each host has another home
    (problem,) = of_hosts(looked_at(apart, free_ports()).problems)
    assert problem.startswith(f"{WORKER}: ~/shared is not the folder that {HEAD} has: mount the same disk")
    assert list((homes / WORKER / "shared").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ann@host: Permission denied (publickey).", "ssh-copy-id -i {key} ann@{host}"),
        ("ssh: connect to host x port 22: Connection refused", "no sshd listens there"),
        ("ssh: connect to host x port 22: Connection timed out", "does not answer: switch it on"),
        ("WARNING: UNPROTECTED PRIVATE KEY FILE!\nann@host: Permission denied", "chmod 600 {key}"),
        ("bash: line 1: exec: python3: not found", "has no python3: install 3.11"),
        ("SyntaxError: invalid syntax", "python3 is far too old"),
        ("something new", "could not be asked: something new"),
    ],
)
@pytest.mark.parametrize("host", [HEAD, WORKER])
def test_a_host_that_cannot_be_asked_is_named_and_the_other_is_looked_at(cluster, homes, host, said, expected):
    (homes / host / "refuses").write_text(said + "\n")
    report = looked_at(cluster, free_ports())
    (problem,) = of_hosts(report.problems)
    assert problem.startswith(f"{host}: ") and expected.format(key=cluster.key, host=host) in problem
    assert list(report.hosts) == [WORKER if host == HEAD else HEAD]


def test_a_port_that_somebody_has_is_named(cluster):
    ports = free_ports()
    with closing(socket.socket()) as other:
        other.bind(("", ports[0]))
        other.listen()
        problems = of_hosts(looked_at(cluster, ports).problems)
    assert problems == [
        f"{HEAD}: another program has port {ports[0]}: end it, or the Ray that was left there (ray down)"
    ]


def test_a_port_that_ray_would_have_on_each_host_is_tried_too(cluster):
    port, other = free_ports()
    (problem,) = of_hosts(looked_at(cluster, free_ports(), (port,), (other,)).problems)  # one host has it, and keeps it
    assert problem.split(": ", 1)[1].startswith(f"another program has port {port}: end it")
    with closing(socket.socket()) as taken:
        taken.bind(("", other))
        taken.listen()
        assert f"{HEAD}: another program has port {other}: end it, or the Ray that was left there (ray down)" in (
            looked_at(cluster, free_ports(), (), (other,)).problems
        )


def test_the_ports_are_those_that_the_hosts_are_told():
    told = (ROOT / "deploy" / "install.sh").read_text() + (ROOT / "ray_cluster.yaml").read_text()
    assert all(f"={port}" in told for port in (*NODE, *LOCAL[:2]))


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ({"python": [3, 9, 2]}, ["two: python3 is 3.9.2: install 3.11", "python3: 3.11 on one, 3.9 on two"]),
        ({"python": [3, 12, 1]}, ["python3: 3.11 on one, 3.12 on two"]),
        ({"venv": False}, ["two: python3 has no venv"]),
        ({"venv": False, "versions": {"ray": "2.60.0"}}, []),  # an image that has everything needs none
        ({"lacks": ["rsync"]}, ["two: lacks rsync"]),
        ({"open": True}, ["two: others may write /mnt/avb, and by it run code as ann: there, chmod go-w /mnt/avb"]),
        ({"ray": "/tmp/ray"}, ["two: /tmp/ray, where Ray would keep sockets and code, is somebody else's"]),
        ({"storage": "Permission denied"}, ["two: ann cannot write /mnt/avb: Permission denied"]),
        ({"resolves": "127.0.1.1"}, ["two: its name one resolves to 127.0.1.1 there"]),
        ({"resolves": ""}, ["two: its name one has no address there"]),
        ({}, []),
    ],
)
def test_what_a_host_lacks_is_named(lacks, expected):
    found = wanting(CLUSTER, {"one": READY, "two": {**READY, **lacks}})
    assert len(found) == len(expected)
    assert all(line.startswith(begins) for line, begins in zip(found, expected, strict=True)), found


def test_versions_that_differ_are_named():
    hosts = {"one": {**READY, "versions": {"ray": "2.60.0"}}, "two": {**READY, "versions": {"ray": "2.61.0"}}}
    assert wanting(CLUSTER, hosts) == ["ray: 2.60.0 on one, 2.61.0 on two: install the same version everywhere"]


def test_closed_ports_are_named():
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))  # bound and not listening: refused
        target = ["127.0.0.1", server.getsockname()[1]]
        assert probe.closed([target]) == [target]
    problems = unreached({"two": [("one", 6379), ("one", 40001)]}, [("one", 6379)])
    assert [line.split(":")[1] for line in problems] == [
        " cannot connect to port 6379 of one",
        " cannot connect to the ports that Ray chooses of one",
    ]


def test_only_one_host_that_answers_shares_with_itself():
    assert not_shared(CLUSTER, {"one": "a", "two": "b"}, {"two": ["b"]}) == []


def test_after_ray_up_it_says_who_is_missing():
    everybody = {"one": [2, 0], "two": [2, 0]}
    assert misplaced(CLUSTER, everybody, [], serving=True) == []
    assert "one: MLflow does not run" in misplaced(CLUSTER, everybody, [], serving=False)[0]
    assert "two: has not joined the cluster: wait" in misplaced(CLUSTER, {"one": [2, 0]}, [], serving=True)[0]
    assert misplaced(CLUSTER, {"one": [2, 0]}, ["two"], serving=True) == [absent.line("two", ["two"])]
    assert misplaced(CLUSTER, everybody, ["two"], serving=True) == [], "somebody has started it by hand"


def test_what_the_autoscaler_notes_of_a_host_that_it_gives_up_is_understood(monkeypatch, tmp_path):
    from ray.autoscaler._private.autoscaler import StandardAutoscaler

    noted: list[str] = []
    here = SimpleNamespace(
        provider=SimpleNamespace(internal_ip=lambda node: node),
        event_summarizer=Mock(),
        nodes_to_terminate=[],
        _get_node_type=lambda node: "local.cluster.node",
    )
    for host, reason in (("10.0.0.2", "launch failed"), ("worker3", "launch failed"), ("10.0.0.4", "idle")):
        StandardAutoscaler.schedule_node_termination(here, host, reason, noted.append)
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert probe.given_up() == [], "on hosts that are no head"
    (logs / "monitor.log").write_text("\n".join(["autoscaler started", *noted, noted[0]]))
    assert probe.given_up() == ["10.0.0.2", "worker3"]


def test_the_projects_file_needs_its_key_alone(tmp_path):
    with pytest.raises(ConfigError) as refused:
        ClusterFile.read(_cluster_file(tmp_path, tmp_path / "nowhere"))
    assert refused.value.problems == [f"auth.ssh_private_key: there is no file {tmp_path / 'nowhere'}"]
    (tmp_path / "key").touch()
    cluster = ClusterFile.read(_cluster_file(tmp_path, tmp_path / "key"))
    assert cluster.hosts[0] == "192.168.1.10" and len(cluster.hosts) == 3 and cluster.storage == "/mnt/avb"


def test_everything_that_a_file_lacks_is_said_at_once(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("cluster_name: avb\nprovider: {type: aws, worker_ips: [1.2.3.4, 1.2.3.4]}\nauth: root\n")
    with pytest.raises(ConfigError) as refused:
        ClusterFile.read(path)
    begins = [line.split(":")[0] for line in refused.value.problems]
    assert begins == [
        "provider.type",
        "provider.head_ip",
        "provider",
        "auth.ssh_user",
        "auth.ssh_private_key",
        "setup_commands",
    ]


def test_problems_end_the_command_with_2_and_json_is_json(cluster, homes, monkeypatch, capsys):
    (homes / WORKER / "refuses").write_text("Connection refused")
    (homes / "key").touch()
    tree = {"cluster_name": "avb", "provider": {"type": "local", "head_ip": HEAD, "worker_ips": [WORKER]},
            "auth": {"ssh_user": "ann", "ssh_private_key": str(homes / "key")},
            "setup_commands": [f"bash ~/avb-service/deploy/install.sh {homes / 'shared'}"]}  # fmt: skip
    path = homes / "cluster.yaml"
    path.write_text(json.dumps(tree))  # which is YAML, too
    monkeypatch.setattr(sys, "argv", ["avb", "cluster", "check", str(path), "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    assert left.value.code == 2 and f"{WORKER}: no sshd listens there" in printed.err
    assert [host["address"] for host in told("cluster check", printed.out)["hosts"]] == [HEAD]


def test_help_names_the_command():
    assert "cluster" in CliRunner().invoke(cli.app, ["--help"]).stdout


def _cluster_file(folder: Path, key: Path) -> Path:
    text = (ROOT / "ray_cluster.yaml").read_text().replace("~/.ssh/id_ed25519", str(key))
    path = folder / "ray_cluster.yaml"
    path.write_text(text)
    return path
