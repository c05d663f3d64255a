"""A look at a model's adversary, from which a diagnosis comes.

Floor 5. Its loss, accuracy and calibration do not tell: they looked excellent in a model whose KL was wrong by 14 nats.
What is here is not sufficient either; but where one of these numbers is bad, the ELBO is wrong.
"""

import math
from typing import TypeGuard

import torch
from torch import Tensor

from avb_service.algorithm import AdversarialModel, LatentVariableModel
from avb_service.errors import DataError, UserError
from avb_service.likelihood.moments import kl_floor
from avb_service.likelihood.needs import has_standard_normal_prior, prior_name
from avb_service.likelihood.scoring import Scored, evaluating
from avb_service.maths import fit_gaussian
from avb_service.records.diagnosis import Diagnosis
from avb_service.records.estimate import mean_and_stderr
from avb_service.seeding import seeded

CODES = 2**16  # drawn at a time


def codes_seen(model: AdversarialModel, rounds: int, batch_size: int) -> int:
    """N, how many codes of the contrast an adversary has been trained on: one a datum, at each of its steps."""
    return max(1, rounds * model.config.adversary.steps * batch_size)


def can_be_diagnosed(model: Scored) -> TypeGuard[AdversarialModel]:
    """Whether `diagnose` applies."""
    return isinstance(model, AdversarialModel) and has_standard_normal_prior(model)


def diagnose(model: LatentVariableModel, x: Tensor, seen: int, *, draws: int = 128, seed: int = 0) -> Diagnosis:
    """Look for what proves the adversary wrong; a few hundred data are enough while training.

    Args:
        model: with an adversary and the prior N(0, I).
        x: data [n, ...].
        seen: N, from `codes_seen`.
        draws: of the posterior and of the contrast, for each datum; more where the moments of q need them.
        seed: of all noise.

    Raises:
        UserError: the model has no adversary, or another prior.
    """
    if not isinstance(model, AdversarialModel):
        raise UserError(f"{type(model).__name__} has no adversary T(x,z) to be diagnosed: its ELBO is a bound as it is")
    if not has_standard_normal_prior(model):
        raise UserError(f"the Gaussian floor of the KL needs the prior N(0, I), this one is {prior_name(model)}")
    if len(x) == 0 or seen < 1:
        raise DataError(f"an adversary is diagnosed on data and what it has seen, given {len(x)} data and {seen} codes")
    draws = max(draws, 2 * (model.prior().event_shape[0] + 1))
    with evaluating(model), seeded(seed, "adversary"):
        parts = [_figures(model, part, draws, seed) for part in x.split(max(1, CODES // draws))]
    log_ratio, floor, t, gaussian, t_contrast = (torch.cat(each, -1).double() for each in zip(*parts, strict=True))
    below, stderr = mean_and_stderr((floor - log_ratio).cpu().numpy())
    return Diagnosis(
        log_ratio.mean().item(),
        floor.mean().item(),
        max(below, 0.0),
        stderr,
        (t > math.log(seen)).double().mean().item(),
        (gaussian > math.log(seen)).double().mean().item(),
        t_contrast.flatten().logsumexp(0).item() - math.log(t_contrast.numel()),
    )


def _figures(model: AdversarialModel, x: Tensor, draws: int, seed: int) -> tuple[Tensor, ...]:
    """E_q of the log-ratio and its floor, [b]; T and what it ought to be under q, and T under r, [draws, b] each."""
    with seeded(seed, "adversary", "shared"):  # the same contrast for all data
        shared = model.shared()
    q, prior = model.posterior(x), model.prior()
    r, z = model.contrast(q, shared), q.sample((draws,))
    log_ratio = model.log_ratio(x, q, z, shared)
    t = log_ratio + prior.log_prob(z) - r.log_prob(z)
    gaussian = fit_gaussian(z).log_prob(z) - r.log_prob(z)
    z_r = r.sample((draws,) if r.batch_shape else (draws, len(x)))
    t_contrast = model.log_ratio(x, q, z_r, shared) + prior.log_prob(z_r) - r.log_prob(z_r)
    return log_ratio.mean(0), kl_floor(q, z), t, gaussian, t_contrast
