"""Whether translation keeps what a digit is, though nothing asks for it: `python -m benchmarks.translated_digits`.

CycleGAN learns to make MNIST's digits of scikit-learn's, from images alone. Then two classifiers that were trained on
MNIST's labelled images read the translations of held-out digits, and are scored against the labels of the originals: a
convolutional network, and random trees, to which one pixel is as good as another.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avb_service.experiment import Experiment
from avb_service.networks.trunks import ConvConfig
from avb_service.seeding import seeded
from avb_service.settings import read_config

TAUGHT = 10_000  # labelled MNIST images
STEPS = 1000


def taught(x: Tensor, labels: Tensor) -> nn.Module:
    """A convolutional network that was shown images [N, C, H, W] and labels [N]: to logits [B, 10]."""
    with seeded("reader"):
        features, width = ConvConfig(channels=(32, 64)).features((x.shape[1], x.shape[2], x.shape[3]))
        network = nn.Sequential(features, nn.Dropout(), nn.Linear(width, 10))
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(STEPS):
            chosen = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            cross_entropy(network(x[chosen]), labels[chosen]).backward()
            optimizer.step()
    return network.eval()


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
        network = taught(x, labels)
        trees = ExtraTreesClassifier(100, random_state=0).fit(x.flatten(1).numpy(), labels)
        y, of_y = experiment.other("test")

        def accuracy(images: Tensor, truth: Tensor) -> str:
            with torch.no_grad():
                by_network = (network(images).argmax(-1) == truth).float().mean().item()
            by_trees = (trees.predict(images.flatten(1).numpy()) == truth.numpy()).mean()
            return f"{by_network:.3f} (trees {by_trees:.3f})"

        def report(round_: int, metrics: object) -> None:
            model = experiment.engine.model
            with torch.no_grad():
                there = model.translate(y)
                lost = (model.translate_back(there) - y).abs().mean()
            print(f"round {round_}: translations read as what they were {accuracy(there, of_y)}, "
                  f"cycle {lost:.4f} a pixel, {experiment.seconds:.0f} s", flush=True)  # fmt: skip
            if options.figures is not None:
                from avb_service.figures import to_png

                options.figures.mkdir(parents=True, exist_ok=True)
                for name, figure in experiment.draw().items():
                    (options.figures / f"{name}.png").write_bytes(to_png(figure))

        test = accuracy(*experiment.data("test", 2000))
        print(f"MNIST's own test images {test}, {len(y)} digits as they are {accuracy(y, of_y)}", flush=True)
        experiment.fit(report)


if __name__ == "__main__":
    main()
