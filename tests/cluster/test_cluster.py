"""From `ray up` to `ray down` on three hosts, driven from a fourth: the champion, and what strangers get.

Needs root and Linux namespaces; six minutes on two cores.
"""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from hosts import Hosts, objection

ROOT = Path(__file__).parents[2]
CHECKOUT = ("avb_service", "deploy", "tune_spaces", "pyproject.toml", "ray_cluster.yaml", "tune_avb.py")
LAPTOP, HEAD, WORKERS = "laptop", "head", ("worker1", "worker2")
EDITS = {
    "head_ip: 192.168.1.10": "head_ip: {head}",
    "worker_ips: [192.168.1.11, 192.168.1.12]": "worker_ips: [{worker1}, {worker2}]",
    "~/.ssh/id_ed25519": "{key}",
    "/mnt/avb": "{shared}",
}
STRANGER = "env -u RAY_AUTH_TOKEN_PATH -u MLFLOW_TRACKING_USERNAME -u MLFLOW_TRACKING_PASSWORD RAY_AUTH_MODE={} "
SCAN = """
import asyncio, json, sys
async def is_open(port, gate):
    async with gate:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 5)
        except OSError:
            return False
        writer.close()
        return True
async def main():
    gate = asyncio.Semaphore(500)
    found = await asyncio.gather(*(is_open(port, gate) for port in range(1, 65536)))
    print(json.dumps([port for port, yes in enumerate(found, 1) if yes]))
asyncio.run(main())
"""

pytestmark = pytest.mark.skipif(bool(objection()), reason=objection() or "hosts can be made")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(tmp_path_factory.mktemp("hosts") / "lab", (LAPTOP, HEAD, *WORKERS), Path(sys.executable).parent) as made:
        checkout = made.folder / LAPTOP / "home" / "checkout"
        checkout.mkdir()
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, checkout / name)
        file = checkout / "ray_cluster.yaml"
        text = file.read_text()
        values = {name: made.address(name) for name in made.names} | {"key": made.key, "shared": made.shared}
        for old, new in EDITS.items():
            assert old in text
            text = text.replace(old, new.format(**values))
        file.write_text(text)
        yield made


def do(hosts: Hosts, host: str, command: str) -> str:
    """Run a command that must succeed."""
    done = hosts.ssh(host, command)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def at_home(hosts: Hosts, command: str) -> str:
    """In the checkout of whoever runs the cluster."""
    return do(hosts, LAPTOP, f"cd checkout && export PYTHONPATH=$PWD && {command}")


@pytest.fixture(scope="module")
def cluster(hosts):
    """The cluster, up, and the login of its MLflow server."""
    at_home(hosts, "avb cluster check ray_cluster.yaml")
    at_home(hosts, "ray up -y ray_cluster.yaml")
    password = do(hosts, HEAD, f"cat {hosts.shared}/secrets/mlflow_password")
    login = {"URI": f"http://{hosts.address(HEAD)}:5000", "USERNAME": "avb", "PASSWORD": password}
    yield " ".join(f"MLFLOW_TRACKING_{name}={value}" for name, value in login.items())
    at_home(hosts, "ray down -y ray_cluster.yaml")
    for host in (HEAD, *WORKERS):
        left = do(hosts, host, "for _ in $(seq 30); do pgrep -f 'ray|mlflow|avb' > /dev/null || break; sleep 1; done;"
                               "ps -eo args | grep -E '[r]ay|[m]lflow|[a]vb_service' || true")  # fmt: skip
        assert not left, f"`ray down` leaves on {host}:\n{left}"


@pytest.fixture(scope="module")
def champion(hosts, cluster):
    """What the search has made champion, as the leaderboard has it."""
    space = "tune_spaces/digits_smoke.yaml"
    printed = at_home(hosts, f"ray submit ray_cluster.yaml tune_avb.py -- --space {space}")
    assert "champion" in printed
    rows = json.loads(at_home(hosts, f"{cluster} avb leaderboard --json"))
    (best,) = [row for row in rows if "champion" in row["aliases"]]
    return best


def test_the_champion_is_pulled_from_outside(hosts, cluster, champion):
    at_home(hosts, f"{cluster} avb pull models:/digits-smoke@champion ../champion")
    load = "import avb_service; print(tuple(avb_service.load('champion').sample(3, seed=0).shape))"
    assert "(3, 1, 8, 8)" in do(hosts, LAPTOP, f"PYTHONPATH=checkout python -c {shlex.quote(load)}")
    assert champion["uri"].startswith("models:/digits-smoke/")


def test_one_model_is_trained_on_several_hosts(hosts, cluster):
    # Two CPUs a host, so four workers are on two hosts at least.
    settings = ("scaling.workers=4", "training.logical_workers=4", "training.rounds=100", "training.report_every=50",
                "likelihood.budget=quick", "tracking.model=wide")  # fmt: skip
    do(hosts, HEAD, "avb train vae_digits --name wide " + " ".join(f"--set {each}" for each in settings))
    ask = ("import mlflow; runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
           "print([run.data.tags.get('avb.hosts') for run in runs if run.info.run_name == 'wide'][0])")  # fmt: skip
    trained_on = do(hosts, LAPTOP, f"{cluster} python -c {shlex.quote(ask)}").split(", ")
    assert len(trained_on) >= 2


def test_strangers_are_refused(hosts, cluster):
    head, members = hosts.address(HEAD), "import ray; ray.init('auto'); print('members', len(ray.nodes()))"
    assert "members 3" in do(hosts, HEAD, f"python -c {shlex.quote(members)}")
    connect = shlex.quote(f"import ray; ray.init('ray://{head}:10001'); print('in as a client')")
    key = do(hosts, HEAD, f"cat {hosts.shared}/secrets/ray_token")
    welcome = hosts.ssh(LAPTOP, f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={key} python -c {connect}")
    assert "in as a client" in welcome.stdout, welcome.stderr[-2000:]
    for mode in ("disabled", "token RAY_AUTH_TOKEN=" + "0" * 64):
        as_stranger = STRANGER.format(mode)
        assert "in as a client" not in hosts.ssh(LAPTOP, f"{as_stranger} timeout 60 python -c {connect}").stdout
        joining = hosts.ssh(LAPTOP, f"{as_stranger} timeout 60 ray start --address={head}:6379")
        assert joining.returncode != 0, joining.stdout[-2000:]
        submit = "timeout 60 ray job submit --address http://127.0.0.1:8265 -- echo I am in"
        job = hosts.ssh(HEAD, f"{as_stranger} {submit}")
        assert job.returncode != 0 and "I am in" not in job.stdout
    assert "members 3" in do(hosts, HEAD, f"python -c {shlex.quote(members)}")
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        assert status(hosts, HEAD, f"http://127.0.0.1:8265{path}") in ("401", "403"), path
    assert status(hosts, LAPTOP, f"http://{head}:8265/") == "000", "the dashboard listens on loopback alone"
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/runs/search"):
        assert status(hosts, LAPTOP, f"http://{head}:5000{path}") == "401", path


def status(hosts: Hosts, host: str, url: str) -> str:
    """Of an answer to somebody without a token; 000 where nobody answers."""
    ask = ("import sys, urllib.error, urllib.request as r\n"
           "try: print(r.urlopen(sys.argv[1], timeout=20).status)\n"
           "except urllib.error.HTTPError as error: print(error.code)\n"
           "except OSError: print('000')")  # fmt: skip
    return do(hosts, host, f"python -c {shlex.quote(ask)} {shlex.quote(url)}").strip()


def test_nothing_listens_that_the_documents_do_not_name(hosts, cluster):
    table = re.findall(r"^\| (\d+)(?: to (\d+))? \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    named = {port for first, last in table for port in range(int(first), int(last or first) + 1)}
    assert 6379 in named and len(named) < 40000
    for host in (HEAD, *WORKERS):
        found = json.loads(do(hosts, LAPTOP, f"python -c {shlex.quote(SCAN)} {hosts.address(host)}"))
        assert 22 in found and set(found) <= named, f"{host} listens on {sorted(set(found) - named)}"


def test_secrets_are_for_one_user_and_in_no_record(hosts, cluster, champion):
    modes = do(hosts, HEAD, f"stat -c '%a %n' {hosts.shared}/secrets {hosts.shared}/secrets/*").splitlines()
    assert len(modes) == 5 and all(mode.split()[0] in ("600", "700") for mode in modes), modes
    for name in ("ray_token", "mlflow_password", "mlflow_session_key"):
        secret = do(hosts, HEAD, f"cat {hosts.shared}/secrets/{name}")
        assert re.fullmatch("[0-9a-f]{64}", secret)
        for host in (HEAD, *WORKERS):
            # grep reads what to look for from a file, so that it is in no process title of its own.
            places = f"/tmp/ray/ avb-service {hosts.shared} --exclude-dir=secrets"
            search = f"F={hosts.shared}/secrets/{name}; ps -eo args | grep -cFf $F; grep -rlFf $F {places} | head -3"
            assert hosts.ssh(host, search).stdout.split() == ["0"], f"{name} is to be read on {host}"
