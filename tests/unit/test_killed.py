"""An evaluation whose process is killed at any moment, and started again."""

import multiprocessing
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from linear_gaussian import PCA, data

from avb_service.likelihood.importance import iwae
from avb_service.likelihood.proposals import from_prior
from avb_service.likelihood.scoring import Scorer, Task, estimate, serially

KILLS = 20
DATA = 10_000  # 200 blocks, more than are scored between all kills


class Weights:
    """An estimator whose repr is the same in every process."""

    def __call__(self, model: PCA) -> Scorer:
        return iwae(model, from_prior(model), 4)

    def __repr__(self) -> str:
        return "Weights()"


def task() -> Task:
    model = PCA(5, noise=0.5, pixels=20, dtype=torch.float32)
    return Task(model, Weights(), data(model, DATA), seed=0, memory_mib=64)


def score(store: Path, told: Connection) -> None:
    """What is killed: it keeps each block as it comes, and tells how many data are done."""
    torch.set_num_threads(1)
    estimate(task(), store=store, progress=lambda done, total: told.send(done))


def kill_once(store: Path, chance: random.Random) -> int:
    """Start it, let it score a few blocks, and kill it somewhere in the next: the data it was first seen to have."""
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["avb_service.likelihood"])  # so that torch is imported once
    heard, told = fresh.Pipe(duplex=False)
    process = fresh.Process(target=score, args=(store, told))
    process.start()
    told.close()
    found = heard.recv()
    for _ in range(chance.randint(0, 3)):
        heard.recv()
    time.sleep(chance.uniform(0, 0.004))
    process.kill()
    process.join()
    heard.close()
    assert process.exitcode == -signal.SIGKILL, "it was killed before it was done"
    return found


def test_killed_twenty_times_the_table_is_the_same_to_the_bit(tmp_path):
    undisturbed = estimate(task())
    chance, scored = random.Random(0), []
    found = [kill_once(tmp_path, chance) for _ in range(KILLS)]
    assert found[0] == 0 and found == sorted(found) and found[-1] > 0, "what was kept is found again"

    def noting(task: Task, blocks: list[range]):
        for block, columns in serially(task, blocks):
            scored.append(block)
            yield block, columns

    seen: list[int] = []
    result = estimate(task(), run=noting, store=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] >= found[-1] and seen[0] + sum(map(len, scored)) == DATA, "no block is scored twice"
    assert list(result.columns) == list(undisturbed.columns), "what is printed of it is the same too"
    for name, column in result.columns.items():
        assert np.array_equal(column, undisturbed.columns[name])
