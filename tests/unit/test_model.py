"""What a loaded model refuses to score, and how it says so."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from avb_service import tables
from avb_service.build import build, load_data
from avb_service.errors import DataError, UserError
from avb_service.folder import ModelFolder
from avb_service.formats import FORMAT
from avb_service.likelihood import Evaluator
from avb_service.manifest import read_manifest
from avb_service.model import Model
from avb_service.records import LikelihoodRecord
from avb_service.storage import MANIFEST

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def binary(small) -> Model:
    config = small("vae", {"likelihood.test_data": 5})
    return Model(build(config, load_data(config).spec), config, card="# card")


@pytest.fixture(scope="module")
def grey(small) -> Model:
    changes = {"data.binarisation": "none", "algorithm.observation": {"name": "gaussian"}}
    config = small("vae", changes)
    return Model(build(config, load_data(config).spec), config, card="# card")


@pytest.fixture(scope="module")
def gan(small) -> Model:
    config = small("gan")
    return Model(build(config, load_data(config).spec), config, card="# card")


def broken(value: float) -> Tensor:
    x = torch.zeros(4, *SHAPE)
    x[2, 0, 3, 5] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 28, 28), r"data of shape \[2, 1, 28, 28\], expected \[B, 1, 8, 8\]"),
        (torch.zeros(8, 8), r"data of shape \[8, 8\], expected \[B, 1, 8, 8\]"),
        (torch.zeros(2, 63), r"data of shape \[2, 63\]"),
        (torch.zeros(0, *SHAPE), "no data to score: given 0"),
        ([["a", "b"]], "data as list of <U1, expected numbers"),
        (torch.zeros(2, *SHAPE, dtype=torch.complex64), "data as complex64, expected real numbers"),
        (broken(math.nan), r"datum 2 holds nan at \[0, 3, 5\], expected 0 or 1"),
        (broken(math.inf), r"datum 2 holds inf at \[0, 3, 5\], expected 0 or 1"),
        (broken(-1.0), r"datum 2 holds -1 at \[0, 3, 5\], expected 0 or 1"),
        (broken(0.4), r"datum 2 holds 0.4 at \[0, 3, 5\], expected 0 or 1 \(the model was trained on binary data\)"),
    ],
    ids=["size", "one image", "flat", "none", "words", "complex", "nan", "inf", "out of range", "not binarised"],
)  # fmt: skip
def test_data_that_do_not_fit_are_named_whatever_they_are_given_to(binary, x, message):
    evaluator = binary.evaluator()
    given = [
        binary.log_likelihood,
        lambda x: evaluator.score("elbo", x),
        lambda x: evaluator.score("bdmc", x),
        evaluator.objective,
        evaluator.evaluate,
        lambda x: evaluator.assess(x, "quick"),
        evaluator.certify,
        binary.parzen,
    ]
    for score in given:
        with pytest.raises(DataError, match=message):
            score(x)


@pytest.mark.parametrize("value", [math.nan, 1.5])
def test_data_are_checked_under_a_noise_too(gan, value):
    with pytest.raises(DataError, match=f"datum 2 holds {value:g}"):
        gan.evaluator(noise=0.1).score("iwae_mixture", broken(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.7, -0.1])
def test_grey_values_out_of_range_are_named(grey, value):
    with pytest.raises(DataError, match=rf"datum 2 holds {value:g} at \[0, 3, 5\], expected numbers in \[0, 1\]"):
        grey.check(broken(value))


def test_greys_between_the_levels_are_named_where_levels_alone_are_likely(small, grey):
    changes = {"data.binarisation": "none", "algorithm.observation": {"name": "discretised_logistic"}}
    config = small("vae", changes)
    model = Model(build(config, load_data(config).spec), config, card="# card")
    with pytest.raises(DataError, match=r"datum 2 holds 0.51 at \[0, 3, 5\], expected 0, 1/16, 2/16, ..., 1"):
        model.check(broken(0.51))
    for each in (model, grey):
        with pytest.raises(DataError, match="datum 0 holds 16 .* uint8"):
            each.check(np.full((1, 8, 8), 16.0))
        assert each.check(np.full((1, 8, 8), 16, np.uint8)).eq(1).all()
    assert torch.equal(model.check(broken(8 / 16)), broken(8 / 16))
    assert torch.equal(grey.check(broken(0.51)), broken(0.51)), "a Gaussian has a density for every grey"


@pytest.mark.parametrize("observation", ["gaussian", "discretised_logistic"])
def test_data_that_happen_to_be_extreme_are_data_of_grey_levels_all_the_same(small, observation):
    config = small("vae", {"data.binarisation": "none", "algorithm.observation": {"name": observation}})
    model = Model(build(config, load_data(config).spec), config, card="# card")
    x = (torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    for given in (x, x[:1], torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE), 16 * x.byte()):
        expected = given.float() / 16 if given.dtype == torch.uint8 else given
        assert torch.equal(model.check(given), expected)
        assert model.encode(given).shape == (len(given), 8) and model.reconstruct(given).shape == given.shape
        assert all(math.isfinite(estimate.value) for estimate in model.log_likelihood(given))


@pytest.fixture
def masks(tmp_path) -> str:
    x = np.random.default_rng(0).random((60, 8, 8)) < 0.5
    np.save(tmp_path / "masks.npy", 255 * x.astype(np.uint8))
    return str(tmp_path / "masks.npy")


def of_file(path: str, observation: str, levels: int | None) -> dict:
    return {
        "data.name": "file",
        "data.path": path,
        "data.binarisation": "none",
        "data.levels": levels,
        "algorithm.observation": {"name": observation},
    }


def test_masks_are_binary_and_said_to_be_to_who_has_taken_them_for_grey(small, masks):
    assert load_data(small("vae", of_file(masks, "bernoulli", None))).spec.values == "binary"
    for observation in ("gaussian", "discretised_logistic"):
        with pytest.raises(DataError, match=rf"use bernoulli. Every pixel of {masks} is 0 or 255, .* data.levels=255"):
            load_data(small("vae", of_file(masks, observation, None)))


@pytest.mark.parametrize(
    ("observation", "levels"), [("bernoulli", None), ("discretised_logistic", 255), ("gaussian", 255)]
)
def test_a_model_of_masks_can_be_used_for_its_own_data(small, masks, observation, levels):
    config = small("vae", of_file(masks, observation, levels))
    algorithm = build(config, load_data(config).spec)
    silent = config.model_copy(update={"data": config.data.model_copy(update={"levels": None})})
    raw = np.load(masks)
    for known in (config, silent):  # as it was trained before that had to be said
        model = Model(algorithm, known, card="# card")
        x, _ = model.data("test")
        assert set(x.unique().tolist()) == {0, 1}
        assert model.encode(x).shape == (len(x), 8) and model.reconstruct(x).shape == x.shape
        assert all(math.isfinite(estimate.value) for estimate in model.log_likelihood(x))
        assert torch.equal(model.encode(raw), model.encode(raw / 255))


def test_data_that_are_not_the_models_own_are_told(small, tmp_path):
    path = tmp_path / "data.npy"
    values = np.random.default_rng(0).standard_normal((60, 8, 8))
    np.save(path, values)
    config = small(
        "vae",
        {
            "data": {"name": "file", "path": str(path), "binarisation": "none"},
            "algorithm.observation": {"name": "gaussian"},
        },
    )
    algorithm, sha256 = build(config, load_data(config).spec), load_data(config).sha256
    model = Model(algorithm, config, likelihood=LikelihoodRecord({"data_sha256": sha256}, ()))
    assert model.other_data() is None
    assert Model(algorithm, config).other_data() is None, "nobody knows"
    np.save(path, values + 1)
    assert f"{sha256[:12]} then" in model.other_data()
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "out", Console(file=shown, width=200, color_system=None))
        record = LikelihoodRecord({}, (Evaluator(algorithm, config.likelihood).score("elbo", model.data("test")[0]),))
        tables.estimates(record, "title", model.other_data())
    assert "these are other data than the model was trained and first scored on" in shown.getvalue()


def test_what_a_model_is_given_may_be_an_array_wherever_it_is_given(binary, gan):
    x, _ = binary.data("test")
    array, evaluator = x.numpy().astype(np.float64)[:, 0], binary.evaluator()
    assert torch.equal(binary.encode(array), binary.encode(x))
    assert torch.equal(binary.reconstruct(array.tolist()), binary.reconstruct(x))
    scores = [
        lambda x: binary.log_likelihood(x),
        lambda x: binary.parzen(x),
        lambda x: [evaluator.score("elbo", x)],
        lambda x: evaluator.evaluate(x),
        lambda x: [evaluator.objective(x)],
        lambda x: evaluator.assess(x, "quick").estimates,
        lambda x: gan.log_likelihood(x, noise=0.1)[:1],
    ]
    for score in scores:
        given, expected = score(array), score(x)
        assert [each.name for each in given] == [each.name for each in expected] and given
        assert all(np.array_equal(a.per_datum, b.per_datum) for a, b in zip(given, expected, strict=True))


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
    now, then = (Model(build(config, load_data(config).spec), each, card="# card") for each in (config, silent))
    assert torch.equal(then.data("test")[0], now.data("test")[0])


def test_a_folder_of_a_later_release_says_so(binary, tmp_path):
    folder = binary.write(tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"is of format {FORMAT + 1}.*a later release.*up to {FORMAT}: install"):
        Model.of_folder(folder)


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


def small_model(small, method: str) -> Model:
    config = small(method)
    return Model(build(config, load_data(config).spec), config, card="# card")


def test_a_model_folder_without_a_round_can_be_read(small, tmp_path):
    config = small("vae")
    folder = tmp_path / "model"
    Model(build(config, load_data(config).spec), config, 3, "", LikelihoodRecord({}, ())).write(folder)
    assert Model.of_folder(folder).round == 3
    written = ModelFolder.read(folder)
    older = {key: value for key, value in written.config.items() if key != "round"}
    ModelFolder(written.weights, older, written.card, written.more).write(folder, replace=True)
    uncounted = {"sha256": read_manifest(folder)}  # as it was before formats were counted
    (folder / MANIFEST).write_text(json.dumps(uncounted))
    assert Model.of_folder(folder).round is None
    assert "round" not in Model.of_folder(folder).subject


def test_data_that_have_moved_are_found_below_the_root(small, tmp_path):
    file, moved = tmp_path / "mine.npy", tmp_path / "elsewhere"
    np.save(file, np.random.default_rng(0).random((60, 1, 4, 4), np.float32))
    data = {"name": "file", "path": str(file), "validation": 9, "test": 9, "binarisation": "dynamic"}
    config = small("vae", {"data": data})
    model = Model(build(config, load_data(config).spec), config, card="# card")
    here = model.dataset().sha256
    moved.mkdir()
    assert model.dataset(str(moved)).sha256 == here, "it has not moved"
    file.rename(moved / file.name)
    with pytest.raises(UserError, match=r"data\.path: .*mine\.npy does not exist"):
        model.dataset()
    assert model.dataset(str(moved)).sha256 == here
