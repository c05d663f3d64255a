"""Bidirectional Monte Carlo: how far off a recipe is, on data for which that can be known.

Floor 5.
"""

from typing import Literal

import torch
from torch import Tensor

from avb_service.algorithm import JointDensity
from avb_service.likelihood.ais import annealing
from avb_service.likelihood.anneal import AnnealConfig, Path, anneal, anneal_back, temperatures, tuned_steps
from avb_service.likelihood.proposals import Proposal
from avb_service.likelihood.scoring import Columns, Scorer
from avb_service.maths import effective_size, log_mean_exp
from avb_service.records import NATS, Key


def bdmc(
    model: JointDensity,
    proposal: Proposal,
    recipe: AnnealConfig,
    schedule: Literal["linear", "sigmoid"] = "linear",
) -> Scorer:
    """A lower and an upper bound on log p(x) of data that the model has drawn itself, by the same recipe.

    For x ~ p(x|z*), z* ~ p(z), the code z* is an exact draw of the posterior, from which a chain can be annealed the
    other way. It takes the place of one of the C forward chains: upper = log((w_back,1 + sum_{C-1} w_forward) / C).

    The scorer takes no data but their numbers [b], and simulates them under its own noise. Its `nats` are the lower
    bound; `upper` and `gap` stand beside them. **The upper bound says nothing of data that the model has not drawn.**

    Args:
        model: with a continuous latent space.
        proposal: as for `ais`; it sees x only.
        recipe: as for `ais`.
        schedule: as for `ais`.

    Source: Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood with bidirectional Monte Carlo";
        Sobolev & Vetrov 2019 for the mixed bound.
    """

    def score(numbers: Tensor) -> Columns:
        z = model.prior().sample((len(numbers),))
        x = model.likelihood(z).sample()
        path = Path(model, x, proposal(x))
        betas = temperatures(recipe.temperatures, schedule, path.mean)
        steps = tuned_steps(path, betas, recipe)
        forward = anneal(path, path.draw(recipe.chains), betas, steps, recipe.leapfrog)
        back = anneal_back(path, path.at(path.u(z)[None]), betas, steps, recipe.leapfrog)
        lower = log_mean_exp(forward.log_weights)
        upper = log_mean_exp(torch.cat([back, forward.log_weights[1:]]))
        return {
            NATS: lower,
            "upper": upper,
            "gap": upper - lower,
            "ess": effective_size(forward.log_weights),
            "acceptance": forward.acceptance,
        }

    rows, told = max(2 * recipe.chains, proposal.rows), annealing(proposal, recipe, schedule)
    return Scorer(Key("bdmc"), "lower_bound", rows, score, quantity="simulated", recipe=told)
