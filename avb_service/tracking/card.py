"""What a run and a registered model show of a record of likelihoods: metrics, tags, a card, and a table of the data.

Floor 7.
"""

from collections.abc import Sequence

from avb_service.records import Check, LikelihoodRecord, known, verdict
from avb_service.records.key import to_json
from avb_service.tracking.registry import ESTIMATES, ESTIMATOR, HELD_OUT, HIGHER, SCORED_ON, SHORTFALL
from avb_service.tracking.runs import Run


def numbers(record: LikelihoodRecord) -> dict[str, float]:
    """Metrics: all estimates, and which of them is the model's."""
    metrics = record.metrics("test")
    if record.held_out is not None:
        metrics |= known({HELD_OUT: record.held_out.value, f"{HELD_OUT}.stderr": record.held_out.stderr})
    if record.shortfall is not None:
        metrics[SHORTFALL] = record.shortfall.difference
    return metrics


def labels(record: LikelihoodRecord) -> dict[str, str]:
    """Tags: on what it was scored, by which estimators, whose is the estimate, and what the certificate says."""
    found = {} if record.held_out is None else {ESTIMATOR: record.held_out.name}
    return {
        SCORED_ON: record.scored_on,
        ESTIMATES: to_json(each.key for each in record.estimates),
        "certificate": _verdict(record),
        **found,
        **({} if record.shortfall is None else {HIGHER: str(record.shortfall.bound)}),
    }


def log_columns(record: LikelihoodRecord, run: Run) -> None:
    """A table of every datum's numbers for each estimate."""
    for estimate in record.estimates:
        columns = {name: column.tolist() for name, column in estimate.columns.items()}
        run.log_table(f"test_{estimate.title}", {"datum": list(range(len(estimate.per_datum))), **columns})


def likelihoods(record: LikelihoodRecord) -> str:
    """What a card says of them, Markdown."""
    rows = [
        f"| {e.name} | {e.value:.2f} ± {e.stderr:.2f} | {e.meaning} | {len(e.per_datum)} |" for e in record.estimates
    ]
    return f"""Log-likelihood of held-out data, nats per datum; ± is the standard error over data:

| estimator | value | kind | data |
|---|---|---|---|
{chr(10).join(rows)}

{_shortfall(record)}{_certificate(record)}

{_adversary(record)}""".rstrip()


def _shortfall(record: LikelihoodRecord) -> str:
    """Nothing of an estimate that no other bound shows to be too low."""
    return "" if record.shortfall is None else f"**{record.shortfall}.**\n\n"


def _certificate(record: LikelihoodRecord) -> str:
    if record.certificate is None:
        return f"Certificate: {_verdict(record)}."
    lower, upper = record.certificate.lower, record.certificate.upper
    return f"""Certificate of the annealed estimate: **{record.certificate.verdict}**. It brackets the likelihood of
data that the model itself has drawn, between {lower:.2f} and {upper:.2f}; no upper bound holds for real data.

{_checks(record.certificate.checks)}"""


def _adversary(record: LikelihoodRecord) -> str:
    """Nothing of a model that has none."""
    if not record.doubts:
        return ""
    return f"""What speaks against the adversary: **{verdict(record.doubts)}**. Each that fails is enough to convict it;
all that pass do not acquit it.

{_checks(record.doubts)}

"""


def _checks(checks: Sequence[Check]) -> str:
    rows = [
        f"| {check.meaning} | {check.value:.3g} | {check.relation} {check.limit:.3g} | "
        f"{'yes' if check.passed else 'NO'} |"
        for check in checks
    ]
    return "\n".join(["| check | measured | limit | passed |", "|---|---|---|---|", *rows])


def _verdict(record: LikelihoodRecord) -> str:
    """For a column of a table."""
    best = record.held_out
    if best is not None and best.kind == "exact" and record.shortfall is None:
        return "exact"
    return record.certificate.verdict if record.certificate else "none"
