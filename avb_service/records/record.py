"""What was found out about a model's likelihood, as it travels with the model; and how two models are compared.

Floor 4.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from avb_service.errors import DataError, UserError
from avb_service.formats import FORMAT, KEY, known_format
from avb_service.records.certificate import Certificate, Check
from avb_service.records.diagnosis import Diagnosis, Excess, excess
from avb_service.records.estimate import Estimate, mean_and_stderr
from avb_service.records.key import Key, read_older
from avb_service.records.shortfall import Shortfall, shortfall
from avb_service.trees import mapped

LIKELIHOOD = "likelihood.json"  # a model's record, beside its weights
# Whose bound stands for a model that has no exact value: settled before looking, but for draws and noise.
BOUNDS = ("ais", "iwae_mixture", "iwae_refined", "iwae", "elbo")  # the third is by older versions
PROBABILITIES = "probabilities of levels"  # what a basis calls them
STANDARD_ERRORS = 2.0  # a difference of fewer is no difference
INFINITE = ("-Infinity", "Infinity")


@dataclass(frozen=True)
class Comparison:
    """How much better one model is than another on the same data.

    Attributes:
        estimator: by which both were scored.
        difference: mean over data of the first's log-likelihood less the second's, nats per datum.
        stderr: standard error of that mean over data; far smaller than either model's own.
        data: how many.
    """

    estimator: str
    difference: float
    stderr: float
    data: int

    @property
    def better(self) -> bool:
        """Whether the first is ahead by more than the data could make it by chance."""
        return self.difference > STANDARD_ERRORS * self.stderr

    def __str__(self) -> str:
        """For people."""
        return f"{self.difference:+.3f} ± {self.stderr:.3f} nats per datum by {self.estimator} on {self.data} data"


@dataclass(frozen=True)
class LikelihoodRecord:
    """The held-out likelihoods of a model.

    Attributes:
        basis: what they depend on beside the model: data, split, binarisation, seed; and whether they are logs of
            probabilities or of a density, where data can have either. Models whose bases are equal can be compared.
        estimates: all of them.
        certificate: of the annealed one; None where there is none.
        diagnosis: of the model's adversary; None where it has none, or none that can be diagnosed.
    """

    basis: Mapping[str, str]
    estimates: tuple[Estimate, ...]
    certificate: Certificate | None = None
    diagnosis: Diagnosis | None = None

    @property
    def scored_on(self) -> str:
        """The basis in a line."""
        return ", ".join(f"{key} {value}" for key, value in sorted(self.basis.items()))

    @property
    def candidates(self) -> tuple[Estimate, ...]:
        """What can stand for log p(x) of all data: exact values, then bounds in an order that no value has a say in."""
        data = max((len(each.per_datum) for each in self.estimates), default=0)
        exact = (each for each in self.estimates if each.valid and each.kind == "exact")
        bounds = map(self.by, BOUNDS)
        return tuple(each for each in (*exact, *bounds) if each is not None and len(each.per_datum) == data)

    @property
    def held_out(self) -> Estimate | None:
        """The model's estimate: the first of these."""
        return next(iter(self.candidates), None)

    @property
    def shortfall(self) -> Shortfall | None:
        """Which other valid bound shows that estimate to be too low, if one does."""
        found = self.held_out and shortfall(self.held_out, self.estimates)
        return found if found and found.proven else None

    def by(self, estimator: str) -> Estimate | None:
        """The first estimate of log p(x) by that estimator, if it is exact or a lower bound."""
        return next((each for each in self.estimates if each.valid and each.key.estimator == estimator), None)

    @property
    def objection(self) -> str | None:
        """Why the estimate is not to be believed, if so."""
        best = self.held_out
        if best is None:
            return "it defines no p(x|z), so it has no held-out likelihood"
        if self.shortfall:
            return str(self.shortfall)
        if best.kind == "exact":
            return None
        if self.certificate is None:
            return f"{best.name} has no certificate"
        return None if self.certificate.passed else f"the certificate failed: {self.certificate.reason}"

    @property
    def standing(self) -> tuple[bool, float]:
        """Among models that are scored alike: those that can be believed before the others, then by the estimate."""
        return self.objection is None, -math.inf if self.held_out is None else self.held_out.value

    @property
    def excess(self) -> Excess | None:
        """The adversary's ELBO against the estimate, or the highest bound where that is too low; None without both."""
        adversarial = next((each for each in self.estimates if each.key.estimator == "elbo_adversarial"), None)
        if adversarial is None or self.held_out is None:
            return None
        bound = max(self.candidates, key=lambda each: each.value) if self.shortfall else self.held_out
        return excess(adversarial, bound)

    @property
    def doubts(self) -> tuple[Check, ...]:
        """What could speak against the model's adversary; of a single datum nobody knows what is chance."""
        of_kl = self.diagnosis.checks() if self.diagnosis else ()
        of_elbo = (self.excess.check(),) if self.excess else ()
        return tuple(check for check in of_kl + of_elbo if not math.isnan(check.limit))

    def against(self, other: "LikelihoodRecord") -> Comparison:
        """A paired comparison: by what can be believed of either, else by the best estimate that both have.

        What can be believed is close to log p(x), by whatever estimator; what both have in common may be a bound that
        is loose for one of them.

        Raises:
            UserError: one has no estimate to compare by; or they were scored on other data, or have no estimate in
                common; names the difference.
        """
        if None in (self.held_out, other.held_out):
            raise UserError(
                "one of the two has no exact value or lower bound of log p(x) to be compared by; a method "
                "that defines no p(x|z) has none, and is seen by its Parzen windows"
            )
        # of binary data nothing else can be had, and only older versions, to which masks were levels, say so
        first, second = ({"measure": PROBABILITIES, **each.basis} for each in (self, other))
        differing = [key for key in first | second if first.get(key) != second.get(key)]
        if "data_sha256" in differing:  # of real values and of levels the measure differs of itself
            differing = [key for key in differing if key != "measure"]
        if differing:
            raise UserError(
                "the two were scored on different data, or by another measure, so a difference would mean "
                "nothing; " + ", ".join(f"{key}: {first.get(key)} and {second.get(key)}" for key in differing)
            )
        believed = self.objection is None and other.objection is None
        for mine, theirs in product(self.candidates, other.candidates):
            if believed or mine.key == theirs.key:
                difference, stderr = mean_and_stderr(mine.per_datum - theirs.per_datum)
                names = " and ".join(dict.fromkeys((mine.name, theirs.name)))
                return Comparison(names, difference, stderr, len(mine.per_datum))
        raise UserError("the two have no exact value or lower bound in common; evaluate both with the same budget")

    def metrics(self, split: str = "test") -> dict[str, float]:
        """Named for a tracker."""
        named = {name: value for estimate in self.estimates for name, value in estimate.metrics(split).items()}
        for found in (self.diagnosis, self.excess):
            named |= found.metrics(split) if found else {}
        return {**named, **(self.certificate.metrics() if self.certificate else {})}

    def to_json(self) -> bytes:
        """With the number of every datum, to the bit."""
        tree = {
            KEY: FORMAT,
            "basis": dict(self.basis),
            "estimates": [_tree(each) for each in self.estimates],
            "certificate": asdict(self.certificate) if self.certificate else None,
            "diagnosis": asdict(self.diagnosis) if self.diagnosis else None,
        }
        strict = _finite(tree)
        return json.dumps(strict, sort_keys=True, allow_nan=False).encode()  # the same, just found or read from a store

    @classmethod
    def from_json(cls, content: bytes) -> "LikelihoodRecord":
        """The inverse of `to_json`; older versions wrote NaN and Infinity as they are, which is no JSON.

        Raises:
            DataError: it is something else.
        """
        try:
            tree = json.loads(content)
            known_format(tree, LIKELIHOOD)
            estimates = tuple(map(_estimate, tree["estimates"]))
            certificate = Certificate.from_tree(_numbers(tree["certificate"])) if tree["certificate"] else None
            diagnosis = Diagnosis(**_numbers(tree["diagnosis"])) if tree.get("diagnosis") else None  # older: none
            return cls(tree["basis"], estimates, certificate, diagnosis)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"no record of likelihoods: {error!r}") from error


def _tree(estimate: Estimate) -> dict[str, Any]:
    """Without the time it took, which is another each time; with its name, for people."""
    columns = {name: column.tolist() for name, column in estimate.columns.items()}
    tree = {"name": estimate.name, **asdict(replace(estimate, columns={})), "columns": columns}
    del tree["seconds"]
    return tree


def _finite(node: Any) -> Any:  # noqa: ANN401  any JSON value
    """With null for what is no number, and a word for what is infinite: JSON has neither."""

    def leaf(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, float) or math.isfinite(value):
            return value
        return None if math.isnan(value) else INFINITE[value > 0]

    return mapped(node, leaf)


def _numbers(node: Any) -> Any:  # noqa: ANN401  any JSON value
    """The inverse of `_finite`, where null is no absence."""

    def leaf(value: Any) -> Any:  # noqa: ANN401
        return math.nan if value is None else float(value) if value in INFINITE else value

    return mapped(node, leaf)


def _estimate(tree: Mapping[str, Any]) -> Estimate:
    """The inverse of `_tree`; older versions kept the name and no key."""
    key = Key(**tree["key"]) if "key" in tree else read_older(tree["name"])
    fields = _numbers({name: value for name, value in tree.items() if name not in ("name", "key")})
    columns = {name: np.array(values, np.float64) for name, values in fields["columns"].items()}
    return Estimate(**{**fields, "key": key, "columns": columns})
