"""How fast training is, and beside what: `python -m benchmarks.training [NETWORK ...]`; docs/performance.md reads it.

Each of the digits and MNIST presets, a VAE 784-512-8 and AVB with convolutions as large as in 2017 are trained by the
engine as the methods have written it (`off`) and compiled; beside them, where there is one, a plain torch loop of the
same networks, pythae, and an epoch in one program of JAX (both after `make opponents`), the products of a round alone,
and, with `--before COMMIT`, the engine of that commit. Each is a process of one thread; they take turns of a second,
in CPU time, so that a machine that is slow for a while is slow for all of them. With `--device cuda` the same on a GPU,
in time on the wall, with CUDA graphs and without other libraries. MNIST is noise of its shape, on which speed depends.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from avb_service.settings import PRESETS

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "opponents"
OPPONENTS = Path(sys.prefix) / "opponents" / "bin" / "python"
OURS = ("off", "compile", "graph")
CONTESTANTS = (*OURS, "before", "plain", "pythae", "jax", "products")
WIDE = "VAE 784-512-8"
CONVOLUTIONS = "{name: conv, channels: [16, 32, 64], hidden: 300, activation: elu}"


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        preset: it starts from.
        settings: that differ.
        own: settings that an earlier engine does not know.
        data: what is trained on, of `write_data`.
        mlp: latent and hidden widths, for those who have the same Gaussian VAE.
        opponents: of other libraries, by name: script and arguments.
    """

    preset: str
    settings: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    data: str = "digits"
    mlp: tuple[str, ...] = ()
    opponents: dict[str, tuple[str, ...]] = field(default_factory=dict)


def networks() -> dict[str, Network]:
    """By name: all presets of digits and MNIST, and a few more."""
    found = {
        name: Network(name, data="grey" if "mnist" in name else "digits")
        for name in PRESETS.own
        if name.endswith(("digits", "mnist"))
    }
    wide = ("data.binarisation=none", "algorithm.encoder.hidden=[512]", "algorithm.decoder.hidden=[512]")
    for name, preset, settings, data, *mlp in (
        ("vae_digits", "vae_digits", (), "digits", "8", "128", "128"),
        ("vae_mnist", "vae_mnist", (), "grey", "8", "300", "300"),
        (WIDE, "vae_mnist", wide, "binary", "8", "512"),
    ):
        found[name] = Network(preset, settings, (), data, tuple(mlp), {"jax": ("jax_vae.py", data, *mlp)})
    found[WIDE].opponents["pythae"] = ("pythae_vae.py", "cpu", "binary", "8")
    found[f"{WIDE}, bf16"] = replace(found[WIDE], own=("training.precision=bf16",))
    found["avb_ac_digits"].opponents["jax"] = ("jax_avb_ac.py", "digits")
    trunks = ("algorithm.encoder.trunk", "algorithm.decoder", "algorithm.discriminator.trunk")
    layers = tuple(f"{path}={CONVOLUTIONS}" for path in trunks)
    noise = (
        "algorithm.latent_dim=32",
        "algorithm.encoder.bases=32",
        "algorithm.encoder.noise_dim=64",
        "algorithm.encoder.hidden=[128, 128, 128]",
        "algorithm.moment_draws=128",
    )
    found["avb_mnist, convolutions"] = Network("avb_mnist", layers, data="grey")
    found["avb_ac_mnist, convolutions"] = Network("avb_ac_mnist", (*layers, *noise), data="grey")
    return found


def write_data(folder: Path) -> None:
    """Digits as they are, and noise of MNIST's shape: 8-bit pixels, and binary ones."""
    draw = np.random.default_rng(0).integers
    np.save(folder / "digits.npy", load_digits().images[:, None].astype(np.uint8))
    np.save(folder / "grey.npy", draw(0, 256, (20_000, 1, 28, 28), dtype=np.uint8))
    np.save(folder / "binary.npy", draw(0, 2, (20_000, 1, 28, 28), dtype=np.uint8))


class Contestant:
    """A process that plays when it is asked to.

    Args:
        command: of Python, its interpreter first.
        tree: whose avb_service is used.
    """

    def __init__(self, command: Sequence[str], tree: Path) -> None:
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        self._said: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **threads, "PYTHONPATH": str(tree)},
        )
        self.first = self._answer()["seconds"]
        self.speeds: list[float] = []
        self.mib = 0.0

    def play(self, seconds: float) -> None:
        """A lap."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        answer = self._answer()
        self.speeds.append(answer["rounds"] / answer["seconds"])
        self.mib = answer["mib"]

    def end(self) -> None:
        """Let the process go."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._said.seek(0)
        raise RuntimeError(self._said.read().decode().strip().splitlines()[-1:])


def commands(network: Network, device: str, folder: Path, before: Path | None) -> Iterator[tuple[str, list[str], Path]]:
    """Who trains a network: name, command, tree of avb_service."""
    settings, data = list(network.settings), f"{folder / network.data}.npy"
    if network.data != "digits":
        settings += ["data.name=file", f"data.path={data}"]

    def ours(script: str, *more: str) -> list[str]:
        return [sys.executable, str(HERE / script), device, network.preset, *settings, *more]

    for capture in OURS if device == "cuda" else OURS[:2]:
        yield capture, ours("engine.py", *network.own, f"training.capture={capture}"), ROOT
    if before is not None:
        yield "before", ours("engine.py"), before
    if network.mlp:
        yield "plain", [sys.executable, str(HERE / "plain_vae.py"), device, data, *network.mlp], ROOT
    if device == "cpu" and OPPONENTS.exists():
        for name, (script, *arguments) in network.opponents.items():
            there = [data if argument == network.data else argument for argument in arguments]
            yield name, [str(OPPONENTS), str(HERE / script), *there], ROOT
    yield "products", ours("products.py", *network.own), ROOT


def measure(contestants: Iterator[tuple[str, list[str], Path]], laps: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Let them take turns; gives for each its rounds a second by lap, seconds to the first rounds, and memory."""
    playing: dict[str, Contestant] = {}
    for name, command, tree in contestants:
        try:
            playing[name] = Contestant(command, tree)
        except RuntimeError as error:
            print(f"{name} cannot: {error}", file=sys.stderr)
    for _ in range(1 + laps):
        for contestant in playing.values():
            contestant.play(seconds)
    for contestant in playing.values():
        contestant.end()
    return {
        name: {"rounds_per_second": c.speeds[1:], "seconds_to_first": c.first, "peak_mib": c.mib}
        for name, c in playing.items()
    }


def ratio(found: dict[str, Any], ours: str, other: str) -> float | None:
    """How many times as fast one is as another: the median over laps; none where one is missing."""
    if ours not in found or other not in found:
        return None
    pairs = zip(found[ours]["rounds_per_second"], found[other]["rounds_per_second"], strict=True)
    return median(a / b for a, b in pairs)


def best(found: dict[str, Any]) -> str:
    """The faster way to train here."""
    return max((name for name in OURS if name in found), key=lambda name: speed(found, name))


def speed(found: dict[str, Any], name: str) -> float:
    """Rounds a second."""
    return median(found[name]["rounds_per_second"])


MARKS: tuple[tuple[str, str, str, float], ...] = (
    (WIDE, "off", "plain", 0.97),
    (WIDE, "best", "pythae", 1.4),
    (WIDE, "best", "jax", 1.0),
    (f"{WIDE}, bf16", "best", "jax", 1.3),
    ("avb_ac_digits", "compile", "before", 3.0),
    ("avb_ac_digits", "compile", "jax", 0.9),
    ("avb_digits", "best", "before", 3.0),
    ("vae_digits", "best", "before", 2.5),
    ("avb_mnist", "best", "products", 0.65),
    ("avb_ac_mnist", "best", "products", 0.65),
)


def marks(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What was aimed at, and whether it is reached."""
    named = {(network, other) for network, _, other, _ in MARKS}
    others = tuple((n, "best", "before", 1.5) for n in results if n.endswith("digits") and (n, "before") not in named)
    for network, ours, other, aim in (*MARKS, *others):
        found = results.get(network, {})
        times = ratio(found, best(found) if ours == "best" and found else ours, other)
        if times is not None:
            yield f"{'reached' if times >= aim else 'MISSED ':7} {network}: {times:.2f} of {other}, aim {aim}"


def tables(results: dict[str, dict[str, Any]]) -> Iterator[Table]:
    """Speeds and ratios; memory and start."""

    def table(what: str, cell: Callable[[dict[str, Any], str], str]) -> Table:
        made = Table("network", *CONTESTANTS, box=box.MARKDOWN, title=what)
        for network, found in results.items():
            made.add_row(network, *(cell(found, name) if name in found else "" for name in CONTESTANTS))
        return made

    def speeds(found: dict[str, Any], name: str) -> str:
        shown = f"{speed(found, name):.4g}"
        return shown if name == "off" else f"{shown} ({ratio(found, best(found), name):.2f})"

    def memory(found: dict[str, Any], name: str) -> str:
        return f"{found[name]['peak_mib']:.0f}, {found[name]['seconds_to_first']:.0f}"

    yield table("rounds/s (how many times as fast the fastest of ours is)", speeds)
    yield table("peak MiB, seconds until the first rounds were played", memory)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of another commit, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def processor(device: str) -> str:
    """What computes."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return " ".join([name, *(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)])


def main() -> None:
    """Measure, print tables and marks, and write it all down where asked to."""
    known = networks()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--before", metavar="COMMIT", help="beside the engine of this commit")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a lap")
    parser.add_argument("--json", type=Path, help="write every lap here")
    options = parser.parse_args()
    if unknown := [name for name in options.networks if name not in known]:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(known)}")
    about = f"{processor(options.device)}; {date.today()}; torch {torch.__version__}"
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_data(data)
        before = stack.enter_context(checked_out(options.before)) if options.before else None
        for name in options.networks or known:
            contestants = commands(known[name], options.device, data, before)
            results[name] = measure(contestants, options.laps, options.seconds)
            print(name, {who: f"{speed(results[name], who):.4g}" for who in results[name]}, file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps({"about": about, "networks": results}, indent=1))
    console = Console(width=160)
    console.print(f"{about}\n{' '.join(['python -m benchmarks.training', *sys.argv[1:]])}")
    for table in tables(results):
        console.print(table)
    for line in marks(results):
        console.print(line)


if __name__ == "__main__":
    main()
