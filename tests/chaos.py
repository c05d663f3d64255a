"""Faults at random moments of a search on three hosts: `python -m tests.chaos --seed 0 --faults 20`.

The same search is run undisturbed first. In the end no trial may be missing or lost, the parameters of each must be
those of the undisturbed search to the bit, and no metric may be there twice or not at all. Needs root, namespaces, cc.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from avb_service.checkpoint import CheckpointStore
from avb_service.runs import OUTCOME, Job, Outcome
from tests.cluster.deployed import HEAD, LAPTOP, WORKERS, Deployed, deployed
from tests.cluster.hosts import SSH_OPTIONS, objection

SPACE = """
preset: [avb_digits]
set:
  scaling.workers: {workers}
  scaling.min_workers: {least}
  scaling.max_failures: 20
  scaling.collective_timeout_s: 30
  training.logical_workers: {logical}
  training.rounds: {rounds}
  training.dtype: {dtype}
  training.report_every: 50
  likelihood.budget: quick
  likelihood.validation_data: 50
  likelihood.diagnosis_data: 50
  likelihood.test_data: 10
  likelihood.quadrature_data: 2
  likelihood.search: {{temperatures: 3, chains: 4, rest: 1, leapfrog: 2}}
  tracking.experiment: chaos
  tracking.model: chaos
  tracking.plots_every: 100
space:
  algorithm.adversary.lr: {{loguniform: [1.0e-3, 3.0e-3]}}
  algorithm.latent_dim: {{choice: [2, 4, 8]}}
objective: {{metric: validation/log_likelihood, mode: max}}
scheduler: {{asha: null}}
trials: {trials}
"""
SEARCH = "ray submit ray_cluster.yaml tune_avb.py -- --space tune_spaces/chaos.yaml"
FIRST = (15, 45)  # seconds from the begin of a search to the first fault
PAUSE = (3, 20)  # seconds between two faults
OFF = (1, 5)  # seconds for which a host is off
SILENT = (20, 60)  # seconds for which MLflow does not answer
FULL = (3, 15)  # seconds for which the shared disk is full
FAILING = (5, 30)  # seconds for which one write in ten to it fails
DISK = 2**30  # bytes of the shared disk
FLAG = ".failing"  # a file there, while writes fail
KILLING = ".killing"  # a file there, until a process is killed between two writes to MLflow
WRITES_WITHIN = 20  # seconds in which some process should write to MLflow
LIMIT = 2400  # seconds for a search, whatever happens to it
ASKED = {"kill worker": 10, "kill trial": 20, "lose worker host": 60}  # seconds to the next round

console = Console(soft_wrap=True, highlight=False)
Curves = dict[str, list[tuple[int, float]]]
Results = tuple[dict[str, dict[str, torch.Tensor]], dict[str, list[Curves]]]  # parameters, and what MLflow has
Undo = tuple[float, Callable[[], None]]


@dataclass
class Fault:
    """Something that has happened.

    Attributes:
        name: what.
        at: seconds, of the monotonic clock.
        before: the round that each trial in training had saved.
        over: when it will be over of itself, and how; None where it is.
        recovered: seconds until every one of those trials had saved a later round, or had ended.
    """

    name: str
    at: float
    before: dict[str, int]
    over: Undo | None = None
    recovered: float | None = None

    def look(self, now: Mapping[str, int]) -> None:
        """Note whether training goes on, by the rounds that are saved now."""
        if self.recovered is None and all(now.get(trial, round_ + 1) > round_ for trial, round_ in self.before.items()):
            self.recovered = time.monotonic() - self.at


@dataclass
class Chaos:
    """What can happen to a cluster, and does.

    Args:
        cluster: where a search runs.
        random: what happens, to whom, and when.
        plan: names of faults, in their order.
        patient: whether each waits until training goes on after the one before.
    """

    cluster: Deployed
    random: random.Random
    plan: list[str]
    patient: bool
    struck: list[Fault] = field(default_factory=list)
    due: float = 0.0
    silent: tuple[float, float] = SILENT

    @classmethod
    def of(cls, cluster: Deployed, draw: random.Random, names: Sequence[str], faults: int) -> "Chaos":
        """So many of those faults, in that order; of all, and at random, where none are named."""
        plan = [(names or FAULTS)[i % len(names or FAULTS)] for i in range(faults)]
        if not names:
            draw.shuffle(plan)
        return cls(cluster, draw, plan, patient=bool(names))

    def begin(self) -> None:
        """Set the time of the first fault."""
        self.due = time.monotonic() + self.random.uniform(*FIRST)

    def tick(self, folder: Path | None) -> None:
        """Do what is due; called every moment.

        Args:
            folder: of the search, when it has begun.
        """
        now = time.monotonic()
        last = self.struck[-1] if self.struck else None
        if folder is not None:  # also while a fault lasts, of which training may not take notice
            saved = rounds(folder)
            for fault in self.struck:
                fault.look(saved)
        if last is not None and last.over is not None:
            if now > last.over[0]:
                last.over[1]()
                last.over = None
                self.due = max(self.due, now + self.random.uniform(*PAUSE))
            return
        if folder is None:
            return
        waiting = self.patient and last is not None and last.recovered is None
        if len(self.struck) == len(self.plan) or now < self.due or waiting:
            return
        self._strike(self.plan[len(self.struck)], folder)

    def _strike(self, name: str, folder: Path) -> None:
        fault = Fault(name, time.monotonic(), rounds(folder))
        if self.patient and not fault.before:
            return
        try:
            fault.over = getattr(self, name.replace(" ", "_"))()
        except (LookupError, ProcessLookupError):  # nothing there that it could happen to: something else first
            self.plan.append(self.plan.pop(len(self.struck)))
            return
        self.struck.append(fault)
        self.due = time.monotonic() + self.random.uniform(*PAUSE)

    def kill_worker(self) -> None:
        """A process that trains is gone."""
        os.kill(self.random.choice(self._training())[1], signal.SIGKILL)

    def hang_rank(self) -> None:
        """One of several workers does not go on, and does not end."""
        os.kill(self._pick("ray::RayTrainWorker"), signal.SIGSTOP)

    def kill_trial(self) -> None:
        """The actor of a trial is gone."""
        os.kill(self._pick("ray::ImplicitFunc"), signal.SIGKILL)

    def kill_driver(self) -> None:
        """The search itself is gone."""
        os.kill(self._pick("tune_avb.py"), signal.SIGKILL)

    def lose_worker_host(self) -> Undo:
        """A host that trains is switched off and on again."""
        return self._off(self.random.choice(sorted({host for host, _ in self._training()} - {HEAD})))

    def lose_head(self) -> Undo:
        """The host that schedules, and serves MLflow."""
        return self._off(HEAD)

    def silence_mlflow(self) -> Undo:
        """MLflow takes connections and does not answer."""
        group = os.getpgid(self._pick("mlflow"))
        os.killpg(group, signal.SIGSTOP)

        def speak() -> None:
            with suppress(ProcessLookupError):  # its Ray has ended
                os.killpg(group, signal.SIGCONT)

        return time.monotonic() + self.random.uniform(*self.silent), speak

    def fill_disk(self) -> Undo:
        """Nothing can be written to the disk that all share."""
        ballast = self.cluster.hosts.shared / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**20))
        return time.monotonic() + self.random.uniform(*FULL), ballast.unlink

    def fail_writes(self) -> Undo:
        """One write in ten to the disk that all share says EIO, of whatever program."""
        flag = self.cluster.hosts.shared / FLAG
        flag.touch()
        return time.monotonic() + self.random.uniform(*FAILING), flag.unlink

    def kill_between_writes(self) -> None:
        """A process that has written to MLflow is gone before it writes again: a worker, or the search itself."""
        flag = self.cluster.hosts.shared / KILLING
        flag.touch()
        until = time.monotonic() + WRITES_WITHIN
        while flag.exists():
            time.sleep(0.05)
            if time.monotonic() > until:
                flag.unlink(missing_ok=True)
                raise LookupError("nobody writes")

    def _off(self, host: str) -> Undo:
        self.cluster.hosts.kill(host)
        return time.monotonic() + self.random.uniform(*OFF), lambda: self.cluster.hosts.start(host)

    def _pick(self, title: str) -> int:
        """A process of that name, on any host."""
        return self.random.choice(self._find(title))[1]

    def _training(self) -> list[tuple[str, int]]:
        """Ray Train workers; where a trial has a single worker, its own actors."""
        return self._find("ray::RayTrainWorker") or self._find("ray::ImplicitFunc")

    def _find(self, title: str) -> list[tuple[str, int]]:
        """Processes of that name, and their hosts."""
        return [
            (host, pid)
            for host in (HEAD, *WORKERS)
            for pid, words in self.cluster.hosts.processes(host).items()
            if words[0].startswith(title) or ("python" in words[0] and any(title in word for word in words[1:3]))
        ]


FAULTS = (
    "kill worker",
    "kill trial",
    "hang rank",
    "kill driver",
    "lose worker host",
    "lose head",
    "silence mlflow",
    "fill disk",
    "fail writes",
    "kill between writes",
)


def rounds(folder: Path) -> dict[str, int]:
    """The last round that each trial in training has saved."""
    found = {}
    for path in folder.glob("trials/*/job.json"):
        saved = [int(each.name.removeprefix("round-")) for each in path.parent.glob("checkpoints/round-*")]
        if not (path.parent / OUTCOME).exists():
            found[path.parent.name] = max(saved, default=0)
    return found


def search(cluster: Deployed, chaos: Chaos | None) -> Path:
    """Run the search to its end; gives its folder."""
    shared = cluster.hosts.shared
    before, begun, told = set(shared.glob("chaos-*/space.yaml")), time.monotonic(), 0
    if chaos is not None:
        chaos.begin()
    while True:
        mine = set(shared.glob("chaos-*/space.yaml")) - before
        driver = _start(cluster, SEARCH + (" --resume" if mine else ""))
        while driver.poll() is None:
            folder = next((each.parent for each in set(shared.glob("chaos-*/space.yaml")) - before), None)
            if chaos is not None:
                chaos.tick(folder)
                for fault in chaos.struck[told:]:
                    say(begun, f"{fault.name} ({len(chaos.struck)} of {len(chaos.plan)}), training {fault.before}")
                told = len(chaos.struck)
            if time.monotonic() - begun > LIMIT:
                driver.kill()
                raise SystemExit(f"the search has not ended after {LIMIT} s")
            time.sleep(0.2)
        while chaos is not None and chaos.struck and chaos.struck[-1].over is not None:
            chaos.tick(None)
            time.sleep(0.2)
        if driver.returncode == 0:
            (space,) = set(shared.glob("chaos-*/space.yaml")) - before
            say(begun, f"{space.parent.name} has ended, after {told} faults")
            return space.parent
        say(begun, f"the driver ended with {driver.returncode}; again")
        if not any(Path(words[0]).name == "gcs_server" for words in cluster.hosts.processes(HEAD).values()):
            cluster.at_home("ray up -y ray_cluster.yaml")
            say(begun, "the head is up again")


def say(begun: float, what: str) -> None:
    """Tell what goes on."""
    console.print(f"{time.monotonic() - begun:6.0f} s  {what}", markup=False)


def _start(cluster: Deployed, command: str) -> subprocess.Popen[bytes]:
    options = [word for option in SSH_OPTIONS for word in ("-o", option)]
    log = (cluster.hosts.folder / "driver.log").open("ab")
    there = f"bash -lc 'cd checkout && export PYTHONPATH=$PWD && {command}'"
    return subprocess.Popen(
        ["ssh", "-i", str(cluster.hosts.key), *options, f"root@{cluster.hosts.address(LAPTOP)}", there],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


def trained(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of each finished trial, by its configuration."""
    found = {}
    for path in folder.glob("trials/*/job.json"):
        job, outcome = Job.read(path.parent), Outcome.read(path.parent)
        newest = CheckpointStore(job.checkpoints).latest()
        if outcome is not None and outcome.status == "finished" and newest is not None:
            found[json.dumps(job.config.tree(), sort_keys=True)] = newest.state["engine"]["algorithm"]
    return found


def recorded(cluster: Deployed, folder: Path) -> dict[str, list[Curves]]:
    """The points of each metric in the runs of each trial, by its configuration."""
    program = """
import json
from mlflow import MlflowClient
client = MlflowClient()
(experiment,) = client.search_experiments(filter_string="name = 'chaos'")
found = []
for run in client.search_runs([experiment.experiment_id], max_results=1000):
    keys = [name for name in run.data.metrics if name.startswith(("train/", "validation/", "test/", "certificate/"))]
    curves = {name: [(e.step, e.value) for e in client.get_metric_history(run.info.run_id, name)] for name in keys}
    found.append((run.data.tags.get("avb.resume_key", ""), curves))
print(json.dumps(found))
"""
    there = cluster.hosts.folder / LAPTOP / "home" / "recorded.py"
    there.write_text(program)
    runs = json.loads(cluster.at_home(f"{cluster.login} python ../recorded.py"))
    jobs = {job.key: job for job in (Job.read(path.parent) for path in folder.glob("trials/*/job.json"))}
    found: dict[str, list[Curves]] = defaultdict(list)
    for key, curves in runs:
        if key in jobs:
            found[json.dumps(jobs[key].config.tree(), sort_keys=True)].append(curves)
    return found


def differences(calm: Results, rough: Results, relative: float) -> list[str]:
    """What faults have changed, though they must not.

    Args:
        calm: of the undisturbed search.
        rough: of the other.
        relative: how far parameters and numbers may be apart; 0 for equal bits.
    """
    found = []
    if rough[0].keys() != calm[0].keys():
        found.append(f"{len(rough[0])} trials have finished, expected the {len(calm[0])} of the undisturbed search")
    for index, key in enumerate(sorted(calm[0].keys() & rough[0].keys())):
        apart = [name for name, tensor in calm[0][key].items() if not near(tensor, rough[0][key][name], relative)]
        lines = [f"{', '.join(apart)} differ"] if apart else []
        if len(rough[1][key]) != 1:
            lines.append(f"{len(rough[1][key])} runs in MLflow")
        for metric, points in calm[1][key][0].items():
            expected, seen = dict(points), rough[1][key][0].get(metric, []) if rough[1][key] else []
            twice = [step for step, count in Counter(step for step, _ in seen).items() if count > 1]
            missing = sorted(expected.keys() - dict(seen).keys())
            others = [
                step
                for step, value in seen
                if not math.isclose(value, expected.get(step, math.nan), rel_tol=10 * relative)
            ]
            lines += [f"{metric} twice at {twice}"] if twice else []
            lines += [f"{metric} is missing at {missing}"] if missing else []
            lines += [f"{metric} is another at {others}"] if others else []
        found += [f"trial {index}: {line}" for line in lines]
    return found


def near(one: torch.Tensor, other: torch.Tensor, relative: float) -> bool:
    """Whether they are as close as that, or equal to the bit."""
    return torch.equal(one, other) or bool((one - other).norm() < relative * one.norm())


def times(struck: Sequence[Fault]) -> Iterator[str]:
    """How long it took, fault by fault."""
    by_name: dict[str, list[Fault]] = defaultdict(list)
    for fault in struck:
        by_name[fault.name].append(fault)
    for name, faults in by_name.items():
        took = [fault.recovered for fault in faults if fault.recovered is not None and fault.before]
        asked = f", asked: {ASKED[name]} s" if name in ASKED else ""
        waited = f"after {', '.join(f'{seconds:.0f}' for seconds in took)} s" if took else "not measured"
        yield f"{name}, {len(faults)} times: next round of all that were in training {waited}{asked}"


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of a given size, mounted at a folder for a block."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main(
    seed: Annotated[list[int] | None, typer.Option(help="Of what happens, and when; repeatable.")] = None,
    faults: Annotated[int, typer.Option(min=1, help="How many, with each seed.")] = 20,
    only: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(FAULTS)}; repeatable.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Of the search.")] = 8,
    length: Annotated[int, typer.Option("--rounds", min=50, help="Of each trial.")] = 600,
    workers: Annotated[int, typer.Option(min=1, max=4, help="Of each trial; a host has room for 2.")] = 2,
    least: Annotated[
        int | None, typer.Option("--min-workers", help="Go on with so many; then results are compared to 1e-4.")
    ] = None,
    silent: Annotated[float | None, typer.Option(help="Seconds without MLflow; else 20 to 60.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep what the hosts had on their disks, here.")] = None,
) -> None:
    """Disturb a search, and compare what comes out of it with the same search undisturbed.

    With --only, faults come in the order given, each when training goes on after the one before.
    """
    if why := objection() or ("" if shutil.which("cc") else "writes that fail need a C compiler, cc"):
        raise SystemExit(why)
    names = [name.replace("_", " ") for name in only or []]
    if unknown := set(names) - set(FAULTS):
        raise SystemExit(f"--only {unknown.pop()}: expected one of {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # so that the hosts end too
    # Another number of workers rounds otherwise, of which adversarial training in 32 bits makes 1e-2 in 100 rounds.
    space = SPACE.format(
        trials=trials,
        rounds=length,
        workers=workers,
        logical=max(2, workers),
        least=least or "null",
        dtype="float64" if least else "float32",
    )
    bad = 0
    with up(space, keep) as cluster:
        calm = outcome(cluster, search(cluster, None))
        for each in seed or [0]:
            chaos = Chaos.of(cluster, random.Random(each), names, faults)
            chaos.silent = SILENT if silent is None else (silent, silent)
            found = differences(calm, outcome(cluster, search(cluster, chaos)), 1e-4 if least else 0)
            # Where one fault comes upon the other, the time to get over it says nothing.
            for line in (*(times(chaos.struck) if names else ()), *found):
                console.print(line, markup=False)
            console.print(f"seed {each}, {len(chaos.struck)} faults: {len(found)} differences")
            bad += len(found)
    raise SystemExit(bool(bad))


@contextmanager
def up(space: str, keep: Path | None) -> Iterator[Deployed]:
    """A cluster with that search space, on hosts that share a small disk."""
    with tempfile.TemporaryDirectory() as place, disk(Path(place) / "lab" / "shared", DISK):
        with deployed(Path(place) / "lab", {"chaos": space}) as cluster:
            libraries = [_library(name, Path(place)) for name in ("failing_writes", "killed_between_writes")]
            for host in (HEAD, *WORKERS):
                with (cluster.hosts.folder / host / "home" / ".bashrc").open("a") as file:
                    file.write("export RAY_worker_niceness=0\n")  # else all that this machine does goes first
                    for variable, flag in (("AVB_FAILING", FLAG), ("AVB_KILLING", KILLING)):
                        file.write(f"export {variable}={cluster.hosts.shared / flag}\n")
                    file.write(f"export LD_PRELOAD={':'.join(map(str, libraries))}\n")
            try:
                cluster.at_home("ray up -y ray_cluster.yaml")
                yield cluster
                cluster.at_home("ray down -y ray_cluster.yaml")
            finally:
                if keep is not None:
                    subprocess.run(["cp", "-a", str(cluster.hosts.folder), str(keep)], check=True)


def _library(name: str, folder: Path) -> Path:
    """A library to preload, from the C file of that name."""
    source, library = Path(__file__).parent / "cluster" / f"{name}.c", folder / f"{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def outcome(cluster: Deployed, folder: Path) -> Results:
    """What came out of a search."""
    return trained(folder), recorded(cluster, folder)


if __name__ == "__main__":
    typer.run(main)
