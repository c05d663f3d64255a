"""Every method of the table through the registry, with no exceptions: scored, published, listed, pulled, sampled."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avb_service.algorithm import LatentVariableModel
from avb_service.fitting import Fit
from avb_service.model import Model
from avb_service.report import assess
from avb_service.seeding import seeded
from avb_service.tracking import Run, leaderboard, pull
from avb_service.tracking.promotion import record_of
from avb_service.tracking.publish import publish

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def test_what_is_pulled_draws_what_was_trained(small, method, uri, tmp_path):
    name = method.replace("_", "-")
    experiment = Fit(small(method, {"tracking.model": name}), tmp_path / "checkpoints")
    experiment.run()
    record = assess(experiment.model)
    run = Run.start("all", method, experiment.config.tree(), uri=uri)
    published = publish(replace(experiment.model, likelihood=record), run, tmp_path / "model")
    assert published.uri == f"models:/{name}/1"

    (row,) = [row for row in leaderboard(uri) if row.name == name]
    assert row.tags["method"] == method and row.aliases == (published.alias,)
    scored = any(key.startswith("test/log_likelihood") for key in row.metrics)
    assert scored == isinstance(experiment.engine.algorithm, LatentVariableModel)

    pulled = Model.of_folder(pull(f"models:/{name}@{published.alias}", tmp_path / "pulled", uri))
    with seeded(3, "sample"), torch.no_grad():
        expected = experiment.engine.model.sample(4)
    assert torch.equal(pulled.sample(4, seed=3), expected)
    told = record_of(published.uri, uri).estimates
    assert [(e.name, e.kind) for e in told] == [(e.name, e.kind) for e in record.estimates]
    assert all(np.array_equal(a.per_datum, b.per_datum) for a, b in zip(told, record.estimates, strict=True))
