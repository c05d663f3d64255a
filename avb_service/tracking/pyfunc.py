"""How MLflow loads a registered model: `mlflow.pyfunc.load_model`, `mlflow models serve`.

Floor 7.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avb_service.errors import UserError

if TYPE_CHECKING:
    from avb_service.experiment import LoadedModel


class PyfuncModel:
    """A loaded model behind MLflow's one method."""

    def __init__(self, model: "LoadedModel") -> None:
        self.model = model

    def predict(self, model_input: np.ndarray, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Do one of the model's tasks.

        Args:
            model_input: images [B, C, H, W]; not looked at when sampling.
            params: `task` is reconstruct (the default), encode, log_likelihood or sample; `n` and `seed` are for
                sampling.

        Returns:
            Images [B, C, H, W] or [n, C, H, W], codes, or nats per datum [B].

        Raises:
            UserError: no such task.
        """
        params = params or {}
        task = params.get("task", "reconstruct")
        if task == "sample":
            return self.model.sample(params.get("n", 16), params.get("seed", 0)).numpy(force=True)
        tasks = {
            "reconstruct": self.model.reconstruct,
            "encode": self.model.encode,
            "log_likelihood": self.model.log_likelihood,
        }
        if task not in tasks:
            raise UserError(f"task: given {task!r}, expected sample, {', '.join(tasks)}")
        return tasks[task](torch.as_tensor(np.array(model_input, dtype=np.float32))).numpy(force=True)


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls with the path of the model folder."""
    from avb_service.experiment import load_model

    return PyfuncModel(load_model(Path(path)))
