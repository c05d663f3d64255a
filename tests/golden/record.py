"""Golden curves: what training computes in its first rounds. `python -m tests.golden.record [WORD ...]` writes them.

In float64 on one thread, so that a change of the arithmetic shows where one of the rounding does not. There are three
kinds: every preset that trains on bundled data, every method with two logical workers, and some methods from a
checkpoint of the first release on. A change that means to alter them says which and why.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from avb_service.algorithms import METHODS
from avb_service.fitting import Fit
from avb_service.settings import PRESETS, ExperimentConfig, read_config
from tests.small import small_config

FOLDER = Path(__file__).parent
CURVES, CHECKPOINTS = FOLDER / "curves", FOLDER / "checkpoints"
ROUNDS, SAVED = 5, 2
KEPT = ("aae", "avb_ac", "bernoulli_vae", "vq_vae")  # two optimizers of one network, two players, buffers of two kinds
ELSEWHERE = {"mnist", "fashion_mnist", "kmnist", "cifar10", "celeba"}  # data that have to be brought
Curve = dict[str, Any]


def presets() -> list[str]:
    """Those whose data come with the package."""
    data = {name: read_config(name).data for name in PRESETS.own}
    return [name for name, each in data.items() if not ELSEWHERE & {each.name, each.other and each.other.name}]


def of_preset(name: str) -> ExperimentConfig:
    """A preset's first rounds, in full precision."""
    return read_config(name, [f"training.rounds={ROUNDS}", "training.dtype=float64", "training.report_every=1"])


def of_method(name: str) -> ExperimentConfig:
    """A small model whose batches are cut in two."""
    return small_config(name, {"training.rounds": ROUNDS, "training.dtype": "float64", "training.report_every": 1})


def curve(experiment: Fit) -> Curve:
    """The loss terms of each round that is left, and what became of the parameters."""
    terms: list[dict[str, float]] = []
    experiment.engine.run(lambda report: terms.append(dict(report.terms)))
    state = {name: t.detach().double() for name, t in experiment.engine.algorithm.state_dict().items()}
    return {"terms": terms, "state": {name: [t.sum().item(), t.square().sum().item()] for name, t in state.items()}}


def resumed(method: str, folder: Path) -> Curve:
    """A curve that goes on from the checkpoint of the first release."""
    shutil.copytree(CHECKPOINTS / method, folder / method)
    experiment = Fit(of_method(method), folder / method)
    if not experiment.resume():
        raise FileNotFoundError(f"no checkpoint of {method} in {CHECKPOINTS}")
    return curve(experiment)


def curves(folder: Path) -> Iterator[tuple[str, Curve]]:
    """All of them, by name."""
    for name in presets():
        yield f"preset-{name}", curve(Fit(of_preset(name), folder / "none"))
    for name in sorted(METHODS.own):
        yield f"method-{name}", curve(Fit(of_method(name), folder / "none"))
    for name in KEPT:
        yield f"resumed-{name}", resumed(name, folder)


def save_checkpoints(folder: Path) -> None:
    """Checkpoints after some rounds. Those that are kept here are the first release's: do not renew them."""
    for name in KEPT:
        experiment = Fit(of_method(name), folder / name)
        experiment.engine.config = experiment.engine.config.model_copy(update={"rounds": SAVED})
        experiment.engine.run(lambda report: None)
        experiment.save()


def main() -> None:
    """Write the curves whose names hold one of the given words; all where none is given."""
    torch.set_num_threads(1)
    if not CHECKPOINTS.exists():
        save_checkpoints(CHECKPOINTS)
    CURVES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, found in curves(Path(folder)):
            if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
                (CURVES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(name)


if __name__ == "__main__":
    main()
