"""Numbers that a network cannot start from are named before training and when it diverges, with what mends them."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from avb_service.data.datasets import DataConfig, load
from avb_service.data.scale import Scale, caution
from avb_service.errors import DivergenceError
from avb_service.fitting import Fit
from avb_service.settings import ExperimentConfig, read_config
from avb_service.tuning import search
from avb_service.tuning.space import SpaceConfig

NORMAL = np.random.default_rng(0).standard_normal((120, 6)) + 0.01  # no whole numbers among them
FINE = {
    "standard": NORMAL,
    "pixels": (NORMAL > 0) * 0.75 + 0.1,
    "small": NORMAL / 10,
    "ten": NORMAL * 10,
    "one column": np.concatenate([NORMAL[:, :5], np.full((120, 1), 0.5)], 1),
}
FAR = {
    "large": NORMAL * 1e4,
    "counts": np.exp(4.7 + 3 * np.abs(NORMAL)),
    "shifted": NORMAL + 5e3,
    "huge": NORMAL * 1e37,
    "missing": np.where(np.arange(720).reshape(120, 6) % 70, NORMAL, -9999.5),
    "tiny": NORMAL * 1e-9,
}


def config(folder, x, *assignments: str) -> ExperimentConfig:
    np.save(folder / "x.npy", x.astype(np.float32))
    return read_config(
        "vae_digits",
        [
            "data={name: file, binarisation: none, validation: 20, test: 20, levels: real}",
            f"data.path={folder / 'x.npy'}",
            "algorithm.observation={name: gaussian, scale: 1.0}",
            "training.batch_size=20",
            "training.rounds=15",
            "training.report_every=15",
            "tracking.plots_every=100",
            *assignments,
        ],
    )


def diverged(experiment: Fit) -> str:
    with pytest.raises(DivergenceError) as caught:
        experiment.run()
    return str(caught.value)


def standardised(message: str, x):
    """By the very line that the message gives."""
    line = message.partition(" in numpy ")[2].partition(". ")[0]
    scope = {"np": np, "x": x}
    exec(line, scope)
    return scope["x"]


@pytest.mark.parametrize("kind", [kind for kind in FAR if kind != "tiny"])
def test_no_rate_is_blamed_where_no_step_was_taken(tmp_path, kind):
    experiment = Fit(config(tmp_path, FAR[kind], "algorithm.model.lr=1e-12"), tmp_path / "run")
    message = diverged(experiment)
    assert message.startswith("round 0: the gradient of player 'model' is ")
    assert "No step had been taken, so no learning rate matters" in message and "ower" not in message
    assert f"data has numbers {Scale.of(experiment.dataset)}. " in message
    trained = Fit(config(tmp_path, standardised(message, FAR[kind])), tmp_path / "again")
    trained.run()
    assert math.isfinite(trained.history["validation/log_likelihood"][-1][1])


def test_a_rate_that_is_too_high_is_blamed_and_sound_data_are_not(tmp_path):
    message = diverged(Fit(config(tmp_path, NORMAL, "algorithm.model.lr=1e10"), tmp_path / "run"))
    assert message.startswith("round 1: ") and "Lower algorithm.model.lr, or set algorithm.model.clip_norm" in message
    assert "data has numbers from" in message and "numpy" not in message


def test_data_and_rate_may_both_be_it_once_steps_have_been_taken(tmp_path):
    experiment = Fit(config(tmp_path, NORMAL * 40, "algorithm.model.lr=1e10"), tmp_path / "run")
    message = diverged(experiment)
    assert "Bring data to mean 0" in message and "Or lower algorithm.model.lr" in message


def test_a_setting_is_blamed_where_neither_can_be(tmp_path):
    message = diverged(Fit(config(tmp_path, NORMAL, "algorithm.observation.scale=1e-30"), tmp_path / "run"))
    assert "no learning rate matters. Look for a scale among the settings" in message and "numpy" not in message


def test_later_the_rate_is_blamed_alone(tmp_path):
    experiment = Fit(config(tmp_path, NORMAL, "training.rounds=45"), tmp_path / "run")

    def poison(round_: int, metrics: object) -> None:
        if round_ == 30:
            with torch.no_grad():
                next(experiment.engine.algorithm.parameters()).view(-1)[0] = math.nan

    experiment.run = partial(experiment.run, poison)
    message = diverged(experiment)
    assert message.startswith("round 30: ") and ". Lower algorithm.model.lr, or set " in message
    assert "numbers" not in message


@pytest.mark.parametrize(("preset", "players"), [("vae_digits", ["model"]), ("avb_digits", ["adversary", "model"])])
def test_validation_data_that_overflow_are_named_too(tmp_path, preset, players):
    """All but one datum, which is not trained on, are sound."""
    given = config(tmp_path, NORMAL)
    first = load(given.data).validation.pixels[0].flatten().numpy()
    np.save(tmp_path / "x.npy", np.where((NORMAL.astype(np.float32) == first).all(1, keepdims=True), 1e30, NORMAL))
    method = {**read_config(preset).tree()["algorithm"], "observation": given.tree()["algorithm"]["observation"]}
    message = diverged(Fit(ExperimentConfig.parse({**given.tree(), "algorithm": method}), tmp_path / "run"))
    assert message.startswith("round 15: ") and "to 1e+30" in message and "numpy" in message
    assert f"lower {' and '.join(f'algorithm.{player}.lr' for player in players)}, or set" in message


@pytest.mark.parametrize("kind", FAR)
def test_data_far_from_scale_are_named_before_training(tmp_path, kind):
    (line,) = caution(load(config(tmp_path, FAR[kind]).data))
    assert line.startswith("data has numbers from ") and "\n" not in line
    assert not caution(load(config(tmp_path, standardised(line, FAR[kind])).data))


@pytest.mark.parametrize("kind", FINE)
def test_of_other_data_nothing_is_said(tmp_path, kind):
    assert not caution(load(config(tmp_path, FINE[kind]).data))


@pytest.mark.parametrize("name", ["digits", "onehot-4", "binary-8", "gaussians25", "eight_schools", "mixture1d"])
def test_named_sources_are_sound(name):
    assert not caution(load(DataConfig(name=name)))


def test_the_scale_is_that_of_the_numbers_which_the_model_sees(tmp_path):
    x = np.concatenate([FAR["counts"], np.full((120, 1), 0.5)], 1).astype(np.float32)
    scale = Scale.of(load(DataConfig.parse({**config(tmp_path, x).tree()["data"], "test": 1})))
    seen = load(config(tmp_path, x, "data.test=1").data)
    pixels = torch.cat([seen.train.pixels, seen.validation.pixels]).double()
    expected = (pixels.min(), pixels.max(), pixels.mean(), pixels.std(correction=0))
    assert (scale.low, scale.high, scale.mean, scale.deviation) == pytest.approx([value.item() for value in expected])
    assert (scale.constant, scale.size) == (1, 7) and "1 of the 7 numbers of a datum are the same" in str(scale)
    levels = Scale.of(load(DataConfig(name="digits")))
    assert (levels.low, levels.high) == (0, 1), "and not the 16 of the file"


def test_what_lies_many_deviations_away_is_named(tmp_path):
    for x, named in ((np.where(NORMAL > 2.8, 999.5, NORMAL), True), (FAR["large"], False)):
        assert ("like codes for what is missing" in str(Scale.of(load(config(tmp_path, x).data)))) == named


def test_a_search_says_it_once(tmp_path):
    tree = config(tmp_path, FAR["large"]).tree()
    shared = {"data": tree["data"], "algorithm.observation": tree["algorithm"]["observation"]}
    domain = {"algorithm.latent_dim": {"choice": [2, 4]}}
    space = SpaceConfig.parse({"name": "x", "preset": "vae_digits", "set": shared, "space": domain})
    told: list[str] = []
    search.preflight(space, told.append)
    assert [line.partition(" from ")[0] for line in told[1:]] == ["data has numbers"], "after what was read"
