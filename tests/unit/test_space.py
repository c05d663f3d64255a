from pathlib import Path

import numpy as np
import pytest
import yaml

from avb_service.algorithms import METHODS
from avb_service.data.datasets import load
from avb_service.distributed.capacity import Capacity, Node
from avb_service.errors import ConfigError, UserError
from avb_service.optim import TurnConfig
from avb_service.report import OBJECTIVE
from avb_service.tuning import search
from avb_service.tuning.space import SpaceConfig, read_space

SPACES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.yaml"))
GOOD = {
    "name": "search", "preset": ["avb_digits", "avb_ac_digits"], "baselines": ["vae_digits"], "trials": 4,
    "space": {"algorithm.adversary.steps": {"choice": [1, 5]}, "algorithm.model.lr": {"loguniform": [1e-5, 1e-3]}},
}  # fmt: skip


def problems(**changes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        SpaceConfig.parse({**GOOD, **changes})
    return caught.value.problems


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_that_comes_with_the_project_is_sound(path):
    assert read_space(path).name == path.stem


@pytest.fixture(scope="module")
def searched() -> list[tuple[set[str], set[str]]]:
    """Of each space, its methods and the paths that it searches."""
    spaces = [read_space(path) for path in SPACES]
    return [({base.algorithm.name for base in map(space.trial, space.presets)}, set(space.space)) for space in spaces]


@pytest.mark.parametrize(
    "game", [name for name, method in METHODS.own.items() if "adversary" in method.Config.model_fields]
)
def test_every_game_has_a_space_that_searches_its_turns(searched, game):
    """How often the adversary learns in a round, and how fast each player does."""
    turns = [name for name, field in METHODS[game].Config.model_fields.items() if field.annotation is TurnConfig]
    wanted = {"algorithm.adversary.steps", *(f"algorithm.{turn}.lr" for turn in turns)}
    assert any(game in methods and wanted <= paths for methods, paths in searched)


def test_a_trial_is_its_preset_with_shared_settings_and_its_own_values():
    space = SpaceConfig.parse({**GOOD, "set": {"training.rounds": 7}, "model": "mine"})
    trial = space.trial("avb_digits", {"algorithm.adversary.steps": 5})
    assert (trial.training.rounds, trial.algorithm.adversary.steps, trial.tracking.model) == (7, 5, "mine")
    assert space.trial("vae_digits").tracking.model != "mine", "a baseline keeps the name of its own"
    assert Path(trial.data.root).is_absolute(), "workers run elsewhere"


def test_every_problem_is_named_at_once():
    lines = problems(
        trials=3,
        objective={"metric": "train/model/kl_adversarial"},
        space={
            "algorithm.adversary.step": {"choice": [1]},
            "algorithm.latent_dim": {"choice": [2, 0]},
            "algorithm.model.lr": {"loguniform": [1e-5, 1e-3]},
        },
    )
    assert any(line.startswith("objective.metric:") and "not comparable" in line for line in lines)
    assert any(line.startswith("trials: 3 are not divisible") for line in lines)
    assert any("algorithm.adversary.step" in line and "did you mean steps?" in line for line in lines)
    assert any("space.algorithm.latent_dim: at 0" in line for line in lines)


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ({"choice": [1], "uniform": [0, 1]}, "exactly one"), ({}, "exactly one"),
        ({"loguniform": [1e-3, 1e-5]}, "lower end first"), ({"loguniform": [0, 1]}, "greater than 0"),
        ({"choice": []}, "at least 1"),
    ],
)  # fmt: skip
def test_a_domain_that_is_none_is_refused(domain, reason):
    (line,) = problems(space={"algorithm.model.lr": domain})
    assert reason in line, "and no second line, of what is left without it"


def test_endpoints_are_tried_in_pairs_as_well():
    space = {"training.batch_size": {"choice": [64, 100]}, "training.logical_workers": {"choice": [1, 8]}}
    (line,) = problems(space=space, preset="avb_digits")
    assert line.startswith("space.training.batch_size: at 100 and space.training.logical_workers: at 8 with avb_digits")
    assert "logical_workers: 8 do not divide training.batch_size 100" in line


def test_whole_numbers_between_the_ends_are_tried_as_well():
    (line,) = problems(space={"training.logical_workers": {"randint": [1, 5]}}, preset="avb_digits")
    assert line.startswith("space.training.logical_workers: at 3 with avb_digits")
    assert "logical_workers: 3 do not divide training.batch_size" in line


def test_a_preset_that_is_given_twice_is_refused():
    assert "preset: avb_digits is there twice; give each once, and more trials" in problems(preset=["avb_digits"] * 2)


def asha(grace: int, rounds: list[int], every: int) -> dict:
    return {"preset": "avb_digits", "set": {"training.report_every": every}, "scheduler": {"asha": {"grace": grace}},
            "space": {"training.rounds": {"choice": rounds}}}  # fmt: skip


def test_early_stopping_that_would_come_too_late_is_refused():
    assert problems(**asha(5, [100, 400], 100)) == [
        "scheduler.grace: 5 reports, and a trial makes 4 (training.rounds 400, report_every 100): none could be "
        "stopped early; give fewer, or scheduler: none"
    ]


@pytest.mark.parametrize(("grace", "rounds", "every", "first"), [(4, [400], 100, 400), (2, [90, 800], 100, 200),
                                                                 (1, [300], 500, 300)])  # fmt: skip
def test_the_scheduler_goes_by_the_longest_trial(grace, rounds, every, first):
    space = SpaceConfig.parse({**GOOD, **asha(grace, rounds, every)})
    scheduler = space.scheduler.scheduler(space.race("avb_digits"))
    assert (scheduler._max_t, scheduler._brackets[0]._rungs[-1][0]) == (max(rounds) + 1, first)


def test_the_largest_trial_that_may_be_drawn_has_to_fit():
    space = SpaceConfig.parse(
        {
            **GOOD,
            "set": {"training.logical_workers": 8, "training.batch_size": 64},
            "space": {"scaling.workers": {"choice": [1, 8]}},
        }
    )
    with pytest.raises(UserError, match="8 workers of 1 CPUs and 0 GPUs do not fit; the cluster has 1 node"):
        search.check_capacity(space, Capacity((Node(2, 0),)))
    assert search.models_at_a_time(space, "avb_digits", Capacity((Node(16, 0),))) == 2, "and not the 14 of the smallest"


LR, STEPS = "algorithm.model.lr", "algorithm.adversary.steps"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"space": {LR: {"suggest_float": [0, 1]}}}, "as other tools have it, expected uniform: [low, high]"),
        ({"space": {LR: {"min": 0.1, "max": 0.2}}}, "given min, max, as other tools have it"),
        ({"space": {LR: {"grid_search": [0.1]}}}, "expected choice"),
        ({"space": {LR: [0.1, 0.2]}}, "expected {choice: [0.1, 0.2]}"),
        ({"searcher": "grid", "space": {LR: {"uniform": [0.1, 0.2]}}}, "no values that a grid could go through"),
        ({"searcher": "tpee"}, "did you mean tpe?"),
        ({"scheduler": "ashaa"}, "did you mean asha?"),
        ({"space": {STEPS: {"choice": [1, 2], "when": {"algorithm.model.lrr": 1}}}}, "did you mean algorithm.model.lr"),
        ({"space": {STEPS: {"choice": [1, 2], "when": {"training.rounds": 1}}}}, "is met by no trial"),
        ({"space": {STEPS: {"choice": [1, 2], "when": {LR: 1e-3}}, LR: {"choice": [1e-3, 2e-3], "when": {STEPS: 1}}}},
         "in a circle"),
        ({"start": [{STEPS: 3}]}, f"start.0.{STEPS}: given 3, expected what the space has"),
        ({"start": [{"algorithm.adversary.step": 1}]}, "is not searched; did you mean"),
        ({"start": [{STEPS: 1}] * 3}, "start: 3 settings for 2 trials of each preset"),
        ({"seeds": 2, "space": {"training.seed": {"choice": [0, 1]}}}, "seeds: 2 seeds for each setting"),
        ({"from": "earlier"}, "from: random learns nothing"),
        ({"budget": {"minutes": 0}}, "budget.minutes: given 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_with_what_to_write(changes, reason):
    lines = problems(**changes)
    assert any(reason in line for line in lines), lines


@pytest.mark.parametrize(
    ("given", "name"),
    [("none", "none"), (None, "none"), ({"asha": None}, "none"), ("asha", "asha"), ({"asha": {"grace": 1}}, "asha")],
)
def test_a_scheduler_may_be_written_as_before(given, name):
    assert SpaceConfig.parse({**GOOD, "scheduler": given}).scheduler.name == name


def test_sections_and_lists_are_chosen_among_and_conditions_are_met_when_they_are_tried():
    path = "algorithm.encoder.trunk"
    trunks = [{"name": "mlp", "hidden": [32, 32]}, {"name": "conv"}]
    space = SpaceConfig.parse({
        **GOOD, "preset": "avb_digits",
        "space": {path: {"choice": trunks},
                  f"{path}.hidden": {"choice": [[64], [64, 64]], "when": {f"{path}.name": "mlp"}}},
    })  # fmt: skip
    config = space.trial("avb_digits", {f"{path}.hidden": [64, 64], path: trunks[0]})
    assert config.algorithm.encoder.trunk.hidden == (64, 64)
    assert space.completed("avb_digits", {path: trunks[1], f"{path}.hidden": [64]}) is None


def test_an_empty_space_is_refused():
    assert any(line.startswith("space:") for line in problems(space={}))


def test_the_upper_end_of_randint_is_exclusive():
    space = SpaceConfig.parse({**GOOD, "space": {"algorithm.adversary.steps": {"randint": [1, 4]}}})
    assert space.space["algorithm.adversary.steps"].endpoints() == (1, 3)


def test_looking_for_the_worst_is_refused():
    assert any(line.startswith("objective.mode:") for line in problems(objective={"metric": OBJECTIVE, "mode": "min"}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preset": ["avb_digits", "avb_mnist"]}, "avb_mnist has data.name 'mnist'"),
        ({"baselines": ["vae_mnist"]}, "vae_mnist has data.name 'mnist'"),
        ({"space": {"data.seed": {"choice": [0, 1]}}}, "space.data.seed: at 1 has data.seed 1"),
        ({"space": {"likelihood.seed": {"randint": [0, 9]}}}, "space.likelihood.seed: at 8 has likelihood.seed 8"),
        ({"preset": "vae_digits", "set": {"data.binarisation": "none", "algorithm.observation": {"name": "gaussian"}},
          "baselines": [], "space": {"algorithm.observation.name": {"choice": ["gaussian", "discretised_logistic"]}}},
         "at 'discretised_logistic' has algorithm.observation 'discretised_logistic'"),
    ],
)  # fmt: skip
def test_trials_that_would_be_scored_on_other_data_or_by_another_measure_are_refused(changes, reason):
    lines = problems(**changes)
    assert any(reason in line and "rank nothing" in line for line in lines), lines


def test_the_number_of_training_data_may_be_searched():
    SpaceConfig.parse({**GOOD, "space": {"data.limit": {"choice": [500, 1000]}}})


def test_a_preset_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "preset": "avb_digit"}))
    with pytest.raises(ConfigError) as caught:
        read_space(path)
    assert caught.value.problems[0].startswith("avb_digit: neither a file nor a preset"), "and named once"


def test_data_that_presets_share_are_loaded_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(search, "load", lambda data: loaded.append(data) or load(data))
    search.preflight(SpaceConfig.parse(GOOD))
    assert len(loaded) == 1


def test_data_that_do_not_fit_a_baseline_are_refused_before_the_search(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 640, dtype=np.float32).reshape(40, 16))
    data = {"name": "file", "path": str(tmp_path / "x.npy"), "binarisation": "none"}
    shared = {"data": data, "algorithm.observation": {"name": "discretised_logistic"}}
    space = SpaceConfig.parse({**GOOD, "set": shared})
    with pytest.raises(UserError, match="discretised_logistic needs levels of grey"):
        search.preflight(space)


def test_a_codebook_that_may_be_drawn_larger_than_the_data_is_refused_before_the_search():
    space = {
        "name": "codes",
        "preset": "vq_vae_digits",
        "trials": 2,
        "space": {"algorithm.codebook.size": {"choice": [16, 5000]}},
        "objective": {"metric": "validation/log_likelihood", "mode": "max"},
    }
    with pytest.raises(UserError, match="5000"):
        search.preflight(SpaceConfig.parse(space))


def test_paths_may_be_nested_as_in_a_configuration(tmp_path):
    (tmp_path / "nested.yaml").write_text(
        "preset: avb_digits\ntrials: 2\nspace:\n  algorithm:\n    latent_dim: {choice: [2, 4]}\n"
        "    model: {lr: {loguniform: [1.0e-4, 1.0e-3]}}\n  training.seed: {randint: [0, 9]}\n"
    )
    space = read_space(tmp_path / "nested.yaml").space
    assert list(space) == ["algorithm.latent_dim", "algorithm.model.lr", "training.seed"]
    (tmp_path / "nested.yaml").write_text("preset: avb_digits\nspace: {algorithm: {latent_dim: {choize: [2, 4]}}}\n")
    with pytest.raises(UserError, match=r"space\.algorithm\.latent_dim.*choize"):
        read_space(tmp_path / "nested.yaml")


def test_ends_by_name_as_other_tools_have_them_are_no_settings(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "preset: avb_digits\nspace: {algorithm.model.lr: {uniform: {low: 1.0e-4, high: 0.01}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "x.yaml")
    assert caught.value.problems == [
        "space.algorithm.model.lr.uniform: given {'low': 0.0001, 'high': 0.01}, expected a list"
    ]
