"""What holds for every method.

Floor 9.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from avb_service.algorithm import DecodingModel, EncodingModel, LatentVariableModel
from avb_service.build import build, load_data
from avb_service.distributed.averaging import averaging
from avb_service.fitting import Fit
from avb_service.model import Model
from avb_service.report import assess
from avb_service.seeding import one_thread, reseed, seeded
from avb_service.settings import ExperimentConfig, read_config
from avb_service.training.capture import Program
from avb_service.training.flat import Slots, room
from avb_service.training.recording import Uncapturable

Changes = Mapping[str, Any]
FEW = {
    "training.rounds": 4,
    "training.batch_size": 16,
    "training.report_every": 2,
    "training.logical_workers": 2,
    "likelihood.budget": "quick",
    "likelihood.importance_draws": 4,
    "likelihood.proposal_draws": 16,
    "likelihood.elbo_draws": 2,
    "likelihood.validation_data": 8,
    "likelihood.test_data": 8,
    "likelihood.quadrature_data": 2,
    "likelihood.search": {"temperatures": 3, "chains": 4, "rest": 1, "leapfrog": 2},
}
WORKERS = 2
PATIENCE = timedelta(seconds=120)  # for which processes wait for each other
CLOSE = 1e-9  # to each other, parameters of 64 bits after a few rounds of plain gradient steps


class Stopped(Exception):
    """What a run is stopped with, as by a machine that is lost."""


def small(source: str | Path | ExperimentConfig, changes: Changes | None = None) -> ExperimentConfig:
    """A preset, file or configuration with so few rounds and draws that it trains in seconds.

    Raises:
        UserError: see `read_config`.
    """
    return read_config(source, {**FEW, **(changes or {})})


def check_method(source: str | Path | ExperimentConfig, changes: Changes | None = None) -> None:
    """Make sure that a method keeps what is promised of all methods.

    Gradients reach what each player owns; a run that was stopped ends as one that was not, to the bit; so does one of
    several workers, up to the order of sums; a published model is the one that was trained; a recorded play is the
    written one; shapes are as `avb_service.algorithm` says.

    Args:
        source: a preset of the method, a YAML file or a configuration; it is trained for some rounds.
        changes: on top of it, by dotted path.

    Raises:
        AssertionError: it does not; says what.
        UserError: it cannot be trained.
    """
    config = small(source, changes)
    first = gradients_reach_what_is_owned, shapes_are_right, resumes
    for check in (*first, saves_and_loads, records, is_the_same_on_workers):
        with TemporaryDirectory() as folder, one_thread():
            check(config, Path(folder))


def gradients_reach_what_is_owned(config: ExperimentConfig, folder: Path, device: str = "cpu") -> None:
    """Every parameter gets a gradient in its owners' turns and in no other's, and moves."""
    fit = Fit(config, folder, device=device)
    names = {id(p): name for name, p in fit.engine.algorithm.named_parameters()}
    players = fit.engine.players
    owned = {
        player.name: {names[id(p)] for network in player.networks for p in network.parameters()} for player in players
    }
    before = {name: p.detach().clone() for name, p in fit.engine.algorithm.named_parameters()}
    with _gradients_seen(fit, names) as seen:
        fit.run()
    for player, own in owned.items():
        missed, strange = own - seen[player], seen[player] - own
        assert not missed, f"no gradient of {player}'s loss has reached {sorted(missed)}, which it owns"
        assert not strange, f"the turn of {player} has given a gradient to {sorted(strange)}, which others own"
    still = [name for name, p in fit.engine.algorithm.named_parameters() if torch.equal(p, before[name])]
    assert not still, f"training has not moved {still}"


@contextmanager
def _gradients_seen(fit: Fit, names: Mapping[int, str]) -> Iterator[dict[str, set[str]]]:
    """By player, the parameters that a gradient other than 0 has reached, looked at before each optimizer's step."""
    seen: dict[str, set[str]] = {player.name: set() for player in fit.engine.players}
    owners = [(slots, player.name) for player, slots in fit.engine._slots()]
    step = Slots.step

    def look(self: Slots, gradient: Any) -> None:  # noqa: ANN401  one tensor or several
        player = next(name for slots, name in owners if slots is self)
        parts = torch.cat([*gradient]).split([room(p) for p in self.parameters])
        seen[player] |= {names[id(p)] for p, part in zip(self.parameters, parts, strict=True) if part.any()}
        step(self, gradient)

    Slots.step = look  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Slots.step = step  # type: ignore[method-assign]


def shapes_are_right(config: ExperimentConfig, folder: Path, device: str = "cpu") -> None:
    """Of draws, codes, distributions and their densities."""
    fit = Fit(config, folder, device=device)
    model, (x, _) = fit.engine.algorithm, fit.model.data("validation", 5)
    n, shape = len(x), tuple(model.spec.shape)
    with torch.no_grad(), seeded(0, "shapes"):
        _shape("sample(3)", model.sample(3), (3, *shape))
        if isinstance(model, DecodingModel):
            _shape("decode of codes [2, 3, D]", model.decode(model.prior().sample((2, 3))), (2, 3, *shape))
        if isinstance(model, EncodingModel):
            assert model.encode(x, 2).shape[:2] == (2, n), f"encode(x, 2): given {tuple(model.encode(x, 2).shape)}"
            _shape("reconstruct(x)", model.reconstruct(x), tuple(x.shape))
        if isinstance(model, LatentVariableModel):
            z = model.encode(x, 2)
            _shape("encode(x, 2)", z, (2, n, *model.prior().event_shape))
            _shape("posterior(x).sample((2,))", model.posterior(x).sample((2,)), tuple(z.shape))
            p = model.likelihood(z)
            assert (tuple(p.batch_shape), tuple(p.event_shape)) == ((2, n), shape), f"likelihood of codes [2, {n}, D]"
            _shape("log_prob of the likelihood", p.log_prob(x), (2, n))
            _shape("log_joint", model.log_joint(x, z), (2, n))


def resumes(config: ExperimentConfig, folder: Path, device: str = "cpu") -> tuple[Fit, Fit]:
    """A run that is stopped at its middle report and gone on with is one that was never stopped, to the bit.

    Returns:
        The run that was not stopped, and the one that was.
    """
    stop = config.training.report_every * (config.training.rounds // config.training.report_every // 2)
    assert 0 < stop < config.training.rounds, "asks for a run of two reports at least"
    straight, stopped = Fit(config, folder / "straight", device=device), Fit(config, folder / "stopped", device=device)
    straight.run()

    def give_up(round_: int, metrics: object) -> None:
        if round_ == stop:
            raise Stopped

    try:
        stopped.run(give_up)
    except Stopped:
        stopped = Fit(config, folder / "stopped", device=device)
        stopped.resume()
        assert stopped.engine.round == stop, f"goes on from round {stopped.engine.round}, was stopped in {stop}"
        stopped.run()
    same(straight.engine.state(), stopped.engine.state(), "state")
    same(reported(straight), reported(stopped), "history")
    return straight, stopped


def reported(fit: Fit) -> dict[str, Any]:
    """What a run has reported, without how long it took."""
    return {name: points for name, points in fit.history.items() if not name.startswith("time/")}


def saves_and_loads(config: ExperimentConfig, folder: Path, device: str = "cpu") -> None:
    """A model folder holds what was trained: weights, draws and likelihoods are the same to the bit."""
    fit = Fit(config, folder / "run", device=device)
    model = fit.run()
    loaded = Model.of_folder(model.write(folder / "model"))
    loaded.algorithm.to(device)
    assert loaded.config == config, "the configuration is not what it was"
    same(dict(model.algorithm.state_dict()), dict(loaded.algorithm.state_dict()), "weights")
    same(model.sample(7, seed=5), loaded.sample(7, seed=5), "draws")
    if isinstance(model.algorithm, LatentVariableModel):
        x, _ = model.data("test", 8)
        for one, other in zip(assess(model).estimates, loaded.log_likelihood(x), strict=True):
            assert one.key == other.key and np.array_equal(one.per_datum, other.per_datum), f"{one.name} has changed"


def records(config: ExperimentConfig, folder: Path) -> list[str]:
    """What `training.capture` records of a play is what is written, to the bit; or it is refused by name.

    Played with other data, in other rounds, under other noise, with other parameters than it was recorded with.

    Returns:
        Why a player is not recorded, a line each.
    """
    config = read_config(config, {"training.dtype": "float64", "training.logical_workers": 4})
    engine, refused = Fit(config, folder).engine, []
    for turn in engine.turns:
        with torch.no_grad():
            shared = engine.algorithm.shared()
        first, *others = [batch for _, batch in engine._slices(0, shared)]
        before = {name: t.clone() for name, t in engine.algorithm.state_dict().items()}
        name = ", ".join(player.name for player in turn.players)
        try:
            program = Program(turn, engine.algorithm, first, backend="eager")
        except Uncapturable as reason:
            refused.append(f"{name}: {reason}")
            continue
        same(dict(engine.algorithm.state_dict()), before, f"state before and after {name} was recorded")
        for round_, batch in enumerate(others):
            engine._now.fill_(2 * round_)
            with torch.no_grad():
                for parameter in engine.algorithm.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
            played = []
            for play in (turn.eager, program):
                reseed(torch.device("cpu"), round_)
                played.append(play(batch))
            one, other = ((torch.cat([*each.gradient]), each.report, dict(each.statistics)) for each in played)
            same(one, other, f"gradient, report and statistics of {name}, written and recorded")
    return refused


def is_the_same_on_workers(config: ExperimentConfig, folder: Path) -> None:
    """Two processes that share the batch train what one trains, up to the order of sums."""
    players = build(config, load_data(config).spec).players()
    plain = {f"algorithm.{each.name}": {"optimizer": "SGD", "lr": 1e-5, "steps": 1} for each in players}
    settings = {"training.dtype": "float64", "training.logical_workers": WORKERS, "training.report_every": 4}
    tree = read_config(config, {**settings, **plain}).tree()
    _train(0, 1, tree, folder / "one")
    mp.spawn(_train, (WORKERS, tree, folder / "several"), nprocs=WORKERS)
    one = safetensors.torch.load_file(folder / "one" / "rank-0")
    for rank in range(WORKERS):
        other = safetensors.torch.load_file(folder / "several" / f"rank-{rank}")
        for name, tensor in one.items():
            gap = (tensor.double() - other[name].double()).abs().max().item()
            assert gap < CLOSE, f"{name} is another on {WORKERS} workers than on one, by {gap:.1e}; see Player"


def _train(rank: int, workers: int, tree: dict[str, Any], folder: Path) -> None:
    """Train as one of several processes, and leave this one's parameters behind."""
    folder.mkdir(exist_ok=True)
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{folder}/meeting", PATIENCE, world_size=workers, rank=rank)
    mean = averaging if workers > 1 else None
    fit = Fit(ExperimentConfig.parse(tree), folder / "checkpoints", averaging=mean, rank=rank, workers=workers)
    fit.run()
    safetensors.torch.save_file(fit.engine.algorithm.state_dict(), folder / f"rank-{rank}")
    if workers > 1:
        dist.destroy_process_group()
        os._exit(0)  # gloo's threads may abort a process that is torn down in the ordinary way


def same(one: object, other: object, where: str = "value") -> None:
    """Make sure that two values of nested containers are equal to the bit, and of the same structure.

    Raises:
        AssertionError: they are not; says where.
    """
    if isinstance(one, Tensor):
        equal = isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
        assert equal, f"{where} is not the same to the bit"
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys(), f"{where} has other keys"
        for key in one:
            same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple) and len(one) == len(other), f"{where} has another length"
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{where}/{i}")
    else:
        assert one == other, f"{where}: {one!r} and {other!r}"


def _shape(what: str, given: Tensor, expected: tuple[int, ...]) -> None:
    assert tuple(given.shape) == expected, f"{what}: given {tuple(given.shape)}, expected {expected}"
