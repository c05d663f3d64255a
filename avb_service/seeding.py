"""Seeds as a pure function of what they are for.

Floor 0. Nothing in training draws from a generator whose state has a history: every stream of random numbers is
seeded from (run seed, purpose, round, turn, worker, ...), so that a resumed run, or one on another number of
workers, draws the very same numbers.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded from the parts."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def reseed(device: torch.device, seed: int) -> None:
    """Seed what `rsample()` and `randn` draw from on a device; `torch.manual_seed` is slow."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Run a block under global generators seeded from the parts; the state before is restored afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(*parts))
        yield


@contextmanager
def reproducible(matmul_precision: str) -> Iterator[None]:
    """Have GPUs compute the same to the bit each time for a block: some of their fastest algorithms do not.

    Args:
        matmul_precision: of products of float32 matrices, as `torch.set_float32_matmul_precision` takes it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filling: Any = torch.utils.deterministic
    before = torch.get_float32_matmul_precision(), filling.fill_uninitialized_memory
    determined = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_float32_matmul_precision(matmul_precision)
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(determined[0], warn_only=determined[1])
        filling.fill_uninitialized_memory = before[1]


def permutation(n: int, *parts: int | str) -> Tensor:
    """A permutation of range(n), [n] on the CPU, the same on every machine."""
    return torch.randperm(n, generator=generator("cpu", *parts))


@contextmanager
def one_thread() -> Iterator[None]:
    """Work that has the same bits in every process, since threads of torch's change the order of a gradient's sums.

    On small tensors it is also faster; and where others use the cores, threads wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
