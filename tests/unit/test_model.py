"""What a loaded model refuses to score, and how it says so."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from avb_service.checkpoint import ModelFolder
from avb_service.errors import DataError, UserError
from avb_service.experiment import load_data
from avb_service.likelihood import LikelihoodRecord
from avb_service.model import LoadedModel, build, load_model, write_model

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def binary(small) -> LoadedModel:
    config = small("vae", {"likelihood.test_data": 5})
    return LoadedModel(build(config, load_data(config).spec), config, "# card")


@pytest.fixture(scope="module")
def grey(small) -> LoadedModel:
    changes = {"data.binarisation": "none", "algorithm.observation": {"name": "gaussian"}}
    config = small("vae", changes)
    return LoadedModel(build(config, load_data(config).spec), config, "# card")


@pytest.fixture(scope="module")
def gan(small) -> LoadedModel:
    config = small("gan")
    return LoadedModel(build(config, load_data(config).spec), config, "# card")


def broken(value: float) -> Tensor:
    x = torch.zeros(4, *SHAPE)
    x[2, 0, 3, 5] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 28, 28), r"data of shape \[2, 1, 28, 28\], expected \[B, 1, 8, 8\]"),
        (torch.zeros(*SHAPE), r"data of shape \[1, 8, 8\], expected \[B, 1, 8, 8\]"),
        (torch.zeros(2, 64), r"data of shape \[2, 64\]"),
        (torch.zeros(0, *SHAPE), "no data to score: given 0"),
        (torch.zeros(2, *SHAPE).numpy(), "data as ndarray, expected a torch.Tensor"),
        (torch.zeros(2, *SHAPE, dtype=torch.complex64), "data as torch.complex64, expected real numbers"),
        (broken(math.nan), r"datum 2 holds nan at \[0, 3, 5\], expected 0 or 1"),
        (broken(math.inf), r"datum 2 holds inf at \[0, 3, 5\], expected 0 or 1"),
        (broken(-1.0), r"datum 2 holds -1 at \[0, 3, 5\], expected 0 or 1"),
        (broken(0.4), r"datum 2 holds 0.4 at \[0, 3, 5\], expected 0 or 1 \(the model was trained on binarised data\)"),
    ],
    ids=["size", "one image", "flat", "none", "numpy", "complex", "nan", "inf", "out of range", "not binarised"],
)  # fmt: skip
def test_data_that_do_not_fit_are_named_whatever_they_are_given_to(binary, x, message):
    evaluator = binary.evaluator()
    given = [
        binary.log_likelihood, lambda x: evaluator.score("elbo", x), lambda x: evaluator.score("bdmc", x),
        evaluator.objective, evaluator.evaluate, lambda x: evaluator.assess(x, "quick"), evaluator.certify,
        binary.parzen,
    ]  # fmt: skip
    for score in given:
        with pytest.raises(DataError, match=message):
            score(x)


@pytest.mark.parametrize("value", [math.nan, 1.5])
def test_data_are_checked_under_a_noise_too(gan, value):
    with pytest.raises(DataError, match=f"datum 2 holds {value:g}"):
        gan.evaluator(noise=0.1).score("iwae_refined", broken(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.7, -0.1])
def test_grey_values_out_of_range_are_named(grey, value):
    with pytest.raises(DataError, match=rf"datum 2 holds {value:g} at \[0, 3, 5\], expected numbers in \[0, 1\]"):
        grey.check(broken(value))


def test_greys_between_the_levels_are_named_where_levels_alone_are_likely(small, grey):
    changes = {"data.binarisation": "none", "algorithm.observation": {"name": "discretised_logistic"}}
    config = small("vae", changes)
    model = LoadedModel(build(config, load_data(config).spec), config, "# card")
    with pytest.raises(DataError, match=r"datum 2 holds 0.51 at \[0, 3, 5\], expected 0, 1/16, 2/16, ..., 1"):
        model.check(broken(0.51))
    assert torch.equal(model.check(broken(8 / 16)), broken(8 / 16))
    assert torch.equal(grey.check(broken(0.51)), broken(0.51)), "a Gaussian has a density for every grey"


def test_binarised_data_are_not_scored_by_a_model_of_grey_ones(grey, binary):
    with pytest.raises(DataError, match="binarised data, every value 0 or 1; the model was trained on 17 levels"):
        grey.log_likelihood(binary.data("test")[0])
    x, _ = grey.data("test")
    assert torch.equal(grey.check(x), x)
    assert torch.equal(grey.check(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE)), "black images are what they are"


def test_a_budget_that_does_not_exist_is_refused(binary):
    with pytest.raises(UserError, match="no budget 'lavish'; there are quick, standard, certified"):
        binary.log_likelihood(torch.zeros(2, *SHAPE), "lavish")


def test_the_limit_of_test_data_is_one_of_test_data(binary):
    assert len(binary.data("test")[0]) == 5
    assert len(binary.data("train")[0]) > 100
    assert len(binary.data("test", 3)[0]) == 3


@pytest.mark.parametrize(("dtype", "levels"), [(np.int64, 255), (np.float32, "real")])
def test_a_model_from_before_levels_had_to_be_said_reads_its_data_as_then(tmp_path, small, dtype, levels):
    x = np.random.default_rng(0).integers(0, 200, (40, 8, 8))
    x[:, 0, 0] = 199
    np.save(tmp_path / "x.npy", x.astype(dtype))
    mine = {"data.name": "file", "data.path": str(tmp_path / "x.npy"), "data.binarisation": "none"}
    config = small("vae", {**mine, "data.levels": levels, "algorithm.observation": {"name": "gaussian"}})
    silent = config.model_copy(update={"data": config.data.model_copy(update={"levels": None})})
    now, then = (LoadedModel(build(config, load_data(config).spec), each, "# card") for each in (config, silent))
    assert torch.equal(then.data("test")[0], now.data("test")[0])


@pytest.mark.parametrize("n", [-1, 0, "three"])
def test_draws_that_are_no_count_are_refused(binary, n):
    with pytest.raises(UserError, match="n: given .*, expected how many draws"):
        binary.sample(n)


def test_a_model_is_named_by_its_method_its_data_its_size_and_its_round(small, tmp_path):
    assert replace(small_model(small, "vae"), round=7).subject == "vae of digits, 8 latents, round 7"
    assert small_model(small, "cyclegan").subject == "cyclegan of digits and digits"
    mine = small("vae", {"data": {"name": "file", "path": str(tmp_path / "mine.npz"), "binarisation": "static"}})
    assert mine.subject(1) == "vae of mine.npz, 8 latents, round 1"
    assert small("vae", {"algorithm.latent_dim": 1}).subject() == "vae of digits, 1 latent"


def small_model(small, method: str) -> LoadedModel:
    config = small(method)
    return LoadedModel(build(config, load_data(config).spec), config, "# card")


def test_a_model_folder_without_a_round_can_be_read(small, tmp_path):
    config = small("vae")
    folder = tmp_path / "model"
    write_model(build(config, load_data(config).spec), config, "", LikelihoodRecord({}, ()), folder, 3)
    assert load_model(folder).round == 3
    written = ModelFolder.read(folder)
    older = {key: value for key, value in written.config.items() if key != "round"}
    ModelFolder(written.weights, older, written.card, written.more).write(folder, replace=True)
    assert load_model(folder).round is None
    assert "round" not in load_model(folder).subject
