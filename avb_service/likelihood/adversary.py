"""Whether an adversary's KL can be believed.

Floor 5. Its loss, accuracy and calibration do not tell: they looked excellent in a model whose KL was wrong by 14 nats.
What is here is not sufficient either; but where one of these figures is bad, the ELBO is wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from avb_service.algorithm import AdversarialModel, Algorithm, LatentVariableModel
from avb_service.errors import DataError, UserError
from avb_service.likelihood.certificate import Check
from avb_service.likelihood.estimate import Estimate, evaluating, known, mean_and_stderr
from avb_service.likelihood.moments import kl_floor
from avb_service.likelihood.needs import has_standard_normal_prior, prior_name
from avb_service.maths import fit_gaussian
from avb_service.seeding import seeded

CODES = 2**16  # drawn at a time
STANDARD_ERRORS = 2.0
ERROR = 0.2  # nats that an ELBO may be off by, as the two bounds of a certificate may be apart
UNVERIFIABLE = 0.05  # share of codes; where the contrast covers q there are fewer


@dataclass(frozen=True)
class Diagnosis:
    """What speaks against an adversary.

    Attributes:
        kl: E_q[log q(z|x) - log p(z)] as the adversary has it, nats per datum.
        kl_floor: KL(N(m, S) || p), m and S the moments of q, which the true KL is not below.
        floor_violation: by how much the first is below the second, 0 where it is not: proven error, in nats per datum.
        floor_stderr: standard error of the difference over data.
        unverifiable: fraction of codes z ~ q where T > log N, N the contrast's codes that the adversary has seen. So
            large a ratio means that less than one of these was to be expected there: nothing has held T down.
        out_of_reach: the same fraction under the Gaussian with q's moments in the place of T: where T ought to be so
            large, nothing has taught it. Near 1, no such adversary can work; adaptive contrast brings it to 0.
        log_normaliser: log E_r e^T over data and codes of the contrast r; 0 of a perfect adversary.
    """

    kl: float
    kl_floor: float
    floor_violation: float
    floor_stderr: float
    unverifiable: float
    out_of_reach: float
    log_normaliser: float

    def checks(self) -> tuple[Check, ...]:
        """Each that fails is enough to convict the adversary, and all that pass do not acquit it.

        Only a log-normaliser above its limit speaks against T: codes that make up for a low one may be too rare to have
        been drawn.
        """
        chance = max(ERROR, STANDARD_ERRORS * self.floor_stderr)
        return (
            Check("floor_violation", self.floor_violation, "<=", chance, "KL below a Gaussian's with q's moments"),
            Check("unverifiable", self.unverifiable, "<=", UNVERIFIABLE, "codes with a T that no draw has held down"),
            Check("log_normaliser", self.log_normaliser, "<=", ERROR, "log E_r e^T, 0 of a perfect adversary"),
        )

    def metrics(self, split: str) -> dict[str, float]:
        """Named for a tracker: `validation/adversary.floor_violation`."""
        return known({f"{split}/adversary.{name}": value for name, value in asdict(self).items()})


def codes_seen(model: AdversarialModel, rounds: int, batch_size: int) -> int:
    """N, how many codes of the contrast an adversary has been trained on: one a datum, at each of its steps."""
    return max(1, rounds * model.config.adversary.steps * batch_size)


def can_be_diagnosed(model: Algorithm) -> TypeGuard[AdversarialModel]:
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
    below, stderr = mean_and_stderr(floor - log_ratio)
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


@dataclass(frozen=True)
class Excess:
    """By how much the ELBO that an adversary reports is above a lower bound on log p(x).

    Attributes:
        difference: mean over data, nats per datum.
        stderr: over the same data.
        bound: the estimator that it was held against.
    """

    difference: float
    stderr: float
    bound: str

    @property
    def not_a_bound(self) -> bool:
        """Whether it is above by more than chance; it ought to be below log p(x), which AIS comes close to."""
        return self.difference > STANDARD_ERRORS * self.stderr

    def check(self) -> Check:
        """The same, beside those of `Diagnosis`."""
        return Check("excess", self.difference, "<=", STANDARD_ERRORS * self.stderr, f"ELBO above {self.bound}")

    def metrics(self, split: str) -> dict[str, float]:
        """Named for a tracker: `test/adversary.not_a_bound` is 1 where it is none."""
        return known(
            {
                f"{split}/adversary.excess": self.difference,
                f"{split}/adversary.excess.stderr": self.stderr,
                f"{split}/adversary.not_a_bound": float(self.not_a_bound),
            }
        )


def excess(adversarial: Estimate, bound: Estimate) -> Excess:
    """Hold the adversarial ELBO against a lower bound, datum by datum.

    Args:
        adversarial: by `elbo_adversarial`.
        bound: by `ais`, or another lower bound, or an exact value, on the same data.

    Raises:
        DataError: they are of different data.
        UserError: the second is no lower bound.
    """
    if not bound.valid:
        raise UserError(
            f"an ELBO is held against a lower bound on log p(x), or its value; {bound.name} is an {bound.meaning}: use "
            "ais"
        )
    if len(adversarial.per_datum) != len(bound.per_datum):
        raise DataError(
            f"{adversarial.name} was computed on {len(adversarial.per_datum)} data and {bound.name} on "
            f"{len(bound.per_datum)}; compare them on the same"
        )
    return Excess(*mean_and_stderr(adversarial.per_datum - bound.per_datum), bound.name)


def verdict(checks: Sequence[Check]) -> str:
    """What they come to, for people."""
    return "nothing was found" if all(check.passed for check in checks) else "its ELBO is not to be believed"
