"""How a player's parameters are stepped: optimizer, learning rate over the rounds, clipping.

Floor 1.
"""

import inspect
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from avb_service.config import Config
from avb_service.faults import one_of

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# Those that take one step from dense gradients of any shape.
_UNFIT = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.Muon, torch.optim.SparseAdam)
OPTIMIZERS = tuple(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind not in _UNFIT
)
FLAVOURS = {"fused", "foreach", "capturable"}  # ways in which torch computes the same step


class ScheduleConfig(Config):
    """The learning rate over a run: a warm-up, a plateau, then a decay.

    Attributes:
        decay: its shape, down to 0 in the last round.
        decay_from: share of the rounds after which it begins.
        warmup: rounds at the beginning over which the rate rises to its full height.
    """

    decay: Literal["none", "linear", "cosine"] = "none"
    decay_from: Fraction = 0.6
    warmup: Annotated[int, Field(ge=0)] = 0

    def factor(self, round_: int, rounds: int) -> float:
        """What the learning rate is multiplied with in a round; a pure function, so resuming needs no state."""
        warm = min(1.0, (round_ + 1) / self.warmup) if self.warmup else 1.0
        start = self.decay_from * rounds
        if self.decay == "none" or round_ < start:
            return warm
        left = 1.0 - (round_ - start) / max(rounds - start, 1.0)
        return warm * (left if self.decay == "linear" else 0.5 - 0.5 * float(torch.cos(torch.tensor(torch.pi * left))))


class TurnConfig(Config):
    """How a player plays: how often in a round, and with which optimizer of `torch.optim`.

    Attributes:
        steps: optimizer steps in a round, each on a fresh batch.
        lr: the learning rate, where the schedule is at its height.
        optimizer: its name in `torch.optim`.
        betas: of optimizers that have them; torch's own where not given.
        options: what else the optimizer takes, by torch's names.
        schedule: of the learning rate.
        clip_norm: the norm that gradients of all the player's networks together are clipped to; none by default.
    """

    steps: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: str = "Adam"
    betas: tuple[Beta, Beta] | None = None
    options: dict[str, bool | int | float] = {}
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = None

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, OPTIMIZERS)

    @model_validator(mode="after")
    def _accepted(self) -> "TurnConfig":
        ours = {"params", "lr", "betas", "maximize"}  # set by other fields, or against the meaning of a loss
        accepted = inspect.signature(getattr(torch.optim, self.optimizer)).parameters
        if unknown := self.options.keys() - (accepted.keys() - ours):
            raise ValueError(
                f"options of torch.optim.{self.optimizer}, not {', '.join(sorted(unknown))}; it has "
                f"{', '.join(name for name in accepted if name not in ours)}"
            )
        if self.betas is not None and "betas" not in accepted:
            raise ValueError(f"an optimizer with betas, which torch.optim.{self.optimizer} is not; leave betas out")
        for name, value in self.options.items():
            if isinstance(value, bool) and type(accepted[name].default) in (int, float):
                raise ValueError(f"{name} as a number, given {value}")
        if not self.options:
            return self  # nothing to try; and torch takes a second to make the first optimizer of a process
        tried = nn.Parameter(torch.zeros(1))
        tried.grad = torch.zeros(1)
        try:
            self.build([tried]).step()
        except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"what torch.optim.{self.optimizer} takes; it says: {error}") from error
        return self

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over the parameters; fused where torch has a fused version for their device."""
        optimizer, parameters = getattr(torch.optim, self.optimizer), list(parameters)
        options: dict[str, Any] = {"lr": self.lr, **self.options}
        if self.betas is not None:
            options["betas"] = self.betas
        lacking = optimizer is torch.optim.Adagrad and any(p.is_cuda for p in parameters)  # fused on CPUs alone
        if "fused" in inspect.signature(optimizer).parameters and not FLAVOURS & options.keys() and not lacking:
            options["fused"] = True
        return optimizer(parameters, **options)
