"""What Python users call: results that print and show themselves, models that are built once, torch left as it was."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import avb_service
from avb_service import cli
from avb_service.build import build, load_data
from avb_service.data import datasets
from avb_service.display import Display
from avb_service.errors import UserError
from avb_service.fitting import Fit
from avb_service.model import Model
from tests.answers import told

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
QUIET = Display(quiet=True)


@pytest.fixture
def desk(tmp_path, monkeypatch, no_ray):
    """A folder with nothing in it, where commands train in this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_is_trained_found_compared_pulled_and_loaded(desk, small):
    trained = avb_service.train(small("vae"), {"tracking.model": "mine"}, name="first", display=QUIET)
    assert trained.published.uri == "models:/mine/1" and "first is models:/mine/1" in str(trained)
    again = avb_service.train(small("vae"), ["tracking.model=mine", "training.seed=1"], name="second", display=QUIET)
    board = avb_service.leaderboard()
    assert {row["model"] for row in board} == {trained.published.uri, again.published.uri} and len(board) == 2
    assert board.rows == told("leaderboard", CliRunner().invoke(cli.app, ["leaderboard", "--json"]).stdout)
    assert "mine/1" in str(board) and "<pre" in board._repr_html_() and "mine/1" in board._repr_html_()
    compared = avb_service.compare("models:/mine/1", avb_service.load("models:/mine/1"))
    assert compared.comparison.difference == 0 and "is not ahead of" in str(compared)
    folder = avb_service.pull("models:/mine/2", desk / "pulled")
    model = avb_service.load(folder)
    x = model.data("test")[0].numpy()
    assert np.array_equal(model.reconstruct(x), avb_service.load("models:/mine/2").reconstruct(x))


def test_an_evaluation_shows_estimates_with_their_errors_and_a_picture(desk, small):
    model = fitted(small, desk).model
    found = avb_service.evaluate(model, limit=4, display=QUIET)
    assert found.count == 4 and found.estimates == found.record.estimates
    assert "elbo" in str(found) and "±" in str(found) and "data:image/png;base64," in found._repr_html_()
    x = model.data("test", 3)[0].numpy()
    (one,) = avb_service.evaluate(model, x, estimators=["elbo"], display=QUIET).estimates
    assert len(one.per_datum) == 3
    with pytest.raises(UserError, match="give either"):
        avb_service.evaluate(model, estimators=["elbo"], budget="quick")


def test_a_model_of_ones_own_process_is_registered_and_one_that_was_pulled_is_under_another_name(desk, small):
    first = avb_service.register(fitted(small, desk).model, "mine")
    assert first.uri == "models:/mine/1" and first.metrics
    second = avb_service.register(avb_service.load(first.uri), "another")
    assert second.uri == "models:/another/1" and second.metrics == first.metrics
    assert avb_service.load(second.uri).config.tracking.model == "another"
    assert set(avb_service.plots(first.uri)) >= {"samples"}


def test_a_model_is_built_once_and_its_data_are_read_once_to_be_scored_and_published(desk, small, monkeypatch):
    config = small("vae", {"tracking.model": "mine"})
    avb_service.train(config, name="counted", display=QUIET)
    from avb_service.runs import Job

    counts = {"built": 0, "read": 0}

    def counting(name, function):
        def counted(*given, **more):
            counts[name] += 1
            return function(*given, **more)

        return counted

    job, dataset = Job.read(desk / "runs" / "counted"), load_data(config)
    monkeypatch.setattr("avb_service.fitting.build", counting("built", build))
    monkeypatch.setattr("avb_service.build.load", counting("read", datasets.load))
    monkeypatch.setattr("avb_service.model.load", counting("read", datasets.load))
    job.publish(job.assess(dataset))
    assert counts == {"built": 1, "read": 0}
    counts.update(built=0)
    job.publish(job.assess())
    assert counts["read"] == 1


def test_torch_is_left_as_it_was(small, tmp_path):
    torch.set_float32_matmul_precision("highest")
    seen = []

    def look(round_, metrics):
        seen.append((torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()))

    Fit(small("vae", {"training.matmul_precision": "high"}), str(tmp_path)).run(look)
    assert set(seen) == {("high", True)}
    assert torch.get_float32_matmul_precision() == "highest" and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: avb_service.train("vae_digit"), "vae_digit: neither a file nor a preset"),
        (lambda: avb_service.train("vae_digits", {"training.round": 3}), "training.round"),
        (lambda: avb_service.train("vae_digits", "training.rounds=3"), "expected a mapping of paths to values"),
        (lambda: avb_service.train("vae_digits", name="a/b"), "--name: given 'a/b'"),
        (lambda: avb_service.promote("mine"), "given mine, expected models:/NAME/VERSION"),
        (lambda: avb_service.load("nowhere"), "nowhere is neither"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(desk, call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)


def test_the_package_says_what_it_offers():
    assert set(avb_service.__all__) <= set(dir(avb_service))
    assert all(callable(getattr(avb_service, name)) for name in avb_service.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = avb_service.trian


def fitted(small, folder) -> Fit:
    fit = Fit(small("vae"), folder / "checkpoints")
    assert isinstance(fit.run(), Model)
    return fit
