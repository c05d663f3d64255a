"""How turns are played on the machine at hand: written down as a program or not, and how layers multiply.

Floor 4. A run keeps its manner once it has begun, with its state: the last digits depend on it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from avb_service.training.precision import has_bfloat16

AUTO = "auto"
WORTH_COMPILING = 300.0  # seconds of training that are left; the compiler takes about 30, and saves a third or more
FASTER = 0.95  # of the seconds: less is noise


class Manner(NamedTuple):
    """What `training.capture` and `training.precision` say, or what was found to be fastest.

    Attributes:
        capture: off, graph or compile; auto until it has been tried.
        precision: float32 or bf16; auto until it has been tried.
    """

    capture: str
    precision: str

    def obstacles(self, device: torch.device) -> Iterator[str]:
        """What the device lacks for it, and what to do."""
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if self.capture == "graph" and device.type != "cuda":
            yield (
                f"training.capture: graph needs a GPU, and the model is on the {device.type}; set "
                "scaling.gpus_per_worker, or training.capture to auto, compile or off"
            )
        if self.capture == "compile" and device.type == "cpu" and shutil.which(compiler) is None:
            yield (
                f"training.capture: compile needs a C++ compiler, and {compiler} is not there; install it, name "
                "another in CXX, or set training.capture=off"
            )
        if self.precision == "bf16" and not has_bfloat16(device):
            yield (
                f"training.precision: this {device.type} has no instructions for bfloat16 and would emulate them, "
                "slower than float32; set training.precision to float32 or auto"
            )

    def choices(self, device: torch.device) -> "Iterator[Manner]":
        """Every manner that it leaves open and the device is able to, as the method has written it first."""
        captures = ["off", "graph", "compile"] if self.capture == AUTO else [self.capture]
        precisions = ["float32", "bf16"] if self.precision == AUTO else [self.precision]
        if device.type == "cuda" and self.capture == AUTO:
            captures.remove("compile")
        for capture in captures:
            for precision in precisions:
                if not [*(manner := Manner(capture, precision)).obstacles(device)]:
                    yield manner


def fastest(asked: Manner, device: torch.device, rounds: int, seconds: Callable[[Manner], float]) -> Manner:
    """Try the manners that are left open, and take the fastest.

    Args:
        asked: what the settings say.
        device: where is trained.
        rounds: that are left to play.
        seconds: plays some rounds in a manner, and says how long one takes; the same answer on all workers.
    """
    best, least = None, 0.0
    for manner in asked.choices(device):
        if (
            best
            and asked.capture == AUTO
            and manner.capture == "compile"
            and (rounds * least < WORTH_COMPILING or manner.precision != best.precision)
        ):
            continue
        taken = seconds(manner)
        if best is None or taken < FASTER * least:
            best, least = manner, taken
    assert best is not None, "float32, played as it is written, has no obstacles"
    return best
