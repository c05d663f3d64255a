"""Distributed training of latent-variable generative models, with log-likelihoods that can be believed."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avb_service.model import Model


def load(model: str | Path) -> "Model":
    """Load a model from the registry or from a model folder.

    Args:
        model: `models:/NAME@champion`, `models:/NAME/3`, `runs:/RUN_ID/NAME`, or the path of a model folder, also as
            MLflow downloads it.

    Raises:
        UserError: there is no such model, or it was damaged or tampered with.
    """
    from avb_service.model import Model

    if "://" not in str(model) and Path(model).is_dir():
        return Model.of_folder(Path(model))
    from avb_service.tracking import pull

    with tempfile.TemporaryDirectory() as folder:
        return Model.of_folder(pull(str(model), Path(folder) / "model"))
