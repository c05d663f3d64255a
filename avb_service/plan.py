"""How long a round takes on so many workers, predicted from what one of them measures here; no Ray is started.

Floor 6. A round is computing, which workers share out, and averaging, which grows with them: of gradients through
memory where all are on this host, else round a ring of hosts (Patarasu & Yuan 2009), through a network.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import torch

from avb_service.errors import UserError
from avb_service.fitting import Fit
from avb_service.seeding import reproducible
from avb_service.settings import ExperimentConfig

WORTH = 0.9  # of a round's time: more workers that leave more than that do not pay
TRIED = 7  # times that each is measured, of which the least counts
MESSAGES = 200
LATENCY_S = 5e-5  # of a message between two hosts, seconds


@dataclass(frozen=True)
class Costs:
    """What a round costs, seconds.

    Attributes:
        slice_s: the gradients of one slice, of all turns of a round.
        step_s: what every worker does once a round: steps, and draws that all slices share.
        bytes: of the gradients that are averaged in a round.
        means: how many of these.
        copy_s: of a byte that is written to memory and read from it.
        barrier_s: until two workers on one host know of each other.
    """

    slice_s: float
    step_s: float
    bytes: int
    means: int
    copy_s: float
    barrier_s: float

    def averaging(self, workers: int, bandwidth: float | None) -> float:
        """Seconds of a round in which workers average.

        Args:
            workers: how many.
            bandwidth: of the network between hosts, bytes a second; None: all are on this host.
        """
        if workers == 1:
            return 0.0
        if bandwidth is None:
            return self.means * (workers - 1) * self.barrier_s + (workers + 1) * self.bytes * self.copy_s
        return 2 * (workers - 1) * (self.means * LATENCY_S + self.bytes / workers / bandwidth)


@dataclass(frozen=True)
class Planned:
    """A round on so many workers.

    Attributes:
        workers: how many.
        computing_s: seconds of the slices of the worker that has most, and of the steps.
        averaging_s: seconds of averaging.
        speedup: of one worker's round.
    """

    workers: int
    computing_s: float
    averaging_s: float
    speedup: float

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.computing_s + self.averaging_s


def shares(config: ExperimentConfig, most: int) -> list[int]:
    """The numbers of workers that share the slices of a batch evenly, up to a given one.

    Raises:
        UserError: more workers than logical ones.
    """
    slices = config.training.logical_workers
    if most > slices:
        raise UserError(
            f"{most} workers share training.logical_workers {slices}, a slice of the batch each; raise it by "
            f"--set training.logical_workers={most}, or ask for fewer"
        )
    return [workers for workers in range(1, most + 1) if slices % workers == 0]


def measure(config: ExperimentConfig, on_gpu: bool = False) -> Costs:
    """Play some rounds of a configuration in this process, in threads as a worker has them.

    Raises:
        UserError: the data are not there, or the device is not, or lacks something.
    """
    if on_gpu and not torch.cuda.is_available():
        raise UserError("a GPU was asked for, and torch finds none here; leave out --gpus, or ask where there is one")
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    with tempfile.TemporaryDirectory() as folder:
        engine = Fit(config, Path(folder), device=device).engine
    slices = config.training.logical_workers
    with reproducible(config.training.matmul_precision):
        engine.choose()
        gradients, whole = engine.seconds_a_round(engine.manner), _least(engine.play_round, device)
    sizes = [slots.size for turn in engine.turns for slots in turn.slots for _ in range(turn.steps)]
    example = torch.zeros(max(sizes), dtype=getattr(torch, config.training.dtype), device=device)
    other = torch.ones_like(example)
    copy = _least(lambda: torch.add(example, other, out=example), device) / example.nbytes
    return Costs(
        slice_s=gradients / slices,
        step_s=max(0.0, whole - gradients),
        bytes=sum(sizes) * example.element_size(),
        means=sum(turn.steps for turn in engine.turns),
        copy_s=copy,
        barrier_s=_barrier(),
    )


def plan(config: ExperimentConfig, costs: Costs, most: int, bandwidth: float | None = None) -> list[Planned]:
    """A round on 1, 2, ... workers, those that share the slices evenly.

    Args:
        config: with as many logical workers as slices.
        costs: what `measure` has found.
        most: workers.
        bandwidth: between hosts, bytes a second; None: all are on this host.

    Raises:
        UserError: more workers than logical ones.
    """
    slices = config.training.logical_workers
    alone = slices * costs.slice_s + costs.step_s
    planned = []
    for workers in shares(config, most):
        computing = slices // workers * costs.slice_s + costs.step_s
        averaging = costs.averaging(workers, bandwidth)
        planned.append(Planned(workers, computing, averaging, alone / (computing + averaging)))
    return planned


def enough(planned: list[Planned]) -> int:
    """How many workers pay: the most of which each is a tenth of a round's time faster than the fewer before."""
    best = planned[0]
    for more in planned[1:]:
        if more.round_s < WORTH * best.round_s:
            best = more
    return best.workers


def _least(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of an action, at best."""
    taken = []
    for _ in range(TRIED):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _barrier() -> float:
    """Seconds until a byte that another process of this host sends is there: half of the way there and back."""
    echo = "import os\nwhile byte := os.read(0, 1): os.write(1, byte)"
    with subprocess.Popen([sys.executable, "-S", "-c", echo], bufsize=0, stdin=PIPE, stdout=PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        taken = []
        for _ in range(1 + MESSAGES):
            start = time.perf_counter()
            other.stdin.write(b".")
            other.stdout.read(1)
            taken.append(time.perf_counter() - start)
        other.stdin.close()
    return sum(taken[1:]) / MESSAGES / 2  # the first finds the other starting
