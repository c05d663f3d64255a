"""Whether InfoGAN's categories are the digits, which it never saw named: `python -m benchmarks.infogan_codes`.

Test data are put in the category that Q(c|x) finds most probable, and categories matched with classes one to one so
that most data agree (Hungarian method); beside it, each category by its commonest class.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from avb_service.algorithm import CodedModel
from avb_service.fitting import Fit
from avb_service.settings import read_config


@dataclass(frozen=True)
class Agreement:
    """Agreement of categories with classes.

    Attributes:
        matched: fraction of data whose category is matched with their class, one to one.
        majority: fraction of data that are of the commonest class in their category.
    """

    matched: float
    majority: float


def agreement(categories: Tensor, labels: Tensor) -> Agreement:
    """How well categories [N] agree with labels [N]."""
    table = np.zeros((int(categories.max()) + 1, int(labels.max()) + 1))
    np.add.at(table, (categories.numpy(force=True), labels.numpy(force=True)), 1)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return Agreement(matched / len(labels), table.max(1).sum() / len(labels))


def read_off(model: CodedModel, x: Tensor) -> Tensor:
    """The most probable category of data [N, ...], [N]."""
    with torch.no_grad():
        return model.recognise(x).parts[0].probs.argmax(-1)


def codes(preset: str, assignments: list[str] | None = None, device: str = "cpu") -> Agreement:
    """Train, and print the agreement on test data at every report; the last of them.

    Args:
        preset: of a method that has codes.
        assignments: what is set on top, as `--set` has it.
        device: where to train.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = Fit(read_config(preset, assignments), Path(folder), device=device)
        x, labels = experiment.model.data("test")

        def report(round_: int, metrics: object) -> None:
            found.append(agreement(read_off(experiment.engine.model, x), labels))
            information = experiment.history["train/model/information_categorical"][-1][1]
            print(
                f"round {round_}: matched {found[-1].matched:.3f}, majority {found[-1].majority:.3f}, "
                f"information {information:.2f} nats, {experiment.seconds:.0f} s",
                flush=True,
            )

        experiment.run(report)
    return found[-1]


def main() -> None:
    """Train, and print the agreement at every report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="infogan_mnist")
    parser.add_argument("--set", action="append", metavar="PATH=VALUE")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codes(options.preset, options.set, options.device)


if __name__ == "__main__":
    main()
