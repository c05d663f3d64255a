"""Whether translation keeps what a digit is, though nothing asks for it: `python -m benchmarks.translated_digits`.

CycleGAN learns to make MNIST's digits of scikit-learn's, from images alone. Then two classifiers that were trained on
MNIST's labelled images read the translations of held-out digits, and are scored against the labels of the originals:
support vectors, to which an image is a whole, and random trees, to which one pixel is as good as another.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.svm import SVC
from torch import Tensor

from avb_service.fitting import Fit
from avb_service.settings import read_config

TAUGHT = 10_000  # labelled MNIST images


class Read(NamedTuple):
    """Fractions of held-out digits that support vectors read as what they are.

    Attributes:
        as_they_are: of the digits themselves.
        translated: of their translations at the end of training.
        by_digit: of the translations of each digit, 0 to 9.
    """

    as_they_are: float
    translated: float
    by_digit: tuple[float, ...]


def read(assignments: list[str] | None = None) -> Read:
    """Train, print the accuracy at every report, and read what comes out.

    Args:
        assignments: what is set on top of the preset, as `--set` has it.
    """
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config("cyclegan_digits_mnist", assignments), Path(folder))
        x, labels = experiment.model.data("train", TAUGHT)
        readers = {"support vectors": SVC(C=10.0), "trees": ExtraTreesClassifier(100, random_state=0)}
        for reader in readers.values():
            reader.run(x.flatten(1).numpy(), labels)
        y, of_y = experiment.model.other("test")

        def right(reader: str, images: Tensor, truth: Tensor) -> np.ndarray:
            return readers[reader].predict(images.flatten(1).numpy()) == truth.numpy()

        def accuracy(images: Tensor, truth: Tensor) -> str:
            return ", ".join(f"{right(name, images, truth).mean():.3f} ({name})" for name in readers)

        def report(round_: int, metrics: object) -> None:
            model = experiment.engine.model
            with torch.no_grad():
                there = model.translate(y)
                lost = (model.translate_back(there) - y).abs().mean()
            print(
                f"round {round_}: translations read as what they were {accuracy(there, of_y)}; "
                f"cycle {lost:.4f} a pixel, {experiment.seconds:.0f} s",
                flush=True,
            )

        test = accuracy(*experiment.model.data("test", 2000))
        print(f"MNIST's own test images {test}; {len(y)} digits as they are {accuracy(y, of_y)}", flush=True)
        experiment.run(report)
        with torch.no_grad():
            there = right("support vectors", experiment.engine.model.translate(y), of_y)
        by_digit = tuple(there[of_y.numpy() == digit].mean().item() for digit in range(10))
        return Read(right("support vectors", y, of_y).mean().item(), there.mean().item(), by_digit)


def main() -> None:
    """Train, and print the accuracy at every report; at the end, of support vectors, for each digit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", metavar="PATH=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = read(options.set)
    print("by digit: " + ", ".join(f"{digit} {share:.2f}" for digit, share in enumerate(found.by_digit)), flush=True)


if __name__ == "__main__":
    main()
