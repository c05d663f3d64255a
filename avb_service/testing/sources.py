"""What holds for every data source.

Floor 9.
"""

import torch

from avb_service.data.datasets import DataConfig, load
from avb_service.data.sources import SOURCES
from avb_service.data.splits import Split
from avb_service.trees import Tree


def check_source(name: str, changes: Tree | None = None) -> None:
    """Make sure that a data source gives the same data every time, of the kind that it says.

    Args:
        name: by which it is found.
        changes: keys of the `data` section besides.

    Raises:
        AssertionError: data differ from reading to reading, are not of the declared kind, or lie in two splits.
        UserError: there is none, or it cannot be read.
    """
    config = DataConfig.parse({"name": name, **(changes or {})})
    data, again = load(config), load(config)
    assert data.sha256 == again.sha256, f"{name}: two readings differ; draw by config.seed alone"
    declared = SOURCES[name].values
    assert declared in (None, data.spec.values), f"{name}: says {declared}, and holds {data.spec.values} data"
    shape, splits = tuple(data.spec.shape), {"train": data.train, "validation": data.validation, "test": data.test}
    for purpose, split in splits.items():
        assert len(split), f"{name}: nothing is left for {purpose}"
        found = tuple(split.pixels.shape[1:])
        assert found == shape, f"{name}: {purpose} data are of shape {found}, and the set of {shape}"
        assert split.labels is None or len(split.labels) == len(split), f"{name}: a label for each datum of {purpose}"
    rows = {purpose: _rows(split) for purpose, split in splits.items()}
    if not SOURCES[name].load(config).population:
        shared = rows["train"] & rows["test"]
        few = len(shared) <= 0.01 * len(rows["test"])
        assert few, f"{name}: {len(shared)} data of test are in train as well"


def _rows(split: Split) -> set[bytes]:
    pixels = split.read(torch.arange(len(split)))
    return {row.numpy().tobytes() for row in pixels}
