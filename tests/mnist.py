"""MNIST's files, with noise in the place of digits."""

import struct
from pathlib import Path

import numpy as np


def write_mnist(root: Path, train: int = 50, test: int = 7) -> Path:
    """So many images and labels; the folder that they lie in."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train", train), ("t10k", test)):
        x = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + x.tobytes())
        y = rng.integers(0, 10, n, dtype=np.uint8)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + y.tobytes())
    return folder
