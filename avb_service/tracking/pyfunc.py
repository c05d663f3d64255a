"""How MLflow loads a registered model: `mlflow.pyfunc.load_model`, `mlflow models serve`.

Floor 7.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from avb_service.errors import UserError

if TYPE_CHECKING:
    from avb_service.model import LoadedModel


class PyfuncModel:
    """A loaded model behind MLflow's one method."""

    def __init__(self, model: "LoadedModel") -> None:
        self.model = model

    def predict(self, model_input: np.ndarray, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Do one of the model's tasks.

        Args:
            model_input: images [B, C, H, W]; not looked at when sampling.
            params: `task` is reconstruct (the default), encode or sample; `seed` of the noise; `n`, how many to sample.

        Returns:
            Images [B, C, H, W] or [n, C, H, W], or codes [B, D].

        Raises:
            UserError: no such task, or the model cannot do it.
        """
        given = {"task": "reconstruct", "n": 16, "seed": 0, **(params or {})}
        tasks: dict[str, Callable[[], Tensor]] = {
            "reconstruct": lambda: self.model.reconstruct(_images(model_input), given["seed"]),
            "encode": lambda: self.model.encode(_images(model_input), given["seed"]),
            "sample": lambda: self.model.sample(given["n"], given["seed"]),
        }
        if given["task"] not in tasks:
            raise UserError(f"task: given {given['task']!r}, expected {', '.join(tasks)}")
        return tasks[given["task"]]().numpy(force=True)


def _images(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls with the path of the model folder."""
    from avb_service.model import load_model

    return PyfuncModel(load_model(Path(path)))
