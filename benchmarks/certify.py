"""pythae's models scored by pythae and by us: `python -m benchmarks.certify`; docs/likelihoods.md reads it.

pythae trains a VAE, an IWAE and VAEs whose posterior a flow makes on binarised digits, with its own trainer and
networks. Its `get_nll` and `avb_service.certify` then score the same test data. pythae is found where `make
opponents` has put it; everything else is of this environment.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import avb_service
from avb_service.data.datasets import DataConfig, load
from avb_service.data.splits import Split
from avb_service.data.stream import fixed
from avb_service.likelihood.pythae import from_pythae
from avb_service.records import mean_and_stderr
from avb_service.seeding import seeded

OPPONENTS = Path(sys.prefix) / "opponents" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
MODELS = {"VAE": "VAEConfig", "IWAE": "IWAEConfig", "VAE_IAF": "VAE_IAF_Config", "VAE_LinNF": "VAE_LinNF_Config"}
COLUMNS = ("model", "samples", "get_nll", "CPU s", "ais", "own error", "ais above", "certificate", "CPU s")


def binarised(name: str, train: int, test: int) -> tuple[Tensor, Tensor]:
    """So many training and test data [n, 1, H, W], each pixel drawn once with its grey value as probability."""
    config = DataConfig.parse({"name": name, "binarisation": "dynamic"})
    dataset = load(config)

    def some(split: Split, limit: int) -> Tensor:
        return fixed(split, dataset.spec, config.binarisation, 0, torch.device("cpu"), torch.float32, limit)[0]

    return some(dataset.train, train), some(dataset.test, test)


def trained(name: str, x: Tensor, latent: int, epochs: int) -> Any:
    """One of pythae's models after its trainer."""
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    with seeded("networks"), tempfile.TemporaryDirectory() as folder:
        config = getattr(models, MODELS[name])(
            input_dim=tuple(x.shape[1:]), latent_dim=latent, reconstruction_loss="bce"
        )
        model = getattr(models, name)(config)
        training = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, per_device_train_batch_size=64, learning_rate=1e-3, no_cuda=True
        )
        BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=training).train()
    return model.eval()


def by_pythae(model: Any, x: Tensor, samples: int) -> np.ndarray:
    """Log p(x) of each datum as `get_nll` has it, [n]; it gives a mean, so it is asked for each datum by itself."""
    with seeded("get_nll", samples), torch.no_grad():
        return np.array([model.get_nll(each[None], n_samples=samples, batch_size=100) for each in x])


def main() -> None:
    """Train, score twice, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--train", type=int, default=10_000, help="training data at most")
    parser.add_argument("--test", type=int, default=100, help="test data")
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1000], help="of get_nll")
    options = parser.parse_args()
    sys.path.append(str(OPPONENTS / "site-packages"))  # behind ours: nothing but pythae is taken from there
    try:
        import pythae  # noqa: F401
    except ModuleNotFoundError as error:
        parser.error(f"{error}: make opponents")
    logging.disable(logging.INFO)  # pythae's
    warnings.simplefilter("ignore")
    train, test = binarised(options.data, options.train, options.test)
    table = Table(*COLUMNS, box=box.MARKDOWN)
    for name in options.models or MODELS:
        model = trained(name, train, options.latent, options.epochs)
        start = time.process_time()
        found = avb_service.certify(*from_pythae(model), x=test, name=name, data=options.data)
        seconds, ais = time.process_time() - start, found.record.by("ais")
        print(found, file=sys.stderr, flush=True)
        for samples in options.samples:
            start = time.process_time()
            theirs = by_pythae(model, test, samples)
            taken = time.process_time() - start
            (value, error), (above, chance) = map(mean_and_stderr, (theirs, ais.per_datum - theirs))
            table.add_row(
                name, f"{samples}", f"{value:.2f} ± {error:.2f}", f"{taken:.0f}", f"{ais.value:.2f} ± {ais.stderr:.2f}",
                f"{ais.own_error:.3f}", f"{above:+.3f} ± {chance:.3f}", found.certificate.verdict, f"{seconds:.0f}",
            )  # fmt: skip
    console = Console(width=160)
    console.print(" ".join(["python -m benchmarks.certify", *sys.argv[1:]]))
    console.print(table)


if __name__ == "__main__":
    main()
