"""Small images of noise, as files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    folder: Path, names: Iterable[str], size: tuple[int, int] = (5, 4), mode: str = "L", seed: int = 0
) -> None:
    """An image of its own for each name; size is width and height, mode L or RGB."""
    draw = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shape = size[::-1] if mode == "L" else (*size[::-1], 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
