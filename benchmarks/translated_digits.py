"""Whether translation keeps what a digit is, though nothing asks for it: `python -m benchmarks.translated_digits`.

CycleGAN learns to make MNIST's digits of scikit-learn's, from images alone. Then two classifiers that were trained on
MNIST's labelled images read the translations of held-out digits, and are scored against the labels of the originals:
support vectors, to which an image is a whole, and random trees, to which one pixel is as good as another.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.svm import SVC
from torch import Tensor

from avb_service.experiment import Experiment
from avb_service.settings import read_config

TAUGHT = 10_000  # labelled MNIST images


def main() -> None:
    """Train, and print the accuracy at every report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", metavar="PATH=VALUE")
    parser.add_argument("--figures", type=Path, help="draw to this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(read_config("cyclegan_digits_mnist", options.set), Path(folder))
        x, labels = experiment.data("train", TAUGHT)
        readers = {"support vectors": SVC(C=10.0), "trees": ExtraTreesClassifier(100, random_state=0)}
        for reader in readers.values():
            reader.fit(x.flatten(1).numpy(), labels)
        y, of_y = experiment.other("test")

        def accuracy(images: Tensor, truth: Tensor) -> str:
            read = {name: reader.predict(images.flatten(1).numpy()) for name, reader in readers.items()}
            return ", ".join(f"{np.mean(said == truth.numpy()):.3f} ({name})" for name, said in read.items())

        def report(round_: int, metrics: object) -> None:
            model = experiment.engine.model
            with torch.no_grad():
                there = model.translate(y)
                lost = (model.translate_back(there) - y).abs().mean()
            print(f"round {round_}: translations read as what they were {accuracy(there, of_y)}; "
                  f"cycle {lost:.4f} a pixel, {experiment.seconds:.0f} s", flush=True)  # fmt: skip
            if options.figures is not None:
                from avb_service.figures import to_png

                options.figures.mkdir(parents=True, exist_ok=True)
                for name, figure in experiment.draw().items():
                    (options.figures / f"{name}.png").write_bytes(to_png(figure))

        test = accuracy(*experiment.data("test", 2000))
        print(f"MNIST's own test images {test}; {len(y)} digits as they are {accuracy(y, of_y)}", flush=True)
        experiment.fit(report)


if __name__ == "__main__":
    main()
