"""A registered model behind MLflow's scoring server, asked over HTTP; and what MLflow downloads, loaded by us."""

import json
import math
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import urllib3
import uvicorn
from typer.testing import CliRunner

import avb_service
from avb_service.cli import app
from avb_service.errors import DataError
from avb_service.fitting import Fit
from avb_service.folder import LOADER
from avb_service.manifest import read_folder
from avb_service.model import Model
from avb_service.records import LikelihoodRecord
from avb_service.tracking import Run, register

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
OBSERVATIONS = {"grey": "discretised_logistic", "binary": "bernoulli"}


@pytest.fixture(scope="module", params=OBSERVATIONS)
def served(request, small, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A model of grey levels (16, as digits have) or of binary pixels: registered, loaded by MLflow, and served."""
    place = tmp_path_factory.mktemp(request.param)
    uri = f"sqlite:///{place}/mlflow.db"
    changes = {"data.binarisation": "none"} if request.param == "grey" else {}
    config = small("vae", {**changes, "algorithm.observation": {"name": OBSERVATIONS[request.param]}})
    experiment = Fit(config, place / "checkpoints")
    experiment.run()
    folder = replace(experiment.model, card="# card", likelihood=LikelihoodRecord({}, (), None)).write(place / "model")
    run = Run.start("serving", "one", config.tree(), uri=uri)
    register("digits", folder, run.run_id, aliases=["champion"], uri=uri)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", uri)
        patched.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patched.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # which the server sets, for ever
        import mlflow
        from mlflow.pyfunc import scoring_server

        mlflow.set_tracking_uri(uri)
        loaded = mlflow.pyfunc.load_model("models:/digits@champion")
        with listening(scoring_server.init(loaded)) as address:
            yield SimpleNamespace(
                kind=request.param, model=Model.of_folder(folder), folder=folder, mlflow=loaded, address=address
            )


class listening:  # noqa: N801  a context
    """An ASGI application at an address."""

    def __init__(self, application: object) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join()


def ask(served: SimpleNamespace, body: object, kind: str = "application/json") -> tuple[int, object]:
    """The status and the answer."""
    data = body if isinstance(body, str | bytes) else json.dumps(body)
    patient = urllib3.Retry(total=None, connect=50, backoff_factor=0.05, backoff_max=0.2)
    answer = urllib3.request(
        "POST", f"{served.address}/invocations", body=data, headers={"Content-Type": kind}, retries=patient
    )
    return answer.status, json.loads(answer.data)


def right(served: SimpleNamespace, body: object, expected: torch.Tensor, kind: str = "application/json") -> None:
    status, answer = ask(served, body, kind)
    assert status == 200, answer
    torch.testing.assert_close(torch.tensor(answer["predictions"]), expected)


def digits(model: Model) -> torch.Tensor:
    return model.data("test")[0][:3]


def test_json_rows_and_tables_are_taken(served):
    model, x = served.model, digits(served.model)
    rows = pd.DataFrame(x.flatten(1).numpy().astype(np.float64))
    images = x[:, 0].tolist()
    for expected, task in ((model.encode(x), "encode"), (model.reconstruct(x), "reconstruct")):
        params = {"params": {"task": task}}
        for form in (x.tolist(), images, x.flatten(1).tolist(), x.permute(0, 2, 3, 1).tolist()):
            right(served, {"inputs": form, **params}, expected)
            right(served, {"instances": form, **params}, expected)
        right(served, {"dataframe_split": rows.to_dict("split"), **params}, expected)
        right(served, {"dataframe_records": rows.to_dict("records"), **params}, expected)
    right(served, rows.to_csv(index=False), model.reconstruct(x), "text/csv")
    right(served, {"inputs": [], "params": {"task": "sample", "n": 2, "seed": 7}}, model.sample(2, 7))


def test_integers_are_what_the_client_says(served):
    model, x = served.model, digits(served.model)
    levels = model.algorithm.spec.levels
    expected, whole = model.encode(x), (levels * x).long().tolist()
    right(served, {"inputs": whole, "params": {"task": "encode", "dtype": "uint8"}}, expected)
    white = np.ones((2, 1, 8, 8), dtype=int).tolist()
    as_floats = {"inputs": white, "params": {"task": "encode", "dtype": "float32"}}
    right(served, as_floats, model.encode(torch.ones(2, 1, 8, 8)))
    if served.kind == "binary":
        right(served, {"inputs": x.long().tolist(), "params": {"task": "encode"}}, expected)


def pixel(value: float) -> list:
    x = np.zeros((2, 8, 8))
    x[1, 3, 5] = value
    return x.tolist()


REFUSED: list[tuple[object, dict, str]] = [
    (np.zeros((2, 3, 3)).tolist(), {}, "data of shape [2, 3, 3], expected [B, 1, 8, 8] or [B, 8, 8] or [B, 64]"),
    (pixel(0.51), {}, "datum 1 holds 0.51 at [0, 3, 5], expected 0"),
    (pixel(math.nan), {}, "datum 1 holds nan at [0, 3, 5], expected 0"),
    (pixel(255.0), {}, "datum 1 holds 255 at [0, 3, 5], expected 0"),
    ([["a", "b"]], {}, "data as ndarray of <U1, expected numbers"),
    (pixel(0), {"task": "fly"}, "task: given 'fly', expected reconstruct, encode, sample"),
    (pixel(0), {"dtype": "int4"}, "dtype: given 'int4', expected uint8 or float32"),
    (pixel(0.5), {"dtype": "uint8"}, "dtype uint8: the data hold 0.5, expected whole numbers from 0 to 255"),
    (pixel(300), {"dtype": "uint8"}, "dtype uint8: the data hold 300, expected whole numbers from 0 to 255"),
    ([], {"task": "sample", "n": 0}, "n: given 0, expected how many draws"),
]


@pytest.mark.parametrize(("inputs", "params", "message"), REFUSED)
def test_a_client_is_told_the_reason_as_the_message_of_its_error(served, inputs, params, message):
    status, answer = ask(served, {"inputs": inputs, "params": params})
    assert status == 400 and answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert answer["message"].rpartition("Error: ")[2].startswith(message), answer


def test_integers_that_may_be_two_things_are_refused_by_name(served):
    if served.kind == "binary":
        return
    for value in (1, 9):
        x = np.full((2, 8, 8), value)
        status, answer = ask(served, {"inputs": x.tolist()})
        assert status == 400 and "data as int64, which may be pixels from 0 to 16 or grey values" in answer["message"]
        assert answer["message"].endswith("for a served model its parameter dtype")


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.float64),
        lambda x: x.tolist(),
        lambda x: x,
        lambda x: pd.DataFrame(x.flatten(1).numpy()),
        lambda x: list(x.numpy()[:, 0]),
    ],
)
def test_mlflows_own_loader_takes_the_same(served, form: Callable):
    x = digits(served.model)
    answer = served.mlflow.predict(form(x), params={"task": "encode"})
    assert isinstance(answer, np.ndarray) and np.allclose(answer, served.model.encode(x).numpy())
    levels = served.model.algorithm.spec.levels
    assert np.allclose(served.mlflow.predict((levels * x).byte().numpy(), params={"task": "encode"}), answer)
    assert served.mlflow.predict(None, params={"task": "sample", "n": 2}).shape == (2, 1, 8, 8)


def test_what_mlflow_downloads_is_loaded_pulled_and_evaluated(served, tmp_path):
    from mlflow.artifacts import download_artifacts

    for uri in ("models:/digits@champion", "models:/digits/1"):
        fetched = Path(download_artifacts(uri, dst_path=str(tmp_path / uri.replace("/", "-"))))
        assert (fetched / "MLmodel").is_file()
        x = digits(served.model)
        assert torch.equal(avb_service.load(fetched).encode(x), served.model.encode(x))
        assert torch.equal(avb_service.load(str(fetched)).sample(2), served.model.sample(2))
    pulled = CliRunner().invoke(app, ["pull", str(fetched), str(tmp_path / "pulled")])
    assert pulled.exit_code == 0 and read_folder(tmp_path / "pulled") == read_folder(served.folder)
    scored = CliRunner().invoke(app, ["evaluate", str(fetched), "--estimator", "elbo", "--json"])
    assert json.loads(scored.stdout)["estimates"][0]["estimator"] == "elbo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flavors: {python_function: {loader_module: mlflow.sklearn, data: x}}", "its loader is mlflow.sklearn"),
        (f"flavors: {{python_function: {{loader_module: {LOADER}, data: ../../x}}}}", "outside of itself"),
        ("flavors: {sklearn: {}}", "was not registered by this service: its loader is None"),
        ("run_id: one", "was not registered by this service: its loader is None"),
        (f"flavors: {{python_function: {{loader_module: {LOADER}}}}}", "expected a model folder"),
    ],
)
def test_what_others_have_stored_is_refused(tmp_path, text, message):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(DataError, match=message):
        avb_service.load(tmp_path)


def test_a_download_that_was_changed_is_refused(served, tmp_path):
    from mlflow.artifacts import download_artifacts

    fetched = Path(download_artifacts("models:/digits/1", dst_path=str(tmp_path / "there")))
    (card,) = fetched.rglob("card.md")
    card.write_text("# another")
    with pytest.raises(DataError, match="card.md does not match its checksum"):
        avb_service.load(fetched)
    shutil.rmtree(card.parent)
    with pytest.raises(DataError, match="expected a model folder"):
        avb_service.load(fetched)
