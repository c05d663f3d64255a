"""Parzen windows: the density of data under a mixture of Gaussians around samples.

Floor 5. It asks nothing of a model but samples, so it can be computed for models that have no likelihood. It is the
likelihood of another density than the model's, and moves with the number of samples, the bandwidth and the scale of the
pixels (Theis, van den Oord & Bethge 2016): only what stands beside the training set's own number can be read at all.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avb_service.algorithm import Algorithm
from avb_service.errors import DataError, UserError
from avb_service.likelihood.scoring import Columns, Scored, Scorer, Task, estimate
from avb_service.records import NATS, Estimate, Key
from avb_service.seeding import permutation, seeded

_log = logging.getLogger(__name__)

BANDWIDTHS = tuple(0.01 * 10 ** (k / 8) for k in range(17))  # 0.01 to 1, in the units of the data
CENTRES = 1024  # taken at a time
BLOCK = 250  # data at most: centres are made ready once for each block


@dataclass(frozen=True)
class Windows:
    """Binds Parzen windows to a model, which is not asked any more: its samples are here, and go where it goes.

    Attributes:
        name: of the estimator.
        samples: s_i, [m, ...], on the CPU.
        bandwidths: one, in the units of the data, or several to choose from.
    """

    name: str
    samples: Tensor
    bandwidths: tuple[float, ...]

    def __call__(self, model: Scored) -> Scorer:
        """The scorer."""
        if len(self.bandwidths) == 1:
            return parzen(self.samples, self.bandwidths[0], self.name)
        return bandwidth_trial(self.samples, self.bandwidths, self.name)

    def __repr__(self) -> str:
        """All that the numbers depend on."""
        content = hashlib.sha256(self.samples.contiguous().numpy().tobytes()).hexdigest()
        return f"Windows({self.name!r}, {content}, {self.bandwidths})"


Score = Callable[[Windows, Tensor], Estimate]  # (estimator, data) -> estimate


def parzen(samples: Tensor, bandwidth: float, name: str = "parzen") -> Scorer:
    """Log mean_i N(x; s_i, h^2 I): an `estimate` of another quantity than the log-likelihood of a model.

    Args:
        samples: s_i, [m, ...].
        bandwidth: h, in the units of the data; see `best_bandwidth`.
        name: of the estimator.

    Raises:
        DataError: no samples, or samples that are not finite.
        UserError: a bandwidth that is not positive.

    Source: Parzen 1962; Breuleux, Bengio & Vincent 2011 for its use on generative models.
    """
    if not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise UserError(f"parzen needs a positive bandwidth, given {bandwidth}")

    def columns(values: Tensor) -> Columns:
        return {NATS: values[0], "bandwidth": torch.full_like(values[0], bandwidth)}

    return _scorer(name, samples, [bandwidth], columns)


def bandwidth_trial(samples: Tensor, bandwidths: Sequence[float], name: str) -> Scorer:
    """`parzen` under each of several bandwidths: a column of each, by its number, for `best_bandwidth`.

    Args:
        samples: s_i, [m, ...].
        bandwidths: h, at least two.
        name: of the estimator.

    Raises:
        DataError: no samples, or samples that are not finite.
    """
    return _scorer(name, samples, bandwidths, lambda values: {NATS: values.amax(0), **_numbered(values)})


def best_bandwidth(trial: Estimate, bandwidths: Sequence[float]) -> float:
    """The bandwidth under which validation data are most likely.

    Args:
        trial: by `bandwidth_trial`, of data that are used for nothing else.
        bandwidths: those tried.
    """
    best = max(range(len(bandwidths)), key=lambda k: trial.columns[str(k)].mean())
    if best in (0, len(bandwidths) - 1):
        _log.warning(
            "Parzen windows: the best bandwidth, %g, is at the end of those tried, from %g to %g; draws are far from "
            "data, or values far from [0, 1]",
            bandwidths[best],
            bandwidths[0],
            bandwidths[-1],
        )
    return bandwidths[best]


def parzen_rows(
    model: Algorithm,
    train: Tensor,
    validation: Tensor,
    x: Tensor,
    score: Score,
    *,
    samples: int = 10_000,
    seed: int = 0,
    bandwidths: Sequence[float] = BANDWIDTHS,
) -> tuple[Estimate, Estimate]:
    """`parzen` of the model, and `parzen_training`: the training set's own, by the same rule, from as many centres.

    Args:
        model: that can be sampled.
        train: its training data [m, ...].
        validation: for the bandwidths, one for each row.
        x: data [n, ...].
        score: scores data, here or elsewhere.
        samples: how many centres, at most as many as there are training data.
        seed: of the samples, and of the choice among the training data.
        bandwidths: to choose from.

    Raises:
        DataError: no data, or samples that are not finite.
    """
    samples = min(samples, len(train))
    chosen = train[permutation(len(train), seed, "parzen", "train")[:samples].to(train.device)]
    return (
        _row("parzen", _draws(model, samples, seed), validation, x, score, bandwidths),
        _row("parzen_training", chosen, validation, x, score, bandwidths),
    )


def parzen_of_draws(
    model: Algorithm, x: Tensor, *, samples: int = 2000, seed: int = 0, memory_mib: int = 64
) -> Estimate:
    """What models without a likelihood are compared by while they train: `parzen` of few draws.

    Args:
        model: that can be sampled.
        x: data [n, ...]; the bandwidth is chosen on every other datum, the rest are scored.
        samples: how many centres.
        seed: of the samples.
        memory_mib: bound on what one batch takes.

    Raises:
        DataError: fewer than two data, or samples that are not finite.
    """

    def score(windows: Windows, x: Tensor) -> Estimate:
        return estimate(Task(model, windows, x, seed, memory_mib))

    return _row("parzen", _draws(model, samples, seed), x[::2], x[1::2], score, BANDWIDTHS)


def log_densities(x: Tensor, centres: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Log mean_i N(x; s_i, h^2 I) for each bandwidth h, [H, n], float64.

    Args:
        x: data [n, ...].
        centres: s_i, [m, N], float64.
        bandwidths: h.
    """
    flat = x.flatten(1).double()
    origin = centres.mean(0)  # squares of small numbers: |x - s|^2 = |x|^2 - 2 x's + |s|^2 loses no digits
    flat = flat - origin
    h = torch.tensor(bandwidths, dtype=torch.float64, device=x.device)[:, None, None]
    total = flat.new_full((len(bandwidths), len(x)), -math.inf)
    for part in centres.split(CENTRES):
        part = part - origin
        squares = flat.square().sum(1, keepdim=True) - 2 * flat @ part.mT + part.square().sum(1)
        for k in range(len(h)):
            total[k] = torch.logaddexp(total[k], torch.logsumexp(-squares / (2 * h[k] ** 2), 1))
    constant = math.log(len(centres)) + flat.shape[1] * (h[:, :, 0].log() + 0.5 * math.log(2 * math.pi))
    return total - constant


def _row(
    name: str, centres: Tensor, validation: Tensor, x: Tensor, score: Score, bandwidths: Sequence[float]
) -> Estimate:
    """`parzen` of data under the bandwidth that is best for others."""
    centres = centres.cpu()
    trial = score(Windows(f"{name}_bandwidth", centres, tuple(bandwidths)), validation)
    row = score(Windows(name, centres, (best_bandwidth(trial, bandwidths),)), x)
    return replace(row, seconds=trial.seconds + row.seconds)


def _draws(model: Algorithm, samples: int, seed: int) -> Tensor:
    with seeded(seed, "parzen"), torch.no_grad():
        return torch.cat([model.sample(min(CENTRES, samples - i)) for i in range(0, samples, CENTRES)])


def _scorer(name: str, samples: Tensor, bandwidths: Sequence[float], columns: Callable[[Tensor], Columns]) -> Scorer:
    """Columns made of the log-densities [H, b] of a block."""
    centres = _flat(samples)
    rows = max(1, 2 * CENTRES // math.prod(samples.shape[1:]))
    return Scorer(
        Key(name),
        "estimate",
        rows,
        lambda x: columns(log_densities(x, centres.to(x.device), bandwidths)),
        BLOCK,
        "parzen_density",
        {"samples": len(samples)},
    )


def _numbered(values: Tensor) -> Columns:
    return {str(k): row for k, row in enumerate(values)}


def _flat(samples: Tensor) -> Tensor:
    """Samples [m, N], float64.

    Raises:
        DataError: none, or one that is not finite; names it.
    """
    if len(samples) == 0:
        raise DataError("no samples for Parzen windows: given 0, expected at least 1")
    flat = samples.flatten(1).double()
    if (broken := ~flat.isfinite().all(1)).any():
        raise DataError(f"sample {int(broken.nonzero()[0])} for Parzen windows is not finite")
    return flat
