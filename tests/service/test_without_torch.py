"""Who looks into the registry, compares two models or moves an alias does not wait for torch."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avb_service.folder import ModelFolder
from avb_service.records import LIKELIHOOD, Certificate, Check, Estimate, Key, LikelihoodRecord
from avb_service.tracking import Run, register

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
RUN = """
import sys
from avb_service.cli import main
try:
    main()
finally:
    sys.stderr.write(f"torch: {'torch' in sys.modules}")
"""


@pytest.fixture(scope="module")
def uri(vae_folder, tmp_path_factory) -> str:
    """Two versions of a model, the first of them champion."""
    place = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{place}/mlflow.db"
    run = Run.start("without torch", "run", {}, uri=uri)
    for version, better in (("1", 0.0), ("2", 1.0)):
        values = np.linspace(-40, -10, 30) + better
        certificate = Certificate((Check("gap", 0.05, "<=", 0.2, "mean gap"),), -25.0, -24.9)
        record = LikelihoodRecord(
            {"data": "ab"}, (Estimate.of(Key("ais"), "lower_bound", {"nats": values}),), certificate
        )
        model = dataclasses.replace(ModelFolder.read(vae_folder), more={LIKELIHOOD: record.to_json()})
        aliases = ["champion"] if version == "1" else ["challenger"]
        register("vae", model.write(place / version / "model"), run.run_id, aliases=aliases, uri=uri)
    return uri


@pytest.mark.parametrize("words", [
    ["leaderboard"], ["pull", "models:/vae@champion", "pulled"], ["compare", "models:/vae/2", "models:/vae/1"],
    ["compare", "models:/vae/2", "FOLDER"], ["promote", "models:/vae/2"],
], ids=lambda words: "-".join(words[:1] + words[2:]))  # fmt: skip
def test_a_command_that_reads_the_registry_imports_no_torch(words, uri, vae_folder, tmp_path):
    place = Path(uri.removeprefix("sqlite:///")).parent / "1" / "model"
    given = [str(place) if word == "FOLDER" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *given, "--json"],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("torch: False")
    told = json.loads(done.stdout)
    if words[0] == "compare":
        assert told["better"] and told["difference"] == pytest.approx(1) and told["estimator"] == "ais"
    if words[0] == "promote":
        assert told["reason"].startswith("better than models:/vae/1: +1.000")
