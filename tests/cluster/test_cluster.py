"""From `ray up` to `ray down` on three hosts, driven from a fourth: the champion, and what strangers get.

Needs root and Linux namespaces; six minutes on two cores.
"""

import json
import re
import shlex

import pytest

from tests.cluster.deployed import HEAD, LAPTOP, ROOT, WORKERS, Deployed, deployed
from tests.cluster.hosts import objection

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
def cluster(tmp_path_factory):
    """The cluster, up; nothing of it is left in the end."""
    with deployed(tmp_path_factory.mktemp("hosts") / "lab") as made:
        made.at_home("avb cluster check ray_cluster.yaml")
        made.at_home("ray up -y ray_cluster.yaml")
        yield made
        made.at_home("ray down -y ray_cluster.yaml")
        for host in (HEAD, *WORKERS):
            left = made.left(host)
            assert not left, f"`ray down` leaves on {host}:\n{left}"


@pytest.fixture(scope="module")
def champion(cluster):
    """What the search has made champion, as the leaderboard has it."""
    printed = cluster.at_home("ray submit ray_cluster.yaml tune_avb.py -- --space tune_spaces/digits_smoke.yaml")
    assert "champion" in printed
    rows = json.loads(cluster.at_home(f"{cluster.login} avb leaderboard --json"))
    (best,) = [row for row in rows if "champion" in row["aliases"]]
    return best


def test_the_champion_is_pulled_from_outside(cluster, champion):
    cluster.at_home(f"{cluster.login} avb pull models:/digits-smoke@champion ../champion")
    load = "import avb_service; print(tuple(avb_service.load('champion').sample(3, seed=0).shape))"
    assert "(3, 1, 8, 8)" in cluster.do(LAPTOP, f"PYTHONPATH=checkout python -c {shlex.quote(load)}")
    assert champion["model"].startswith("models:/digits-smoke/")


def test_one_model_is_trained_on_several_hosts(cluster):
    # Two CPUs a host, so four workers are on two hosts at least.
    settings = (
        "scaling.workers=4",
        "training.logical_workers=4",
        "training.rounds=100",
        "training.report_every=50",
        "likelihood.budget=quick",
        "tracking.model=wide",
    )
    cluster.do(HEAD, "avb train vae_digits --name wide " + " ".join(f"--set {each}" for each in settings))
    ask = (
        "import mlflow; runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print([run.data.tags.get('avb.hosts') for run in runs if run.info.run_name == 'wide'][0])"
    )
    trained_on = cluster.do(LAPTOP, f"{cluster.login} python -c {shlex.quote(ask)}").split(", ")
    assert len(trained_on) >= 2


def test_strangers_are_refused(cluster):
    head, members = cluster.hosts.address(HEAD), "import ray; ray.init('auto'); print('members', len(ray.nodes()))"
    assert "members 3" in cluster.do(HEAD, f"python -c {shlex.quote(members)}")
    connect = shlex.quote(f"import ray; ray.init('ray://{head}:10001'); print('in as a client')")
    key = cluster.secret("ray_token")
    for _ in range(3):  # on a busy machine Ray gives up waiting for its own server
        welcome = cluster.hosts.ssh(LAPTOP, f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={key} python -c {connect}")
        if "in as a client" in welcome.stdout:
            break
    else:
        pytest.fail(f"the token does not let us in: {welcome.stderr[-2000:]}")
    for mode in ("disabled", "token RAY_AUTH_TOKEN=" + "0" * 48):
        as_stranger = STRANGER.format(mode)
        assert "in as a client" not in cluster.hosts.ssh(LAPTOP, f"{as_stranger} timeout 60 python -c {connect}").stdout
        joining = cluster.hosts.ssh(LAPTOP, f"{as_stranger} timeout 60 ray start --address={head}:6379")
        assert joining.returncode != 0, joining.stdout[-2000:]
        submit = "timeout 60 ray job submit --address http://127.0.0.1:8265 -- echo I am in"
        job = cluster.hosts.ssh(HEAD, f"{as_stranger} {submit}")
        assert job.returncode != 0 and "I am in" not in job.stdout
    assert "members 3" in cluster.do(HEAD, f"python -c {shlex.quote(members)}")
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        assert status(cluster, HEAD, f"http://127.0.0.1:8265{path}") in ("401", "403"), path
    assert status(cluster, LAPTOP, f"http://{head}:8265/") == "000", "the dashboard listens on loopback alone"
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/runs/search"):
        assert status(cluster, LAPTOP, f"http://{head}:5000{path}") == "401", path


def status(cluster: Deployed, host: str, url: str) -> str:
    """Of an answer to somebody without a token; 000 where nobody answers."""
    ask = (
        "import sys, urllib.error, urllib.request as r\n"
        "try: print(r.urlopen(sys.argv[1], timeout=20).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
        "except OSError: print('000')"
    )
    return cluster.do(host, f"python -c {shlex.quote(ask)} {shlex.quote(url)}").strip()


def test_nothing_listens_that_the_documents_do_not_name(cluster):
    """While nothing is trained: the ports of torch are many, and would hide all others."""
    rows = [row for row in (ROOT / "docs" / "operations.md").read_text().splitlines() if "torch:" not in row]
    table = re.findall(r"^\| (\d+)(?: to (\d+))? \|", "\n".join(rows), re.MULTILINE)
    named = {port for first, last in table for port in range(int(first), int(last or first) + 1)}
    assert 6379 in named and len(named) < 1000
    for host in (HEAD, *WORKERS):
        found = json.loads(cluster.do(LAPTOP, f"python -c {shlex.quote(SCAN)} {cluster.hosts.address(host)}"))
        assert 22 in found and set(found) <= named, f"{host} listens on {sorted(set(found) - named)}"


def test_secrets_are_for_one_user_and_in_no_record(cluster, champion):
    shared = cluster.hosts.shared
    modes = cluster.do(HEAD, f"stat -c '%a %n' {shared}/secrets {shared}/secrets/*").splitlines()
    assert len(modes) > 5 and all(mode.split()[0] in ("600", "700") for mode in modes), modes
    users = cluster.do(HEAD, f"stat -c %a {shared}/mlflow.db {shared}/mlflow_users.db").split()
    assert users == ["600", "600"], "they hold what passwords can be guessed from"
    for host in (HEAD, *WORKERS):
        assert cluster.do(host, "stat -c %a /tmp/ray; ls /tmp/ray/session_latest/logs").startswith("700\n"), host
    for name in ("ray_token", "mlflow_password", "mlflow_session_key"):
        secret = cluster.secret(name)
        assert re.fullmatch("[0-9a-f]{48}", secret)
        for host in (HEAD, *WORKERS):
            # grep reads what to look for from a file, so that it is in no process title of its own.
            places = f"/tmp/ray/ avb-service {shared} --exclude-dir=secrets"
            search = f"F={shared}/secrets/{name}; ps -eo args | grep -cFf $F; grep -rlFf $F {places} | head -3"
            assert cluster.hosts.ssh(host, search).stdout.split() == ["0"], f"{name} is to be read on {host}"
