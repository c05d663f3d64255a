"""Importance-weighted bounds.

Floor 5.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from avb_service.algorithm import JointDensity
from avb_service.likelihood.proposals import Proposal
from avb_service.likelihood.scoring import Columns, Scorer
from avb_service.maths import effective_size, log_mean_exp, variance_of_log_mean
from avb_service.records import NATS, VARIANCE, Key

PRIOR_SHARE = 1 / 16  # of a mixture's draws; what is left is shared out evenly


def iwae(model: JointDensity, proposal: Proposal, draws: int) -> Scorer:
    """Log mean_K p(x,z) / r(z|x), z ~ r: a lower bound on log p(x) in expectation, whatever r.

    Args:
        model: any latent-variable model.
        proposal: r; must not be fitted to the draws that are weighed.
        draws: K.

    Source: Burda et al. 2016, eq. 8.
    """

    def score(x: Tensor) -> Columns:
        r = proposal(x)
        z = r.sample((draws,))
        return _averaged(model.log_joint(x, z) - r.log_prob(z))

    rows = max(draws, proposal.rows)
    return Scorer(Key("iwae", draws), "lower_bound", rows, score, recipe={"draws": draws, **proposal.recipe})


def iwae_mixture(model: JointDensity, proposals: Sequence[Proposal], draws: int) -> Scorer:
    """Log mean_N p(x,z) / r(z|x), where n_k of the N draws are of r_k, and r = sum_k (n_k / N) r_k is their mixture.

    A lower bound on log p(x) in expectation. No weight is above N / n_k times the one that it would have under r_k
    alone, so what some r_k misses does no harm where another has it: the variance of the mean weight is at most that
    of n_k draws of r_k, whichever is the best, plus p(x)^2 (1 / n_k - 1 / N).

    Args:
        model: with a continuous latent space.
        proposals: r_k, the last of them the prior, which gets a sixteenth of the draws.
        draws: N.

    Source: Burda et al. 2016, eq. 8; Veach & Guibas 1995, "Optimally combining sampling techniques for Monte Carlo
    rendering", section 3.1 and theorem 1, for the balance heuristic.
    """
    counts = _shares(draws, len(proposals))

    def score(x: Tensor) -> Columns:
        parts = [proposal(x) for proposal in proposals]
        z = torch.cat([_sample(r, n, len(x)) for r, n in zip(parts, counts, strict=True)])
        log_r = torch.stack([r.log_prob(z) + math.log(n / draws) for r, n in zip(parts, counts, strict=True)])
        return _averaged(model.log_joint(x, z) - log_r.logsumexp(0))

    of_codes = math.ceil(draws * model.prior().event_shape[0] / model.example.numel())
    rows = max(draws + of_codes, *(proposal.rows for proposal in proposals))
    told = {key: value for proposal in proposals for key, value in proposal.recipe.items()}
    start = " + ".join(str(proposal.recipe["start"]) for proposal in proposals)
    return Scorer(
        Key("iwae_mixture", draws), "lower_bound", rows, score, recipe={**told, "draws": draws, "start": start}
    )


def _averaged(log_weights: Tensor) -> Columns:
    """Of weights [K, b]; draws by strata vary less than the variance says, which is that of independent ones."""
    return {
        NATS: log_mean_exp(log_weights),
        VARIANCE: variance_of_log_mean(log_weights),
        "ess": effective_size(log_weights),
    }


def _shares(draws: int, parts: int) -> list[int]:
    """How many of the draws each part gets, the last one a sixteenth, and none nothing."""
    last = max(1, round(PRIOR_SHARE * draws))
    even, odd = divmod(draws - last, parts - 1)
    return [even + (k < odd) for k in range(parts - 1)] + [last]


def _sample(r: Distribution, count: int, data: int) -> Tensor:
    """Codes [count, data, D], of a density for each datum or of one for all; not finite where its scale is not."""
    draw = r.rsample if r.has_rsample else r.sample  # Normal's sample() raises there, and does not say for which datum
    return draw((count,) if r.batch_shape else (count, data))
