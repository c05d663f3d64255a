"""Importance-weighted bounds.

Floor 5.
"""

from torch import Tensor

from avb_service.algorithm import LatentVariableModel
from avb_service.likelihood.estimate import NATS, VARIANCE, Columns, Scorer
from avb_service.likelihood.proposals import Proposal
from avb_service.maths import effective_size, log_mean_exp, variance_of_log_mean


def iwae(model: LatentVariableModel, proposal: Proposal, draws: int, name: str = "iwae") -> Scorer:
    """Log mean_K p(x,z) / r(z|x), z ~ r: a lower bound on log p(x) in expectation, whatever r.

    Args:
        model: any latent-variable model.
        proposal: r; must not be fitted to the draws that are weighed.
        draws: K.
        name: of the estimator, to which K is added.

    Source: Burda et al. 2016, eq. 8.
    """

    def score(x: Tensor) -> Columns:
        r = proposal(x)
        z = r.sample((draws,))
        log_weights = model.log_joint(x, z) - r.log_prob(z)
        return {
            NATS: log_mean_exp(log_weights), VARIANCE: variance_of_log_mean(log_weights),
            "ess": effective_size(log_weights),
        }  # fmt: skip

    rows = max(draws, proposal.rows)
    return Scorer(f"{name}_{draws}", "lower_bound", rows, score, recipe={"draws": draws, **proposal.recipe})
