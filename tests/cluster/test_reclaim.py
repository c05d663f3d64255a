"""Room that was reserved for workers who never came, on a real local Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

from avb_service.distributed.reclaim import PATIENCE, overdue

PROGRAM = """
import json, time
import ray
from ray.util import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from avb_service.distributed import reclaim
from avb_service.distributed.cluster import SLOT, cluster

reclaim.EVERY, reclaim.PATIENCE = 0.5, {"CREATED": 2, "PENDING": 1000}

class Worker:
    def here(self): return True

def states(groups): return {name: ray.util.placement_group_table(group)["state"] for name, group in groups.items()}

with cluster():
    cores = ray.cluster_resources()["CPU"]
    groups = {"empty": placement_group([{"CPU": 0.2}]), "inhabited": placement_group([{"CPU": 0.3}]),
              "of a trial": placement_group([{"CPU": 0.1}], name=f"{SLOT}-1"),
              "too large": placement_group([{"CPU": cores + 1}])}
    ray.get([group.ready() for name, group in groups.items() if name != "too large"])
    strategy = PlacementGroupSchedulingStrategy(groups["inhabited"])
    worker = ray.remote(Worker).options(num_cpus=0.3, scheduling_strategy=strategy).remote()
    ray.get(worker.here.remote())
    before = states(groups)
    with reclaim.reclaiming():
        deadline = time.monotonic() + 60
        while states(groups)["empty"] != "REMOVED" and time.monotonic() < deadline: time.sleep(0.2)
        time.sleep(3)
    print(json.dumps([before, states(groups)]))
"""


def test_what_holds_nobody_is_given_back_and_nothing_else():
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == {"empty": "CREATED", "inhabited": "CREATED", "of a trial": "CREATED", "too large": "PENDING"}
    assert after == before | {"empty": "REMOVED"}


WITHOUT_DASHBOARD = """
import os
import ray
import avb_service
from avb_service.distributed import reclaim
from avb_service.distributed.cluster import cluster
from avb_service.errors import UserError

with cluster():
    reclaim.check_dashboard()
reclaim.ANSWER = 1
ray.init(include_dashboard=False, num_cpus=2)
try:
    avb_service.tune("tune_spaces/digits_smoke.yaml", storage="searches")
except UserError as refused:
    print(refused)
print(ray.is_initialized(), os.listdir("searches"))
"""


def test_a_search_is_refused_before_it_begins_where_nothing_tells_which_trials_have_ended(tmp_path):
    (tmp_path / "tune_spaces").symlink_to(Path(__file__).parents[2] / "tune_spaces")
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WITHOUT_DASHBOARD]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, refused, left = done.stdout.splitlines()
    assert refused.startswith("the dashboard of the Ray cluster in use does not answer")
    assert left == "True []", "the user's Ray is left running, and nothing was begun"


def test_patience_begins_anew_when_somebody_was_seen():
    since: dict[str, float] = {}
    limit = PATIENCE["CREATED"]
    assert overdue(since, {"a": "CREATED", "b": "PENDING"}, 0) == []
    assert overdue(since, {"a": "CREATED", "b": "PENDING"}, limit + 1) == ["a"]
    assert overdue(since, {"b": "PENDING"}, limit + 2) == []
    assert overdue(since, {"a": "CREATED"}, limit + 3) == []
    assert overdue(since, {"a": "CREATED"}, 2 * limit + 4) == ["a"]
