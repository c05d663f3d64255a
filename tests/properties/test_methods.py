"""What holds for every method of the table, with no exceptions; on a GPU with AVB_TEST_DEVICE=cuda."""

import math
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avb_service.algorithm import Algorithm, DecodingModel, EncodingModel, LatentVariableModel
from avb_service.algorithms import METHODS
from avb_service.build import build, load_data
from avb_service.errors import DivergenceError, UserError
from avb_service.fitting import Fit
from avb_service.model import Model
from avb_service.optim import OPTIMIZERS
from avb_service.records import LikelihoodRecord
from avb_service.report import assess, objective_of
from avb_service.seeding import seeded
from avb_service.settings import ExperimentConfig
from avb_service.testing.methods import (
    gradients_reach_what_is_owned,
    reported,
    resumes,
    same,
    saves_and_loads,
    shapes_are_right,
)

ROUNDS = 4
PROMISES = gradients_reach_what_is_owned, shapes_are_right, resumes, saves_and_loads
DEVICE = os.environ.get("AVB_TEST_DEVICE", "cpu")


class Stopped(Exception):
    """What a test stops a run with, as a lost machine would."""


def start(config: ExperimentConfig, folder: Path) -> Fit:
    return Fit(config, folder / "checkpoints", device=DEVICE)


def load(folder: Path) -> Model:
    """A published model, where it was trained."""
    loaded = Model.of_folder(folder)
    loaded.algorithm.to(DEVICE)
    return loaded


def fit(experiment: Fit, stop_at: int | None = None) -> Fit:
    def stop(round_: int, metrics: object) -> None:
        if round_ == stop_at:
            raise Stopped

    if stop_at is None:
        experiment.run()
    else:
        with pytest.raises(Stopped):
            experiment.run(stop)
    return experiment


def assert_same_run(a: Fit, b: Fit) -> None:
    same(a.engine.state(), b.engine.state())
    same(reported(a), reported(b))


def test_every_player_has_its_configured_turn(small, method, tmp_path):
    players = start(small(method), tmp_path).engine.algorithm.players()
    assert len({player.name for player in players}) == len(players)
    for player in players:
        assert player.turn == getattr(small(method).algorithm, player.name)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_method_keeps_what_is_promised_of_all(small, method, tmp_path, promise):
    promise(small(method), tmp_path, DEVICE)


def test_a_turn_leaves_the_others_parameters_as_they_are(small, method, tmp_path):
    experiment = start(small(method), tmp_path)
    engine = experiment.engine
    with torch.no_grad():
        shared = engine.algorithm.shared()
    for i, player in enumerate(engine.players):
        for p in experiment.engine.algorithm.parameters():
            p.grad = torch.full_like(p, math.pi)  # a mark, and bait for an optimizer that takes what is not its own
        before = [p.detach().clone() for p in experiment.engine.algorithm.parameters()]
        engine._step(engine.turns[i], i, shared)
        own = {id(p) for network in player.networks for p in network.parameters()}
        for p, old in zip(experiment.engine.algorithm.parameters(), before, strict=True):
            if id(p) not in own:
                assert torch.equal(p, old)
                assert p.grad.eq(math.pi).all()
            assert p.requires_grad


def test_objectives_report_what_they_minimise(small, method, tmp_path):
    experiment = fit(start(small(method), tmp_path))
    for player in experiment.engine.players:
        terms = [name for name in experiment.history if name.startswith(f"train/{player.name}/")]
        assert terms
        for name in terms:
            assert [round_ for round_, _ in experiment.history[name]] == [2, 4]
            assert all(math.isfinite(value) for _, value in experiment.history[name])


def test_what_a_method_cannot_do_is_refused_by_its_name(small, method, tmp_path):
    experiment = start(small(method), tmp_path)
    loaded = load(replace(experiment.model, likelihood=LikelihoodRecord({}, ())).write(tmp_path / "model"))
    x, _ = experiment.model.data("test", 3)
    for able, ask, reason in (
        (LatentVariableModel, loaded.log_likelihood, f"{method} defines no p\\(x\\|z\\), .* use parzen"),
        (EncodingModel, loaded.encode, f"{method} has no encoder, .* methods that do: .*vae"),
        (EncodingModel, loaded.reconstruct, f"{method} has no encoder"),
    ):
        if isinstance(experiment.engine.algorithm, able):
            ask(x)
        else:
            with pytest.raises(UserError, match=reason):
                ask(x)


def test_draws_lie_where_data_lie(small, method, tmp_path):
    spec = start(small(method), tmp_path).engine.algorithm.spec
    draws = build(small(method), spec).sample(20)
    if spec.values == "binary":
        assert ((draws == 0) | (draws == 1)).all()
    assert draws.isfinite().all()


def test_the_same_seed_gives_the_same_model(small, method, tmp_path):
    torch.manual_seed(1)
    first = fit(start(small(method), tmp_path / "a"))
    torch.manual_seed(2)  # the state of the global generator decides nothing
    torch.rand(3)
    assert_same_run(first, fit(start(small(method), tmp_path / "b")))
    other = fit(start(small(method, {"training.seed": 1}), tmp_path / "c"))
    assert not all(
        torch.equal(p, q) for p, q in zip(first.engine.model.parameters(), other.engine.model.parameters(), strict=True)
    )


def test_training_leaves_its_model_as_evaluation_finds_it(small, method, tmp_path):
    """Reports, with their draws from the model, have no influence on what is trained."""
    often = fit(start(small(method, {"training.report_every": 1}), tmp_path / "a"))
    once = fit(start(small(method, {"training.report_every": ROUNDS}), tmp_path / "b"))
    same(often.engine.state(), once.engine.state())
    assert often.history[objective_of(method)][-1] == once.history[objective_of(method)][-1]


def last_player(config: ExperimentConfig) -> str:
    """The generative model's, in every game; where there are more, the others keep their Adam."""
    return build(config, load_data(config).spec).players()[-1].name


RESUMES = {
    "as it is": ({}, {}),
    "EMA": ({"ema": 0.9}, {}),
    "EMA and a schedule": ({"ema": 0.5}, {"schedule": {"decay": "cosine", "decay_from": 0.2, "warmup": 2}}),
    "SGD for the model, Adam for the adversary": ({}, {"optimizer": "SGD", "options": {"momentum": 0.9}}),
    "float64, clipped": ({"dtype": "float64"}, {"clip_norm": 0.1}),
    "one logical worker": ({"logical_workers": 1}, {"steps": 2}),
}


@pytest.mark.parametrize(("training", "turn"), RESUMES.values(), ids=RESUMES)
def test_a_resumed_run_is_bit_equal_to_one_that_was_never_stopped(small, method, tmp_path, training, turn):
    config = small(
        method,
        {
            "training.rounds": 6,
            "training.report_every": 3,
            **{f"training.{key}": value for key, value in training.items()},
            f"algorithm.{last_player(small(method))}": {"lr": 1e-3, **turn},
        },
    )
    fresh = deepcopy(start(config, tmp_path / "fresh").engine.state())
    straight, resumed = resumes(config, tmp_path, DEVICE)
    assert any(not torch.equal(fresh["algorithm"][name], t) for name, t in straight.engine.state()["algorithm"].items())
    for one, other in zip(assess(straight.model).estimates, assess(resumed.model).estimates, strict=True):
        assert np.array_equal(one.per_datum, other.per_datum)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_every_optimizer_is_kept(small, tmp_path, optimizer):
    method = min(METHODS.own)
    turn = {"optimizer": optimizer, "lr": 1e-3}
    config = small(method, {f"algorithm.{last_player(small(method))}": turn})
    straight = fit(start(config, tmp_path / "straight"))
    fit(start(config, tmp_path / "stopped"), stop_at=2)
    assert_same_run(straight, fit(start(config, tmp_path / "stopped")))


def test_a_stop_between_two_reports_costs_the_rounds_since_the_last(small, method, tmp_path):
    config = small(method, {"training.rounds": 6, "training.report_every": 2})
    straight = fit(start(config, tmp_path / "straight"))
    stopped = start(config, tmp_path / "stopped")
    source = stopped.engine.source

    def fail_in_round_five(index: int, worker: int) -> tuple[Tensor, Tensor | None]:
        if index >= 4 * sum(player.turn.steps for player in stopped.engine.players):
            raise Stopped
        return source(index, worker)

    stopped.engine.source = fail_in_round_five
    with pytest.raises(Stopped):
        stopped.run()
    resumed = start(config, tmp_path / "stopped")
    resumed.resume()
    assert resumed.engine.round == 4
    assert_same_run(straight, fit(resumed))


def test_a_finished_run_stays_as_it_is(small, method, tmp_path):
    done = fit(start(small(method), tmp_path))
    reports: list[int] = []
    again = start(small(method), tmp_path)
    again.run(lambda round_, metrics: reports.append(round_))
    assert reports == [done.engine.round], "only the last report is repeated, for those who may have missed it"
    assert_same_run(done, again)


def test_means_are_of_the_codes_that_draws_of_the_same_seed_are_of(small, method, tmp_path, monkeypatch):
    experiment = start(small(method), tmp_path)
    model, seen = experiment.engine.algorithm, []
    loaded = Model(model, experiment.config, "")
    if not isinstance(model, LatentVariableModel):
        with pytest.raises(UserError, match=rf"{method} defines no p\(x\|z\) that means could be of; ask for draws"):
            loaded.sample(3, means=True)
        return
    likelihood = model.likelihood
    monkeypatch.setattr(model, "likelihood", lambda z: seen.append(z) or likelihood(z))
    loaded.sample(3, seed=1)
    means = loaded.sample(3, seed=1, means=True)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(means, likelihood(seen[0]).mean)


def test_a_run_is_not_resumed_with_another_configuration(small, method, tmp_path):
    fit(start(small(method), tmp_path))
    with pytest.raises(UserError, match=r"another configuration; differing:\n  training.seed: 0 -> 7"):
        fit(start(small(method, {"training.seed": 7}), tmp_path))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_published_model_is_the_one_that_was_evaluated(small, method, tmp_path, ema):
    experiment = fit(start(small(method, {"training.ema": ema}), tmp_path))
    record = assess(experiment.model)
    loaded = load(replace(experiment.model, card="# card", likelihood=record).write(tmp_path / "model"))
    assert loaded.card == "# card"
    assert loaded.config == experiment.config
    assert loaded.round == experiment.engine.round and loaded.subject == experiment.model.subject
    same(dict(experiment.engine.model.state_dict()), dict(loaded.algorithm.state_dict()))
    with seeded(5, "sample"), torch.no_grad():
        expected = experiment.engine.model.sample(7)
    assert torch.equal(loaded.sample(7, seed=5), expected)
    assert not torch.equal(loaded.sample(7, seed=6), expected)
    if isinstance(experiment.engine.algorithm, LatentVariableModel):
        x, _ = experiment.model.data("test", 8)
        carried, found = loaded.likelihood.estimates, loaded.log_likelihood(x)
        for one, told, other in zip(record.estimates, carried, found, strict=True):
            assert (one.name, one.kind) == (other.name, other.kind) == (told.name, told.kind)
            assert np.array_equal(one.per_datum, told.per_datum)
            assert np.array_equal(one.per_datum, other.per_datum)


def test_a_model_without_a_likelihood_carries_parzen_windows_and_is_scored_under_a_noise(small, method, tmp_path):
    experiment = fit(start(small(method), tmp_path))
    record = assess(experiment.model)
    if isinstance(experiment.engine.algorithm, LatentVariableModel):
        assert all(estimate.quantity != "parzen_density" for estimate in record.estimates)
        return
    mine, training = record.estimates
    assert (mine.name, training.name) == ("parzen", "parzen_training")
    assert {"test/parzen", "test/parzen_training"} <= record.metrics().keys()
    assert record.held_out is None and record.objection
    loaded = load(replace(experiment.model, card="# card", likelihood=record).write(tmp_path / "model"))
    x, _ = experiment.model.data("test", 8)
    for budget in ("quick", "standard"):
        with pytest.raises(UserError, match="defines no p"):
            loaded.log_likelihood(x, budget)
    for told, found in zip(record.estimates, loaded.parzen(x), strict=True):
        assert np.array_equal(told.per_datum, found.per_datum)
    if isinstance(loaded.algorithm, DecodingModel):
        try:
            found = loaded.log_likelihood(x, noise=0.3)
        except UserError as error:
            assert "need continuous codes" in str(error)
        else:
            assert {estimate.kind for estimate in found} <= {"lower_bound", "exact"}
            assert all(estimate.name.endswith(".noise_0.3") and len(estimate.per_datum) == 8 for estimate in found)


def test_averaged_weights_are_the_average_of_the_rounds(small, method, tmp_path):
    decay, seen = 0.7, []
    experiment = start(small(method, {"training.ema": decay, "training.report_every": 1}), tmp_path)
    experiment.run(
        lambda round_, metrics: seen.append([p.detach().clone() for p in experiment.engine.algorithm.parameters()])
    )
    average = seen[0]
    for rounds in seen[1:]:
        average = [decay * old + (1 - decay) * new for old, new in zip(average, rounds, strict=True)]
    for mine, expected in zip(experiment.engine.model.parameters(), average, strict=True):
        torch.testing.assert_close(mine.detach(), expected)
    assert experiment.engine.model is not experiment.engine.algorithm


def poison(algorithm: Algorithm, networks: tuple[nn.Module, ...]) -> None:
    with torch.no_grad():
        next(networks[0].parameters()).view(-1)[0] = math.nan


def test_nan_stops_training_and_the_last_good_checkpoint_is_kept(small, method, tmp_path):
    config = small(method, {"training.rounds": 6})
    straight = fit(start(config, tmp_path / "straight"))
    for i in range(len(straight.engine.players)):
        experiment = start(config, tmp_path / str(i))
        victim = experiment.engine.players[i]

        def break_it(round_: int, metrics: object, experiment=experiment, victim=victim) -> None:
            if round_ == 4:
                poison(experiment.engine.algorithm, victim.networks)

        with pytest.raises(DivergenceError, match="round 4: .* The last good state is .*round-00000004$"):
            experiment.run(break_it)
        resumed = start(config, tmp_path / str(i))
        resumed.resume()
        assert resumed.engine.round == 4
        assert_same_run(straight, fit(resumed))


def test_a_step_that_would_destroy_a_player_is_not_taken(small, method, tmp_path):
    experiment = start(small(method), tmp_path)
    engine = experiment.engine
    source = engine.source
    engine.source = lambda index, worker: (source(index, worker)[0] * math.nan, None)
    before = [p.detach().clone() for p in experiment.engine.algorithm.parameters()]
    with pytest.raises(DivergenceError, match="The last good state is .*round-00000000$"):
        experiment.run()
    after = list(experiment.engine.algorithm.parameters())
    assert all(torch.equal(p, old) for p, old in zip(after, before, strict=True))


def test_a_model_that_cannot_be_evaluated_is_no_checkpoint(small, method, tmp_path):
    """A learning rate far out of range breaks the model in the last step before a report."""
    config = small(method, {"training.report_every": 1, f"algorithm.{last_player(small(method))}.lr": 1e30})
    with pytest.raises(DivergenceError):
        fit(start(config, tmp_path))
    checkpoint = start(config, tmp_path).store.latest()
    assert checkpoint.round == 0 or math.isfinite(checkpoint.metrics[objective_of(method)])


def test_a_method_is_initialised_from_the_seed_alone(small, method):
    config = small(method)
    spec = load_data(config).spec
    one, other = build(config, spec).state_dict(), build(config, spec).state_dict()
    same(dict(one), dict(other))
    seed = small(method, {"training.seed": 1})
    assert any(not torch.equal(t, one[name]) for name, t in build(seed, spec).state_dict().items())
