"""What commands tell: rows of plain values under keys that stay. `--json` prints them, tables are made of them.

Floor 8. Keys are words in snake_case, and what varies (the name of an estimator, a host, a metric) is a value; a number
is a number, and null where it is not known. docs/json.schema.json says what each key is, and a test holds the two
together.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from avb_service.trees import mapped

if TYPE_CHECKING:
    from avb_service.plan import Planned
    from avb_service.records import Check, Comparison, Estimate, LikelihoodRecord
    from avb_service.tracking import External, RegisteredVersion
    from avb_service.tracking.publish import Published

Row = dict[str, Any]


def as_json(rows: object) -> str:
    """JSON as its standard has it: without NaN and infinities, in whose place there is null."""
    return json.dumps(mapped(rows, _finite), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:  # noqa: ANN401  any JSON scalar
    return None if isinstance(value, float) and not math.isfinite(value) else value


def published(run: str, model: "Published") -> Row:
    """A run and the model that it has become."""
    return {
        "run": run,
        "model": model.uri,
        "alias": model.alias,
        "reason": model.reason,
        "metrics": [{"name": name, "value": value} for name, value in model.metrics.items()],
    }


def leaderboard(
    versions: "Sequence[RegisteredVersion | External]", new: Collection[str] = (), best: str | None = None
) -> list[Row]:
    """Models that were scored on the same data together, in the order of their held-out estimates, the best first.

    Args:
        versions: what is registered; and what was scored here and not made here.
        new: URIs of those that this command has registered.
        best: URI of the best of them.
    """
    rows = [{**_model(each), "new": each.uri in new, "best_of_new": each.uri == best} for each in versions]
    estimates = ("log_likelihood", "parzen")
    return sorted(
        rows,
        key=lambda row: (
            row["data"] or "",
            row["scored_on"] or "",
            *(math.inf if row[name] is None else -row[name] for name in estimates),
        ),
    )


def _model(version: "RegisteredVersion | External") -> Row:
    from avb_service.records.key import Key, metric
    from avb_service.tracking.registry import ESTIMATOR, HELD_OUT, HIGHER, SCORED_ON, SHORTFALL

    metrics, tags = version.metrics, {key: value for key, value in version.tags.items() if value}
    return {
        "model": version.uri,
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "method": tags.get("method"),
        "data": tags.get("data"),
        "scored_on": tags.get(SCORED_ON),
        "latent_dim": _number(tags, "latent_dim", int),
        "log_likelihood": metrics.get(HELD_OUT),
        "log_likelihood_stderr": metrics.get(f"{HELD_OUT}.stderr"),
        "log_likelihood_by": tags.get(ESTIMATOR),
        "shortfall": metrics.get(SHORTFALL),
        "shortfall_by": tags.get(HIGHER),
        "iwae_mixture": version.bound("iwae_mixture"),
        "iwae_refined": version.bound("iwae_refined"),
        "elbo_adversarial": metrics.get(metric("test", Key("elbo_adversarial"), "estimate")),
        "parzen": metrics.get("test/parzen"),
        "parzen_training": metrics.get("test/parzen_training"),
        "simulated_upper": metrics.get("certificate/simulated.upper"),
        "gap": metrics.get("certificate/gap"),
        "certificate": tags.get("certificate"),
        "promotion": tags.get("promotion"),
        "parameters": _number(tags, "parameters", int),
        "train_seconds": _number(tags, "train_seconds", float),
    }


def _number(tags: Mapping[str, str], name: str, kind: type[int] | type[float]) -> float | None:
    """A tag as the number that it is; None where it is not there, or somebody has written something else."""
    try:
        return kind(tags[name])
    except (KeyError, ValueError):
        return None


def planned(planned: "Planned", rounds: int) -> Row:
    """What a round, and so many of them, would take; without reports."""
    return {**asdict(planned), "round_s": planned.round_s, "training_s": rounds * planned.round_s}


def evaluation(record: "LikelihoodRecord", model: str, data: str, count: int, other_data: str | None = None) -> Row:
    """What was found of a model's likelihood.

    Args:
        record: all of it.
        model: as it was named.
        data: the data set's name.
        count: how many test data were scored.
        other_data: that they are of other data than the model's own, if so.
    """
    from avb_service.records import HOLDS, verdict

    doubts, certificate, found, higher = record.doubts, record.certificate, record.held_out, record.shortfall
    return {
        "model": model,
        "data": data,
        "split": "test",
        "n_data": count,
        "other_data": other_data,
        "figure": found and {"estimator": found.name, "value": found.value, "stderr": found.stderr},
        "shortfall": higher
        and {
            "estimator": str(higher.bound),
            "difference": higher.difference,
            "n_data": higher.data,
            "reason": str(higher),
        },
        "estimates": [estimate(each) for each in record.estimates],
        "certificate": {
            "passed": certificate.passed,
            "verdict": certificate.verdict,
            "meaning": HOLDS,
            "checks": checks(certificate.checks),
            "simulated_lower": certificate.lower,
            "simulated_upper": certificate.upper,
        }
        if certificate
        else None,
        "adversary": {
            "passed": all(check.passed for check in doubts),
            "verdict": verdict(doubts),
            "checks": checks(doubts),
            "diagnosis": asdict(record.diagnosis) if record.diagnosis else None,
        }
        if doubts
        else None,
        "seconds": [{"estimator": each.name, "seconds": each.seconds} for each in record.estimates],
    }


def estimate(found: "Estimate") -> Row:
    """An estimate, the same each time: the seconds that it took stand apart."""
    return {
        "estimator": found.name,
        "value": found.value,
        "stderr": found.stderr,
        "own_error": found.own_error,
        "kind": found.kind,
        "quantity": found.quantity,
        "n_data": len(found.per_datum),
        "recipe": dict(found.recipe),
        "diagnostics": found.diagnostics,
    }


def checks(of: "Sequence[Check]") -> list[Row]:
    """Numbers and their limits, passed or not."""
    return [{**asdict(check), "passed": check.passed} for check in of]


def comparison(first: str, second: str, found: "Comparison") -> Row:
    """By how much the first of two models is better, nats per datum."""
    return {
        "first": first,
        "second": second,
        "estimator": found.estimator,
        "difference": found.difference,
        "stderr": found.stderr,
        "n_data": found.data,
        "better": found.better,
    }


def host(address: str, has: Mapping[str, Any], members: Mapping[str, Sequence[float]] | None) -> Row:
    """What a host of a cluster has.

    Args:
        address: in the cluster file.
        has: what `distributed.check` has seen there.
        members: CPUs and GPUs of those that have joined Ray, by address; None before `ray up`.
    """
    joined = (members or {}).get(address) or (members or {}).get(has["resolves"])
    return {
        "address": address,
        "hostname": has["hostname"],
        "python": ".".join(map(str, has["python"])),
        **{name: has["versions"].get(name) for name in ("ray", "torch", "mlflow")},
        "cpus": has["cpus"],
        "gpus": has["gpus"],
        "ray_cpus": joined[0] if joined else None,
        "ray_gpus": joined[1] if joined else None,
    }
