"""The same model on 1, 2 and 4 workers: real processes that average their gradients through torch.distributed."""

import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from avb_service.algorithm import Algorithm, Batch, DataSpec, Loss, Player
from avb_service.algorithms import METHODS
from avb_service.build import build, load_data
from avb_service.distributed import neighbours
from avb_service.distributed.averaging import averaging
from avb_service.distributed.neighbours import Neighbours
from avb_service.distributed.preemption import HostLeaves, Preemption, listen
from avb_service.errors import DivergenceError, UserError
from avb_service.fitting import Fit
from avb_service.optim import TurnConfig
from avb_service.settings import ExperimentConfig
from avb_service.training.agreement import check_agreement
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import HEED_EVERY, Engine
from avb_service.trees import Tree, override

WORLDS = (1, 2, 4)
TRIALS = {
    **{method: (method, {}) for method in sorted(METHODS.own)},
    "avb_ac_simultaneous": (
        "avb_ac",
        {"algorithm.simultaneous": True, "algorithm.adversary.steps": 1, "algorithm.model.steps": 1},
    ),
    "vq_vae_by_gradient": ("vq_vae", {"algorithm.codebook": {"name": "gradient", "size": 8, "dim": 4}}),
}
every_trial = pytest.mark.parametrize("trial", TRIALS)
UNEVEN, TRIED_UNEVEN = 3, ("avb_ac", "vq_vae")  # workers that do not divide the 4 logical ones: a game, and statistics
ROUNDS, STOP = 10, 5
STOPPED = 0  # stands for the run that was stopped at half time on 2 workers, and is resumed on 1
SGD, ADAM = "float64-SGD", "float32-Adam"
TURNS = {
    SGD: {"optimizer": "SGD", "lr": 1e-3, "steps": 1},
    ADAM: {"optimizer": "Adam", "lr": 1e-3, "steps": 2},
}


class Stopped(Exception):
    """What a run is stopped with."""


# What runs in the processes: functions of the module, so that they can be found there.


Task = tuple[int, Callable[..., None], tuple[Any, ...]]  # workers, function of (rank, workers, *arguments), arguments


def enter(rank: int, folder: Path, tasks: tuple[Task, ...], seconds: int) -> None:
    torch.set_num_threads(1)
    for number, (workers, function, arguments) in enumerate(tasks):
        if rank < workers:
            meeting = f"file://{folder}/rendezvous-{number}"
            dist.init_process_group("gloo", meeting, timedelta(seconds=seconds), world_size=workers, rank=rank)
            try:
                function(rank, workers, *arguments)
            finally:
                dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that is torn down in the ordinary way while the machine is busy


def spawn(folder: Path, *tasks: Task, seconds: int = 60) -> None:
    """Run tasks one after the other in processes of their own; an error in one is raised here with its traceback.

    Ranks wait for each other for so many seconds.
    """
    mp.spawn(enter, (folder, tasks, seconds), nprocs=max(workers for workers, _, _ in tasks))


def experiment(tree: Tree, folder: Path, rank: int, workers: int) -> Fit:
    mean = averaging if dist.is_initialized() else None
    return Fit(ExperimentConfig.parse(tree), folder, averaging=mean, rank=rank, workers=workers)


def train(
    rank: int, workers: int, runs: dict[str, Tree], folder: Path, stop_at: int | None = None, apart: bool = False
) -> None:
    """Train the models one after the other, and leave each rank's parameters behind.

    Apart: as on hosts of their own, which share no memory.
    """
    if apart:
        neighbours.MEMORY = folder / "nowhere"

    def stop(round_: int, metrics: object) -> None:
        if round_ == stop_at:
            raise Stopped

    for name, tree in runs.items():
        run = experiment(tree, folder / name / "checkpoints", rank, workers)
        try:
            run.run(stop)
        except Stopped:
            continue
        # Without an average there is nothing in a state that is not copied before it is changed again.
        safetensors.torch.save_file(run.engine.algorithm.state_dict(), folder / name / f"rank-{rank}.safetensors")
        if rank == 0:
            (folder / name / "history.json").write_text(json.dumps(run.history))


def parameters(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"rank-{rank}.safetensors")


# The comparison.


@pytest.fixture(scope="module")
def runs(small) -> dict[str, Tree]:
    """Every method, and VQ-VAE with either codebook, in both precisions, with 4 logical workers, under its name.

    Penalties on slopes are played where they are seen to the last digit: they jump where a leaky unit bends, and in 32
    bits round-off may tip one over.
    """
    trees = {}
    for trial, (method, settings) in TRIALS.items():
        players = build(small(method), load_data(small(method)).spec).players()
        for kind, turn in TURNS.items():
            sloped = kind == SGD and hasattr(small(method).algorithm, "penalty")
            trees[f"{trial}-{kind}"] = small(
                method,
                {
                    "training.rounds": ROUNDS,
                    "training.report_every": STOP,
                    "training.logical_workers": 4,
                    "training.dtype": kind.split("-")[0],
                    **({"algorithm.penalty": 0.5} if sloped else {}),
                    **{f"algorithm.{player.name}": turn for player in players},
                    **settings,
                },
            ).tree()
    return trees


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory) -> dict[int, Path]:
    folders = {workers: tmp_path_factory.mktemp(f"workers-{workers}") for workers in (*WORLDS, UNEVEN)}
    uneven = {name: tree for name, tree in runs.items() if name.split("-")[0] in TRIED_UNEVEN}
    folders[STOPPED] = tmp_path_factory.mktemp("stopped")
    train(0, 1, runs, folders[1])
    spawn(
        tmp_path_factory.mktemp("spawn"),
        (4, train, (runs, folders[4], None, True)),
        (3, train, (uneven, folders[3])),
        (2, train, (runs, folders[2])),
        (2, train, (runs, folders[STOPPED], STOP, True)),
    )
    return folders


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], kind: str, workers: int = 2) -> None:
    """Halves and quarters are exact in binary, thirds are not; in 32 bits Adam makes the most of a small gradient."""
    assert one.keys() == other.keys()
    relative = 1e-3 if workers == UNEVEN else 5e-4
    for name in one:
        if kind == SGD:
            assert (one[name] - other[name]).abs().max() < 1e-10, name
        else:
            assert (one[name] - other[name]).norm() < relative * one[name].norm(), name


@every_trial
@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("kind", TURNS)
def test_any_number_of_workers_trains_the_same_model(trained, trial, kind, workers):
    name = f"{trial}-{kind}"
    alone = parameters(trained[1] / name)
    assert_close(alone, parameters(trained[workers] / name), kind, workers)


@pytest.mark.parametrize("kind", TURNS)
@pytest.mark.parametrize("name", TRIED_UNEVEN)
def test_workers_that_share_unevenly_train_the_same_model(trained, name, kind):
    one, three = trained[1] / f"{name}-{kind}", trained[UNEVEN] / f"{name}-{kind}"
    assert_close(parameters(one), parameters(three), kind, UNEVEN)
    assert all(torch.equal(parameters(three)[key], parameters(three, 2)[key]) for key in parameters(three))


@every_trial
@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("kind", TURNS)
def test_all_ranks_hold_the_same_bits(trained, trial, kind, workers):
    name = f"{trial}-{kind}"
    first = parameters(trained[workers] / name)
    for rank in range(1, workers):
        other = parameters(trained[workers] / name, rank)
        assert all(torch.equal(first[key], other[key]) for key in first)


@every_trial
@pytest.mark.parametrize("kind", TURNS)
def test_the_comparison_is_of_models_that_have_moved(runs, trained, trial, kind):
    """Much further than the tolerance: two runs that had learned nothing would agree as well."""
    config = ExperimentConfig.parse(runs[f"{trial}-{kind}"])
    algorithm = build(config, load_data(config).spec).to(getattr(torch, config.training.dtype))
    before, after = algorithm.state_dict(), parameters(trained[1] / f"{trial}-{kind}")
    distance = {name: (after[name] - before[name]).norm().item() for name in after}
    still = {name for name in after if distance[name] < (1e-7 if kind == SGD else 1e-3 * before[name].norm())}
    assert still == set()


@every_trial
@pytest.mark.parametrize("workers", WORLDS[1:])
@pytest.mark.parametrize("kind", TURNS)
def test_any_number_of_workers_reports_the_same_numbers(trained, trial, kind, workers):
    """Losses are means over all workers, not those of rank 0's share."""
    one, other = (json.loads((trained[n] / f"{trial}-{kind}" / "history.json").read_text()) for n in (1, workers))
    assert one.keys() == other.keys()
    for name in one.keys() - {"time/train_seconds"}:
        assert other[name] == [[round_, pytest.approx(value, rel=1e-3, abs=1e-4)] for round_, value in one[name]]


def test_a_run_on_several_hosts_resumes_to_the_same_bits(runs, trained, tmp_path):
    """Round a ring of more than two, the order of a sum depends on where in what is sent a number lies."""
    some = {name: runs[name] for name in (f"{method}-{ADAM}" for method in TRIED_UNEVEN)}
    spawn(tmp_path, (4, train, (some, tmp_path, STOP, True)), (4, train, (some, tmp_path, None, True)))
    for name in some:
        undisturbed, resumed = parameters(trained[4] / name), parameters(tmp_path / name)
        assert all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed), name


@every_trial
def test_a_run_that_lost_a_worker_resumes_to_the_same_model(runs, trained, trial):
    for kind in TURNS:
        name = f"{trial}-{kind}"
        resumed = experiment(runs[name], trained[STOPPED] / name / "checkpoints", 0, 1)
        resumed.resume()
        assert resumed.engine.round == STOP
        resumed.run()
        assert resumed.engine.round == ROUNDS
        assert_close(parameters(trained[1] / name), resumed.engine.algorithm.state_dict(), kind)


# What must not go unnoticed.


class Flawed(Algorithm):
    """Two linear maps, of which a player may own both and use one."""

    def __init__(self, own_both: bool, use_both: bool) -> None:
        super().__init__(None, DataSpec((1, 1, 2), "real", 0, torch.zeros(1, 1, 2)))
        self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 1)
        self.own_both, self.use_both = own_both, use_both

    def players(self) -> tuple[Player, ...]:
        own = (self.used, self.spare) if self.own_both else (self.used,)
        return (Player(name="model", objective=self.loss, networks=own, turn=TurnConfig()),)

    def loss(self, batch: Batch) -> Loss:
        h = self.used(batch.x)
        value = (self.spare(h) if self.use_both else h).square().mean()
        return Loss(value, {"loss": value.detach()})

    def sample(self, n: int) -> Tensor:
        return self.used(torch.randn(n, 1, 1, 2))


def source(index: int, worker: int) -> tuple[Tensor, None]:
    return torch.full((3, 1, 1, 2), 1.0 + index + worker), None


def engine(algorithm: Algorithm, rank: int, workers: int, **options: Any) -> Engine:
    mean = partial(averaging, timeout_s=options.get("timeout_s", 60)) if dist.is_initialized() else None
    config = TrainingConfig(rounds=4, report_every=2, logical_workers=4, batch_size=12)
    return Engine(algorithm, options.get("source", source), config, averaging=mean, rank=rank, workers=workers)


def ignore(report: object) -> None:
    """A report that nobody reads."""


def find_flaws(rank: int, workers: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(TypeError, match=r"^Flawed: no player owns spare\.weight, spare\.bias$"):
        engine(Flawed(own_both=False, use_both=True), rank, workers)
    with pytest.raises(TypeError, match=r"player 'model' owns spare\.weight, spare\.bias, but its objective does not"):
        engine(Flawed(own_both=True, use_both=False), rank, workers).run(ignore)
    torch.manual_seed(0)  # each rank has drawn noise of its own
    sound = engine(Flawed(own_both=True, use_both=True), rank, workers)
    sound.run(ignore)
    assert sound.round == 4


def test_stray_and_unused_parameters_are_named_on_one_worker():
    find_flaws(0, 1)


def drift(rank: int, workers: int) -> None:
    torch.manual_seed(0)
    apart = engine(Flawed(own_both=True, use_both=True), rank, workers)

    def nudge(report: Any) -> None:
        if rank == 1 and report.round == 2:
            with torch.no_grad():
                weight = apart.algorithm.used.weight
                weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(math.inf))

    with pytest.raises(RuntimeError, match="round 4: the state of ranks 1 differs from rank 0's"):
        apart.run(nudge)
    with pytest.raises(RuntimeError, match="round 4: the state of ranks 1 differs from rank 0's"):
        apart.run(ignore)  # nor do they start again


def diverge(rank: int, workers: int) -> None:
    """NaN in the data of one worker stops all of them before the step."""
    torch.manual_seed(0)

    def poisoned(index: int, worker: int) -> tuple[Tensor, None]:
        x, _ = source(index, worker)
        return (x * math.nan if (index, worker) == (1, 3) else x), None

    model = engine(Flawed(own_both=True, use_both=True), rank, workers, source=poisoned)
    named = rf"round 1: the gradient of player 'model' is nan, the loss nan on rank 1 \({socket.gethostname()}\) of 2;"
    with pytest.raises(DivergenceError, match=named):
        model.run(ignore)
    assert all(p.isfinite().all() for p in model.algorithm.parameters())
    check_agreement(model.algorithm, model.round)


def overflow(rank: int, workers: int) -> None:
    """A gradient that is infinite although every loss is finite is not blamed on anybody."""
    torch.manual_seed(0)
    model = engine(Flawed(own_both=True, use_both=True), rank, workers)
    model.turns[0].slots[0].parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergenceError, match="finite on every rank"):
        model.run(ignore)


def check(rank: int, workers: int) -> None:
    for task in (find_flaws, drift, diverge, overflow):
        task(rank, workers)


def test_flaws_drift_and_divergence_are_found_by_every_rank(tmp_path):
    spawn(tmp_path, (2, check, ()))


def hang(rank: int, workers: int, folder: Path) -> None:
    """Rank 1 stays away from the second batch; the other says so, and does not wait for ever."""
    given_up = folder / "given up"

    def stuck(index: int, worker: int) -> tuple[Tensor, None]:
        while rank == 1 and index == 1 and not given_up.exists():
            time.sleep(0.05)
        return source(index, worker)

    torch.manual_seed(0)
    model = engine(Flawed(own_both=True, use_both=True), rank, workers, source=stuck, timeout_s=2)
    with pytest.raises(RuntimeError, match="(?i)timed out" if rank == 0 else "waited for another|gloo|[Cc]onnection"):
        model.run(ignore)
    given_up.touch()
    assert model.round in ((1,) if rank == 0 else (1, 2))  # what rank 0 gave before it gave up is a step's worth
    os._exit(0)  # as Ray Train ends them; the group is broken and cannot be left in good order


def test_a_rank_that_hangs_is_a_failure_of_the_others_and_not_a_wait(tmp_path):
    spawn(tmp_path, (2, hang, (tmp_path,)))
    assert (tmp_path / "given up").exists()


def leave(rank: int, workers: int, tree: Tree, folder: Path) -> None:
    """Rank 1 is told to end between two reports: both save, and both say why they end."""
    if rank == 1:
        listen()
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(HostLeaves):
        experiment(tree, folder, rank, workers).run(heed=Preemption(torch.device("cpu"), set))


def test_a_model_whose_worker_is_told_to_end_goes_on_elsewhere_from_there(small, tmp_path):
    tree = small(
        "avb",
        {
            "training.rounds": 30,
            "training.report_every": 25,
            "training.logical_workers": 4,
            "training.dtype": "float64",
        },
    ).tree()
    undisturbed = experiment(tree, tmp_path / "undisturbed", 0, 1)
    undisturbed.run()
    spawn(tmp_path, (2, leave, (tree, tmp_path / "disturbed")))
    resumed, reported = experiment(tree, tmp_path / "disturbed", 0, 1), []
    resumed.resume(lambda round_, metrics: reported.append(round_))
    assert (resumed.engine.round, reported) == (HEED_EVERY, [])
    resumed.run()
    for name, expected in undisturbed.engine.algorithm.state_dict().items():
        assert torch.allclose(resumed.engine.algorithm.state_dict()[name], expected, rtol=1e-4, atol=1e-9), name
    for name in undisturbed.history.keys() - {"time/train_seconds"}:
        expected = [[round_, pytest.approx(value, rel=1e-3, abs=1e-4)] for round_, value in undisturbed.history[name]]
        assert resumed.history[name] == expected, name


def leave_and_come_back(rank: int, workers: int, tree: Tree, folder: Path) -> None:
    """All save between two reports, and go on from there; beside it a run that nothing disturbs."""
    leave(rank, workers, tree, folder / "disturbed")
    for name in ("disturbed", "undisturbed"):
        run = experiment(tree, folder / name, rank, workers)
        run.run()
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps({k: v for k, v in run.history.items() if "time/" not in k}))


def test_numbers_of_a_run_that_was_saved_between_two_reports_are_the_same_to_the_bit(small, tmp_path):
    tree = small("avb", {"training.rounds": 30, "training.report_every": 25, "training.logical_workers": 4}).tree()
    spawn(tmp_path, (3, leave_and_come_back, (tree, tmp_path)))
    disturbed, undisturbed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("disturbed", "undisturbed"))
    assert len(disturbed) > 5 and disturbed == undisturbed


def meet(rank: int, workers: int, memory: Path) -> None:
    """Three neighbours, one of which is late now and then; then hosts that share no memory, or have too little."""
    neighbours.MEMORY = memory
    gradient = torch.zeros(20, dtype=torch.float64)
    mean = averaging(gradient)
    dist.barrier()
    assert not list(memory.iterdir()), "the memory is nobody's but theirs"
    dist.barrier()
    sizes = []
    for turn in range(1, 9):
        if turn % workers == rank:
            time.sleep(0.02)
        mine = gradient[: 20 - turn].fill_(turn * 10.0**rank)  # as large as was said, or smaller
        mean(mine)
        expected = turn * sum(10.0**other for other in range(workers)) / workers
        torch.testing.assert_close(mine, torch.full_like(mine, expected))
        sizes.append(mine.norm().item())
    everybody: list[list[float]] = [[]] * workers
    dist.all_gather_object(everybody, sizes)
    assert everybody == [sizes] * workers
    neighbours.MEMORY = memory / str(rank)
    neighbours.MEMORY.mkdir()
    assert Neighbours.meet(2**60, 60) is None, "more than there is"
    os.path.exists = lambda path: rank == 0 and Path(path).exists()
    assert Neighbours.meet(120, 60) is None, "rank 1 does not see what rank 0 has made"
    assert not list(neighbours.MEMORY.iterdir())


def test_neighbours_average_through_memory_and_leave_none_behind(tmp_path):
    (tmp_path / "memory").mkdir()
    spawn(tmp_path, (3, meet, (tmp_path / "memory",)))


def wait_in_vain(rank: int, workers: int, timeout_s: float, reason: str, ended: bool) -> None:
    """Rank 1 does not come to a turn, or it has ended."""
    gradient = torch.ones(20)
    mean = averaging(gradient, timeout_s)
    if rank == 1 and ended:
        os._exit(0)
    elif rank == 0:
        with pytest.raises(RuntimeError, match=f"rank 0 waited for another on its host in vain: {reason}"):
            mean(gradient)
    if not ended:
        dist.barrier()


def test_a_neighbour_that_does_not_come_is_an_error(tmp_path):
    spawn(
        tmp_path,
        (2, wait_in_vain, (0.2, "timed out", False)),
        (2, wait_in_vain, (60, "(it has closed its connection|.*reset|.*Broken pipe)", True)),
    )


def test_more_workers_than_slices_are_refused():
    with pytest.raises(UserError, match="5 workers cannot share training.logical_workers 4"):
        engine(Flawed(own_both=True, use_both=True), 0, 5)


def fail_on_one_rank(rank: int, workers: int, tree: Tree, folder: Path) -> None:
    """The disk of rank 0, which alone evaluates and saves, is full; then the data are missing where rank 1 runs."""
    run = experiment(tree, folder / "checkpoints", rank, workers)

    def save(*arguments: object) -> None:
        raise UserError("cannot write: the disk is full")

    run.store.save = save
    with pytest.raises(UserError, match="the disk is full"):
        run.run()
    lost = ExperimentConfig.parse(override(tree, "data", {"name": "file", "path": str(folder / f"{rank}.npy")}))
    with pytest.raises(UserError, match=r"1\.npy does not exist"):
        Fit(lost, folder, averaging=averaging, rank=rank, workers=workers)
    dist.barrier()  # both are here: nobody waits for a gradient that will not come


def test_what_stops_one_rank_stops_the_others_as_well(small, tmp_path):
    np.save(tmp_path / "0.npy", np.eye(8, dtype=np.float32).repeat(8, 0))
    tree = small(min(METHODS.own), {"training.logical_workers": 2, "training.report_every": 1}).tree()
    spawn(tmp_path, (2, fail_on_one_rank, (tree, tmp_path)))
