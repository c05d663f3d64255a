"""The products of a round and nothing else: `python products.py DEVICE PRESET [SETTING ...]`.

Matrix products and convolutions of a round of the engine, forward and backward, are recorded with what they are given
(memory that was used twice is used twice here too), and played again.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch_laps import laps_on

from avb_service.fitting import Fit
from avb_service.settings import read_config

aten = torch.ops.aten
PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.mv,
    aten.dot,
    aten.convolution,
    aten.convolution_backward,
}


class Recording(TorchDispatchMode):
    """Notes every product."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        self._known: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        if func.overloadpacket in PRODUCTS:
            self.products.append((func, *tree_map(self._copy, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))

    def _copy(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return self._known.setdefault((leaf.data_ptr(), leaf.shape, leaf.stride()), leaf.detach().clone())


def main() -> None:
    """Play one round under the recorder, then its products for ever."""
    device, preset, *settings = sys.argv[1:]
    laps = laps_on(device)
    brief = ["training.rounds=1", "training.report_every=1"]
    with tempfile.TemporaryDirectory() as folder, Recording() as recording:
        experiment = Fit(read_config(preset, [*settings, *brief]), Path(folder), device=device)
        recording.products.clear()  # what building took
        experiment.engine.run(lambda report: None)
    with torch.no_grad():
        while True:
            for _ in range(10):
                for product, args, kwargs in recording.products:
                    product(*args, **kwargs)
            laps(10)


if __name__ == "__main__":
    main()
