"""Parzen windows: the density of data under a mixture of Gaussians around samples.

Floor 5. It asks nothing of a model but samples, so it can be computed for models that have no likelihood. It is the
likelihood of another density than the model's, and moves with the number of samples, the bandwidth and the scale of the
pixels (Theis, van den Oord & Bethge 2016): only what stands beside the training set's own figure can be read at all.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avb_service.algorithm import Algorithm
from avb_service.errors import DataError, UserError
from avb_service.likelihood.estimate import NATS, Columns, Estimate, Scorer, Task, estimate
from avb_service.seeding import permutation, seeded

_log = logging.getLogger(__name__)

BANDWIDTHS = tuple(0.01 * 10 ** (k / 8) for k in range(17))  # 0.01 to 1, in the units of the data
CENTRES = 1024  # taken at a time


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
    centres = _flat(samples)

    def score(x: Tensor) -> Columns:
        nats = log_densities(x, centres, [bandwidth])[0]
        return {NATS: nats, "bandwidth": torch.full_like(nats, bandwidth)}

    rows = max(1, 2 * CENTRES // math.prod(samples.shape[1:]))
    return Scorer(name, "estimate", rows, score, quantity="parzen_density")


def best_bandwidth(samples: Tensor, validation: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> float:
    """The bandwidth under which validation data are most likely.

    Args:
        samples: s_i, [m, ...].
        validation: data [n, ...] that are used for nothing else.
        bandwidths: to choose from.

    Raises:
        DataError: no data.
    """
    if len(validation) == 0:
        raise DataError("no data to choose a bandwidth on: given 0, expected at least 1")
    centres = _flat(samples)
    values = torch.cat([log_densities(part, centres, bandwidths) for part in validation.split(CENTRES)], 1)
    best = int(values.mean(1).argmax())
    if best in (0, len(bandwidths) - 1) and len(bandwidths) > 1:
        _log.warning("the best bandwidth, %g, is at the end of those tried; try others beyond it", bandwidths[best])
    return bandwidths[best]


def parzen_rows(
    model: Algorithm, train: Tensor, validation: Tensor, x: Tensor, *, samples: int = 10_000, seed: int = 0,
    bandwidths: Sequence[float] = BANDWIDTHS, memory_mib: int = 64,
) -> tuple[Estimate, Estimate]:
    """`parzen` of the model, and `parzen_training`: the training set's own, by the same rule, from as many centres.

    Args:
        model: that can be sampled.
        train: its training data [m, ...].
        validation: for the bandwidths, one for each row.
        x: data [n, ...].
        samples: how many centres, at most as many as there are training data.
        seed: of the samples, and of the choice among the training data.
        bandwidths: to choose from.
        memory_mib: bound on what one batch takes.

    Raises:
        DataError: no data, or samples that are not finite.
    """
    samples = min(samples, len(train))
    drawn = _draws(model, samples, seed)
    chosen = train[permutation(len(train), seed, "parzen", "train")[:samples].to(train.device)]

    def row(centres: Tensor, name: str) -> Estimate:
        scorer = parzen(centres, best_bandwidth(centres, validation, bandwidths), name)
        return estimate(Task(model, lambda _: scorer, x, seed, memory_mib))

    return row(drawn, "parzen"), row(chosen, "parzen_training")


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
    centres = _draws(model, samples, seed)
    scorer = parzen(centres, best_bandwidth(centres, x[::2]))
    return estimate(Task(model, lambda _: scorer, x[1::2], seed, memory_mib))


def _draws(model: Algorithm, samples: int, seed: int) -> Tensor:
    with seeded(seed, "parzen"), torch.no_grad():
        return torch.cat([model.sample(min(CENTRES, samples - i)) for i in range(0, samples, CENTRES)])


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
