"""What every estimator returns, and how data is cut into pieces that fit in memory.

Floor 5.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from avb_service.config import Config
from avb_service.seeding import seeded

Kind = Literal["exact", "lower_bound", "upper_bound", "estimate"]
Count = Annotated[int, Field(ge=2)]


class LikelihoodConfig(Config):
    """How log-likelihoods are estimated.

    Attributes:
        importance_draws: K of iwae_K.
        proposal_draws: draws of an implicit posterior that its Gaussian proposal is fitted to.
        inflate: factor on that Gaussian's standard deviations.
        elbo_draws: draws of the posterior for the ELBOs.
        validation_data: how many validation data the objective of a search is computed on.
        test_data: how many test data the final figures are computed on; all where not given.
        quadrature_data: how many of them quadrature is done for, which costs the most.
        memory_mib: bound on what one batch of decoder outputs takes.
    """

    importance_draws: Count = 256
    proposal_draws: Count = 256
    inflate: Annotated[float, Field(ge=1, le=3)] = 1.2
    elbo_draws: Count = 16
    validation_data: Count | None = 200
    test_data: Count | None = None
    quadrature_data: Count = 100
    memory_mib: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Estimate:
    """A log-likelihood in nats per datum, with its kind and its error bar.

    Attributes:
        name: of the estimator, `iwae_256`.
        value: mean over data.
        stderr: standard deviation over data / sqrt(n): how far another test set would move the mean. It holds
            neither the bias of the estimator nor its own noise.
        kind: what the value is of log p(x).
        per_datum: [n], float64, kept so that two models can be compared datum by datum.
        diagnostics: what tells whether the estimator worked.
    """

    name: str
    value: float
    stderr: float
    kind: Kind
    per_datum: Tensor
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, kind: Kind, per_datum: Tensor, **diagnostics: float) -> "Estimate":
        """The mean over data and its standard error."""
        values = per_datum.detach().double().cpu()
        stderr = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(name, values.mean().item(), stderr, kind, values, diagnostics)

    def metrics(self, split: str) -> dict[str, float]:
        """Named for a tracker, kind included: `test/log_likelihood.iwae_256.lower_bound`."""
        prefix = f"{split}/log_likelihood.{self.name}"
        own = {f"{prefix}.{self.kind}": self.value, f"{prefix}.stderr": self.stderr}
        return own | {f"{prefix}.{name}": value for name, value in self.diagnostics.items()}


@torch.no_grad()
def over_data(score: Callable[[Tensor], Tensor], x: Tensor, draws: int, config: LikelihoodConfig, *seed: str) -> Tensor:
    """Score data piece by piece.

    Args:
        score: data [b, C, H, W] -> values [b].
        x: data [n, C, H, W].
        draws: decoder evaluations that a datum needs at a time, to bound the memory.
        config: the bound, and the seed.
        seed: what else the noise depends on. It is drawn anew for each piece, so a value depends on its piece only.

    Returns:
        Values [n].
    """
    datum = x[0].numel() * x.element_size() * 4  # logits, and what the log-probability makes of them
    size = max(1, config.memory_mib * 2**20 // (datum * draws))
    pieces = []
    for start in range(0, len(x), size):
        with seeded(config.seed, *seed, start):
            pieces.append(score(x[start : start + size]))
    return torch.cat(pieces)
