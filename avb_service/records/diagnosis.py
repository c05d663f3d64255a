"""Whether an adversary's KL can be believed.

Floor 4.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from avb_service.errors import DataError, UserError
from avb_service.records.certificate import Check
from avb_service.records.estimate import Estimate, known, mean_and_stderr
from avb_service.records.key import Key

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


@dataclass(frozen=True)
class Excess:
    """By how much the ELBO that an adversary reports is above a lower bound on log p(x).

    Attributes:
        difference: mean over data, nats per datum.
        stderr: over the same data.
        bound: which estimate it was held against.
    """

    difference: float
    stderr: float
    bound: Key

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
    return Excess(*mean_and_stderr(adversarial.per_datum - bound.per_datum), bound.key)


def verdict(checks: Sequence[Check]) -> str:
    """What they come to, for people."""
    return "nothing was found" if all(check.passed for check in checks) else "its ELBO is not to be believed"
