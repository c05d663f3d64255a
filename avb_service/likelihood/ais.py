"""Annealed importance sampling.

Floor 5.
"""

from typing import Literal

from torch import Tensor

from avb_service.algorithm import JointDensity
from avb_service.likelihood.anneal import AnnealConfig, Path, anneal, temperatures, tuned_steps
from avb_service.likelihood.proposals import Proposal
from avb_service.likelihood.scoring import Columns, Scorer
from avb_service.maths import effective_size, log_mean_exp, variance_of_log_mean
from avb_service.records import NATS, VARIANCE, Key
from avb_service.records.estimate import Recipe


def ais(
    model: JointDensity,
    proposal: Proposal,
    recipe: AnnealConfig,
    schedule: Literal["linear", "sigmoid"] = "linear",
    name: str = "ais",
) -> Scorer:
    """Log mean_C w, w the weights of chains annealed from r to the posterior: a lower bound in expectation.

    Step sizes are adapted on pilot chains, then frozen; the chains that are weighed are fresh, so E[w] = p(x).

    Args:
        model: with a continuous latent space.
        proposal: where the chains start.
        recipe: temperatures, chains, leapfrog steps.
        schedule: linear from a Gaussian fitted to the posterior, sigmoid from the prior.
        name: of the estimator.

    Source: Neal 2001; Wu et al. 2017, "On the quantitative analysis of decoder-based generative models".
    """

    def score(x: Tensor) -> Columns:
        path = Path(model, x, proposal(x))
        betas = temperatures(recipe.temperatures, schedule, path.mean)
        steps = tuned_steps(path, betas, recipe)
        run = anneal(path, path.draw(recipe.chains), betas, steps, recipe.leapfrog)
        return {
            NATS: log_mean_exp(run.log_weights),
            VARIANCE: variance_of_log_mean(run.log_weights),
            "ess": effective_size(run.log_weights),
            "acceptance": run.acceptance,
        }

    rows = max(2 * recipe.chains, proposal.rows)
    return Scorer(Key(name), "lower_bound", rows, score, recipe=annealing(proposal, recipe, schedule))


def annealing(proposal: Proposal, recipe: AnnealConfig, schedule: str) -> Recipe:
    """What there is to be told of chains: temperatures, chains, leapfrog steps, schedule, and where they start."""
    return {**recipe.tree(), "schedule": schedule, **proposal.recipe}
