"""Models in the registry: registered, promoted, listed, pulled and loaded.

Floor 9. What a call needs is imported when it runs, so that what only reads the registry answers at once.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from avb_service import rows
from avb_service.errors import UserError
from avb_service.places import settle
from avb_service.results import Leaderboard, Promoted

if TYPE_CHECKING:
    from avb_service.model import Model
    from avb_service.tracking.publish import Published


def register(model: "Model", name: str | None = None, *, experiment: str | None = None) -> "Published":
    """Score a model that has not been, and publish it under a name; it becomes champion where it has earned that.

    Args:
        model: that a `Fit` gave, or that was loaded.
        name: in the registry; as its configuration has it by default.
        experiment: MLflow's, in which a run is made for it; as its configuration has it by default.

    Raises:
        UserError: MLflow refuses, models of another kind have that name, or its data are missing.
    """
    prepare()
    from avb_service.report import assess
    from avb_service.tracking import Run, check_server
    from avb_service.tracking.publish import check_names, publish

    given, uri = model.config.tracking, check_server()
    named = given.model_copy(update={"model": name or given.model, "experiment": experiment or given.experiment})
    model = replace(model, config=model.config.model_copy(update={"tracking": named}))
    check_names(model.config, uri)
    model = model.with_data()
    if model.likelihood is None:
        model = replace(model, likelihood=assess(model))
    run = Run.start(named.experiment, f"{named.model}-{datetime.now():%Y%m%d-%H%M%S}", model.config.tree(), uri=uri)
    with tempfile.TemporaryDirectory() as folder:
        published = publish(model, run, Path(folder) / "model")
    run.finish()
    return published


def promote(model: str, override: str | None = None) -> Promoted:
    """Make a version champion: for a better held-out likelihood with a certificate, or for a reason of yours.

    Args:
        model: models:/NAME/VERSION.
        override: why it is to be champion although it has not earned it; recorded with it.

    Raises:
        UserError: there is no such version, or it has not earned it; says why.
    """
    from avb_service.tracking.promotion import promote as move

    name, _, version = model.removeprefix("models:/").partition("/")
    if not version.isdigit():
        raise UserError(f"given {model}, expected models:/NAME/VERSION")
    return Promoted(model, move(name, int(version), override))


def leaderboard(new: "Sequence[Published]" = ()) -> Leaderboard:
    """All registered models, and those that `record` keeps; what was scored on the same data together, the best first.

    Args:
        new: models to mark, and the best of them.
    """
    from avb_service.tracking import check_server, externals
    from avb_service.tracking import leaderboard as read

    best, uri = next((each.uri for each in new if each.alias is not None), None), check_server()
    return Leaderboard(rows.leaderboard([*read(uri), *externals(uri)], [each.uri for each in new], best))


def pull(model: str, directory: str | Path) -> Path:
    """Copy a registered model into a folder, verified.

    Args:
        model: models:/NAME@champion, models:/NAME/3, runs:/RUN_ID/NAME.
        directory: absent or empty, or holding that very model.

    Raises:
        UserError: there is no such model, it was damaged, or the directory holds something else.
    """
    from avb_service.tracking import pull as fetch

    return fetch(model, Path(directory))


def load(model: "str | Path | Model") -> "Model":
    """Load a model from the registry or from a model folder.

    Args:
        model: `models:/NAME@champion`, `models:/NAME/3`, `runs:/RUN_ID/NAME`, or the path of a model folder, also as
            MLflow downloads it.

    Raises:
        UserError: there is no such model, or it was damaged or tampered with.
    """
    prepare()
    from avb_service.model import Model

    if isinstance(model, Model):
        return model
    if "://" not in str(model) and Path(model).is_dir():
        return Model.of_folder(Path(model))
    with tempfile.TemporaryDirectory() as folder:
        return Model.of_folder(pull(str(model), Path(folder) / "model"))


def prepare() -> None:
    """Settle, before libraries are imported, where they keep files, and that a cluster of our own lets nobody else in.

    What the user has set himself is left, and so is a Ray that this process is connected to.
    """
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if (os.environ.get("RAY_ADDRESS") or "local") == "local" and not connected:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported, which reads it then
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)  # in a notebook it advertises a package at each import
    settle()
