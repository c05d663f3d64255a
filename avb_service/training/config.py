"""The `training` section of a configuration.

Floor 4.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from avb_service.config import Config
from avb_service.optim import Positive


class TrainingConfig(Config):
    """How long, how large, from which seed, in which precision.

    Attributes:
        rounds: in each of which every player has its turn.
        batch_size: data in a step, of all workers together.
        seed: of the weights, the order of the data and all noise.
        logical_workers: V slices of a batch, with a noise stream each; N workers share them out, and N has to divide V.
        report_every: rounds between two reports, at which the model is evaluated and saved.
        ema: decay of the weights' moving average, which is evaluated and published in their place; none by default.
        dtype: of data and weights.
        matmul_precision: torch's, of float32 products on GPUs: high is TF32 where they have it.
        capture: off plays each operation as the method has written it. compile has torch's compiler make one program of
            a player's forward and backward pass, which takes about half a minute at the beginning and pays where
            networks are small; its numbers differ in the last digits. graph is a CUDA graph, the same to the bit as
            off. auto tries which is fastest, where enough training is left for the trial to pay.
        precision: of layers' products in training: bf16 where a processor has instructions for it, several times as
            fast in wide layers; all else is in `dtype`, and so are likelihoods. auto tries which is faster.
    """

    rounds: Positive = 5000
    batch_size: Positive = 128
    seed: Annotated[int, Field(ge=0)] = 0
    logical_workers: Positive = 1
    report_every: Positive = 500
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    matmul_precision: Literal["highest", "high", "medium"] = "high"
    capture: Literal["auto", "off", "graph", "compile"] = "off"
    precision: Literal["float32", "bf16", "auto"] = "float32"

    def problems(self) -> Iterator[str]:
        """The global batch is cut into equal slices."""
        yield from super().problems()
        if self.batch_size % self.logical_workers:
            yield (
                f"logical_workers: {self.logical_workers} do not divide training.batch_size {self.batch_size}; "
                "choose a divisor"
            )
        if self.dtype == "float64" and self.precision != "float32":
            yield f"precision: {self.precision} is for training.dtype float32, given float64; set precision to float32"
