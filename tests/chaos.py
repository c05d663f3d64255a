"""Faults at random moments of a search on three hosts: `python -m tests.chaos --seed 0 --faults 20`.

The same search is run undisturbed first. In the end no trial may be missing or lost, the parameters of each must be
those of the undisturbed search to the bit, and no metric may be there twice or not at all. Needs root and namespaces.
"""

import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from avb_service.checkpoint import CheckpointStore
from avb_service.distributed.train import Job, Outcome
from tests.cluster.deployed import HEAD, LAPTOP, WORKERS, Deployed, deployed
from tests.cluster.hosts import SSH_OPTIONS, objection

TRIALS = 8
SPACE = f"""
preset: [avb_digits]
set:
  scaling.workers: 2
  scaling.max_failures: 20
  training.logical_workers: 2
  training.rounds: 600
  training.report_every: 50
  likelihood.budget: quick
  tracking.experiment: chaos
  tracking.model: chaos
space:
  algorithm.adversary.lr: {{loguniform: [1.0e-3, 3.0e-3]}}
  algorithm.latent_dim: {{choice: [2, 4, 8]}}
objective: {{metric: validation/log_likelihood, mode: max}}
scheduler: {{asha: null}}
trials: {TRIALS}
"""
SEARCH = "ray submit ray_cluster.yaml tune_avb.py -- --space tune_spaces/chaos.yaml"
PAUSE = (3, 20)  # seconds between two faults
OUTAGE = (20, 60)  # seconds for which something does not answer
LIMIT = 3600  # seconds for a search, whatever happens to it

console = Console()
Curves = dict[str, list[int]]


class Chaos:
    """What can happen to a cluster.

    Args:
        cluster: where a search runs.
        seed: of what happens, and when.
    """

    def __init__(self, cluster: Deployed, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.faults: list[Callable[[], None]] = [
            self.kill_worker, self.hang_rank, self.kill_trial, self.kill_driver, self.lose_worker_host, self.lose_head,
            self.silence_mlflow,
        ]  # fmt: skip

    def strike(self) -> str:
        """Let something happen; gives its name."""
        fault = self.random.choice(self.faults)
        fault()
        return fault.__name__.replace("_", " ")

    def kill_worker(self) -> None:
        """A Ray Train worker is gone."""
        self._signal("KILL", "ray::RayTrainWorker", self.random.choice((HEAD, *WORKERS)))

    def hang_rank(self) -> None:
        """A Ray Train worker does not go on, and does not end."""
        self._signal("STOP", "ray::RayTrainWorker", self.random.choice((HEAD, *WORKERS)))

    def kill_trial(self) -> None:
        """The actor of a trial is gone."""
        self._signal("KILL", "ray::ImplicitFunc", self.random.choice((HEAD, *WORKERS)))

    def kill_driver(self) -> None:
        """The search itself is gone."""
        self._signal("KILL", "tune_avb.py", HEAD)

    def lose_worker_host(self) -> None:
        """A host is switched off and on again."""
        self._restart(self.random.choice(WORKERS))

    def lose_head(self) -> None:
        """The host that schedules, and serves MLflow."""
        self._restart(HEAD)

    def silence_mlflow(self) -> None:
        """MLflow takes connections and does not answer."""
        self._signal("STOP", "mlflow", HEAD)
        time.sleep(self.random.uniform(*OUTAGE))
        self._signal("CONT", "mlflow", HEAD)

    def _restart(self, host: str) -> None:
        self.cluster.hosts.kill(host)
        time.sleep(self.random.uniform(1, 5))
        self.cluster.hosts.start(host)

    def _signal(self, name: str, title: str, host: str) -> None:
        choice = "cat" if title == "mlflow" else "shuf -n 1"
        found = f"pgrep -f '^[^ ]*{title}|python[^ ]* .*{title}' | {choice}"
        self.cluster.hosts.ssh(host, f"{found} | xargs -r kill -{name}")


def search(cluster: Deployed, chaos: Chaos | None, faults: int) -> Path:
    """Run the search to its end; gives its folder."""
    before, begun, struck = set(cluster.hosts.shared.glob("chaos-*")), time.monotonic(), 0
    while True:
        mine = set(cluster.hosts.shared.glob("chaos-*/space.yaml")) - {folder / "space.yaml" for folder in before}
        driver = _start(cluster, SEARCH + (" --resume" if mine else ""))
        due = time.monotonic() + 10
        while driver.poll() is None:
            if chaos is not None and struck < faults and time.monotonic() > due:
                struck += 1
                console.print(f"{time.monotonic() - begun:6.0f} s  {struck:2}  {chaos.strike()}")
                due = time.monotonic() + chaos.random.uniform(*PAUSE)
            if time.monotonic() - begun > LIMIT:
                raise SystemExit(f"the search has not ended after {LIMIT} s")
            time.sleep(0.5)
        if driver.returncode == 0:
            (folder,) = set(cluster.hosts.shared.glob("chaos-*")) - before
            console.print(f"{time.monotonic() - begun:6.0f} s  ended, after {struck} faults")
            return folder
        console.print(f"{time.monotonic() - begun:6.0f} s      the driver ended with {driver.returncode}; again")
        if cluster.hosts.ssh(HEAD, "pgrep -x gcs_server").returncode:
            cluster.at_home("ray up -y ray_cluster.yaml")


def _start(cluster: Deployed, command: str) -> subprocess.Popen[bytes]:
    options = [word for option in SSH_OPTIONS for word in ("-o", option)]
    log = (cluster.hosts.folder / "driver.log").open("ab")
    there = f"bash -lc 'cd checkout && export PYTHONPATH=$PWD && {command}'"
    return subprocess.Popen(
        ["ssh", "-i", str(cluster.hosts.key), *options, f"root@{cluster.hosts.address(LAPTOP)}", there],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip


def trained(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of each finished trial, by its configuration."""
    found = {}
    for path in folder.glob("trials/*/job.json"):
        job, outcome = Job.read(path.parent), Outcome.read(path.parent)
        newest = CheckpointStore(job.checkpoints).latest()
        if outcome is not None and outcome.status == "finished" and newest is not None:
            found[json.dumps(job.config, sort_keys=True)] = newest.state["engine"]["algorithm"]
    return found


def recorded(cluster: Deployed, folder: Path) -> dict[str, Curves]:
    """The steps of each metric of each trial, by its configuration."""
    program = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient()
(experiment,) = client.search_experiments(filter_string="name = 'chaos'")
found = {}
for run in client.search_runs([experiment.experiment_id], max_results=1000):
    key = run.data.tags.get("avb.resume_key", "")
    keys = [name for name in run.data.metrics if name.startswith(("train/", "validation/"))]
    found[key] = {name: sorted(each.step for each in client.get_metric_history(run.info.run_id, name)) for name in keys}
print(json.dumps(found))
"""
    there = cluster.hosts.folder / LAPTOP / "home" / "recorded.py"
    there.write_text(program)
    curves = json.loads(cluster.at_home(f"{cluster.login} python ../recorded.py"))
    jobs = [Job.read(path.parent) for path in folder.glob("trials/*/job.json")]
    return {json.dumps(job.config, sort_keys=True): curves.get(job.key, {}) for job in jobs}


def differences(calm: tuple[Any, dict[str, Curves]], rough: tuple[Any, dict[str, Curves]]) -> list[str]:
    """What faults have changed, though they must not."""
    found = []
    if len(rough[0]) != TRIALS or rough[0].keys() != calm[0].keys():
        found.append(f"{len(rough[0])} trials have finished, expected the {TRIALS} of the undisturbed search")
    for key in calm[0].keys() & rough[0].keys():
        name = f"trial {sorted(calm[0]).index(key)}"
        apart = [each for each, tensor in calm[0][key].items() if not torch.equal(tensor, rough[0][key][each])]
        found += [f"{name}: {', '.join(apart)} differ"] if apart else []
        for metric, steps in calm[1][key].items():
            seen = Counter(rough[1][key].get(metric, []))
            twice = [step for step, count in seen.items() if count > 1]
            missing = set(steps) - seen.keys()
            found += [f"{name}: {metric} twice at {twice}"] if twice else []
            found += [f"{name}: {metric} is missing at {sorted(missing)}"] if missing else []
    return found


def main(
    seed: Annotated[int, typer.Option(help="Of what happens, and when.")] = 0,
    faults: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
) -> None:
    """Disturb a search, and compare what comes out of it with the same search undisturbed."""
    if why := objection():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as place, deployed(Path(place) / "lab", {"chaos": SPACE}) as cluster:
        cluster.at_home("ray up -y ray_cluster.yaml")
        outcomes = []
        for chaos in (None, Chaos(cluster, seed)):
            folder = search(cluster, chaos, faults)
            outcomes.append((trained(folder), recorded(cluster, folder)))
        found = differences(*outcomes)
        cluster.at_home("ray down -y ray_cluster.yaml")
    for line in found:
        console.print(line, markup=False)
    console.print(f"seed {seed}, {faults} faults: {len(found)} differences")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    typer.run(main)
