"""What annealing costs against its bare matrix products: `python -m benchmarks.annealing`.

A decoder 8-300-300-784 on one thread; both are measured in turn, in CPU time. Where pythae is installed, its
`get_nll` scores the same weights on the same data, and stands beside ours with nats and seconds. With `--device cuda`
the same on a GPU, in time on the wall.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from avb_service.algorithm import DataSpec
from avb_service.algorithms.vae import VAE, VAEConfig
from avb_service.data.datasets import DataConfig, load
from avb_service.data.stream import fixed
from avb_service.errors import UserError
from avb_service.likelihood import Evaluator, LikelihoodConfig
from avb_service.likelihood.anneal import Path, anneal, temperatures
from avb_service.networks.trunks import MLPConfig
from avb_service.training.config import TrainingConfig
from avb_service.training.loop import Engine

CHAINS, TEMPERATURES, LEAPFROG, REPEATS, ROUNDS = 8, 100, 2, 5, 2000


def clock(device: str) -> float:
    """Seconds: of this one thread, so that other processes do not matter much; on a GPU, until it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str) -> float:
    """How long something takes."""
    start = clock(device)
    work()
    return clock(device) - start


def matrix_products(model: VAE, x: Tensor) -> Callable[[], None]:
    """The products of as many gradients: through the decoder and back to its input."""
    weights = [layer.weight.detach() for layer in model.decoder.modules() if isinstance(layer, nn.Linear)]

    def work() -> None:
        for _ in range(TEMPERATURES * LEAPFROG):
            rows = x.new_ones(CHAINS * len(x), weights[0].shape[1])
            for weight in weights:
                rows = rows @ weight.mT
            for weight in reversed(weights):
                rows = rows @ weight

    return work


def annealing(model: VAE, x: Tensor) -> Callable[[], object]:
    """The chains of `ais`, from q's own Gaussian, with frozen steps."""
    path = Path(model, x, model.posterior(x))
    betas, steps = temperatures(TEMPERATURES, "linear", x), x.new_full((TEMPERATURES, len(x)), 0.1)
    return lambda: anneal(path, path.draw(CHAINS), betas, steps, LEAPFROG)


def data(held_out: int, device: str) -> tuple[Tensor, Tensor, DataSpec]:
    """MNIST where it lies, else noise; for the cost it is all the same."""
    try:
        dataset = load(DataConfig(name="mnist", binarisation="static", validation=5000, download=False))
    except UserError:
        x = (torch.rand(2000, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2).float().to(device)
        return x, x[:held_out], DataSpec((1, 28, 28), "binary", 1, x.mean(0).cpu())
    train, _ = fixed(dataset.train, dataset.spec, "static", 0, device, limit=20_000)
    return train, fixed(dataset.test, dataset.spec, "static", 0, device, limit=held_out)[0], dataset.spec


def train(x: Tensor, spec: DataSpec) -> VAE:
    """A VAE, a minute long."""
    torch.manual_seed(0)
    trunk = MLPConfig(hidden=(300, 300))
    model = VAE(VAEConfig(latent_dim=8, encoder=trunk, decoder=trunk), spec).to(x.device)

    def batch(index: int, worker: int) -> tuple[Tensor, None]:
        start = index * 128 % (len(x) - 128)
        return x[start : start + 128], None

    Engine(model, batch, TrainingConfig(rounds=ROUNDS, report_every=ROUNDS)).run(lambda report: None)
    return model


def pythae_nll(model: VAE, x: Tensor, samples: int) -> tuple[float, float]:
    """Nats per datum and seconds of pythae's importance sampling with the same weights.

    Raises:
        ImportError: pythae is not installed.
    """
    import pythae.models as models
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, inputs: Tensor) -> Any:  # noqa: ANN401
            q = model.posterior(inputs).base_dist
            return ModelOutput(embedding=q.loc, log_covariance=2 * q.scale.log())

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> Any:  # noqa: ANN401
            return ModelOutput(reconstruction=model.likelihood(z).mean.clamp(1e-6, 1 - 1e-6))

    config = models.VAEConfig(input_dim=tuple(x.shape[1:]), latent_dim=8, reconstruction_loss="bce")
    theirs = models.VAE(config, Encoder(), Decoder()).eval()
    start = time.process_time()
    with torch.no_grad():
        nll = theirs.get_nll(x, n_samples=samples, batch_size=min(samples, 500))
    return (nll if nll < 0 else -nll), time.process_time() - start


def main() -> None:
    """Measure in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=int, default=50, help="in a block")
    options = parser.parse_args()
    device: str = options.device
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    x_train, x, spec = data(max(100, options.data), device)
    model = train(x_train, spec)
    with torch.no_grad():
        ours, bare = annealing(model, x[: options.data]), matrix_products(model, x[: options.data])
        ours(), bare()
        pairs = [(seconds(ours, device), seconds(bare, device)) for _ in range(REPEATS)]
    gradients = TEMPERATURES * LEAPFROG * CHAINS * options.data
    flops = 4 * sum(w.numel() for w in model.decoder.parameters() if w.dim() == 2) * gradients
    console = Console(width=110)
    where = "one thread" if device == "cpu" else torch.cuda.get_device_name()
    title = f"AIS of a decoder 8-300-300-784, {options.data} data x {CHAINS} chains, {where}"
    table = Table("", "per second", "share of the time", title=title)
    table.add_row("matrix products", f"{flops / median(b for _, b in pairs) / 1e9:.0f} GFLOP", "")
    share = f"{median(b / a for a, b in pairs):.0%} are matrix products"
    table.add_row("annealing", f"{gradients / median(a for a, _ in pairs) / 1e3:.1f} k gradients", share)
    console.print(table)

    x = x[:100]
    table = Table("", "nats per datum", "ms a datum", title=f"log p(x) of {len(x)} data, VAE of {ROUNDS} rounds")
    evaluator = Evaluator(model, LikelihoodConfig())
    for name in ("iwae", "iwae_mixture", "ais"):
        start = clock(device)
        found = evaluator.score(name, x)
        table.add_row(found.name, f"{found.value:.3f}", f"{(clock(device) - start) / len(x) * 1e3:.0f}")
    try:
        for samples in (200, 1000, 5000):
            nats, took = pythae_nll(model, x, samples)
            table.add_row(f"pythae get_nll, {samples} samples", f"{nats:.3f}", f"{took / len(x) * 1e3:.0f}")
    except ImportError:
        table.add_row("pythae", "not installed:", "pip install pythae")
    console.print(table)


if __name__ == "__main__":
    main()
