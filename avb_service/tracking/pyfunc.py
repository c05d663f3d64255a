"""How MLflow loads a registered model: `mlflow.pyfunc.load_model`, `mlflow models serve`.

Floor 7.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.exceptions import MlflowException
from numpy.typing import ArrayLike
from torch import Tensor

from avb_service.data.inputs import as_array
from avb_service.errors import DataError, UserError
from avb_service.tracking.registry import PARAMETERS

if TYPE_CHECKING:
    from avb_service.model import Model

DTYPES = ("uint8", "float32")


class PyfuncModel:
    """A loaded model behind MLflow's one method."""

    def __init__(self, model: "Model") -> None:
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:  # noqa: ANN401
        """Do one of the model's tasks.

        Args:
            model_input: data, as `Model` takes them; not looked at when sampling.
            params: `task` is reconstruct (the default), encode or sample; `seed` of the noise; `n`, how many to sample;
                `dtype`, uint8 or float32, what the numbers are: JSON and CSV have integers, but no bytes.

        Returns:
            Images [B, C, H, W] or [n, C, H, W], or codes [B, D].

        Raises:
            MlflowException: no such task, the model cannot do it, or the data do not fit; a server passes the message
                on to its client, which it does with no other exception.
        """
        given = {**PARAMETERS, **(params or {})}
        tasks: dict[str, Callable[[], Tensor]] = {
            "reconstruct": lambda: self.model.reconstruct(_typed(model_input, given["dtype"]), given["seed"]),
            "encode": lambda: self.model.encode(_typed(model_input, given["dtype"]), given["seed"]),
            "sample": lambda: self.model.sample(given["n"], given["seed"]),
        }
        try:
            if given["task"] not in tasks:
                raise UserError(f"task: given {given['task']!r}, expected {', '.join(tasks)}")
            return tasks[given["task"]]().numpy(force=True)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _typed(data: ArrayLike, dtype: str) -> ArrayLike:
    """The data, read as what a client says that they are.

    Raises:
        UserError: no such type, or numbers that it does not have.
    """
    if not dtype:
        return data
    if dtype not in DTYPES:
        raise UserError(f"dtype: given {dtype!r}, expected {' or '.join(DTYPES)}")
    numbers = as_array(data).astype(np.float64)
    whole = (numbers % 1 == 0) & (numbers >= 0) & (numbers <= 255)
    if dtype == "uint8" and not whole.all():
        raise DataError(f"dtype uint8: the data hold {numbers[~whole][0]:g}, expected whole numbers from 0 to 255")
    return numbers.astype(dtype)


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls with the path of the model folder."""
    from avb_service.model import Model

    return PyfuncModel(Model.of_folder(Path(path)))
