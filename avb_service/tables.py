"""What commands print as tables, or as JSON for programs.

Floor 8. Nothing heavy is imported before it is needed, so that help answers at once.
"""

import json
import math
import re
import sys
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from avb_service.likelihood import Check, Estimate, LikelihoodRecord
    from avb_service.tracking import RegisteredVersion

out = Console() if sys.stdout.isatty() else Console(width=120)

# Of the leaderboard's columns: those that hold words; those that a terminal may have no room for, the first to go
# first; and what they mean.
WORDS = ("model", "alias", "method", "data", "certificate")
DETAILS = ("params", "train", "drawn <=", "data", "gap", "IWAE", "log p(x) ~", "Parzen (training)")
REFINED = r"test/log_likelihood\.iwae_refined_\d+\.lower_bound"
APART = "Between two lines: scored on the same data, by the same measure; only such figures can be compared."
NOTES = {
    "model": "*: new.  ±: standard error over data.",
    "IWAE": "IWAE: iwae_refined, a looser lower bound on the same data; searches compare by it on validation data.",
    "log p(x) ~": "~: what an adversary believes; it bounds nothing.",
    "drawn <=": "drawn <=: upper bound on data that the model drew itself.",
    "gap": "gap: between the two bounds on such data, plus 2 s.e.",
    "Parzen (training)": "Parzen: a density around samples, and beside it that around training data; no log p(x).",
}


def lines(rows: "Sequence[Mapping[str, Any]]", as_json: bool, title: str) -> None:
    """Rows that have the same keys."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    out.print(table)


def methods(rows: "Sequence[Mapping[str, Any]]", as_json: bool) -> None:
    """What each is, what it can do, and its presets: in blocks, so that names are whole on a narrow terminal."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=SIMPLE, show_header=False, title="Methods")
    for row in rows:
        can = f"draws: {row['draws']};  encodes: {row['encodes']};  log p(x): {row['log p(x)']}"
        said = (row["about"], can, f"presets: {' '.join(row['presets'])}")
        table.add_row(row["name"], "\n".join(said), end_section=True)
    out.print(table, highlight=False)


def settings(rows: "Sequence[Mapping[str, Any]]", as_json: bool, title: str) -> None:
    """Each setting as YAML has it, and what it is; a section stands above what is in it."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("setting", no_wrap=True)
    for name in ("value", "about"):
        table.add_column(name, overflow="fold")
    sections = {row["setting"].rpartition(".")[0] for row in rows}
    for row in rows:
        value = "" if row["setting"] in sections else json.dumps(row["value"])
        table.add_row(*map(escape, (row["setting"], value, row["about"])))
    out.print(table, highlight=False)


def estimates(record: "LikelihoodRecord", title: str, as_json: bool) -> None:
    """Likelihoods, each with its kind and error bar; what the certificate says; what speaks against an adversary."""
    from avb_service.likelihood import HOLDS, known, verdict

    doubts = record.doubts
    if as_json:
        adversary = {
            "verdict": verdict(doubts), "checks": [{**asdict(check), "passed": check.passed} for check in doubts],
            "diagnosis": known(asdict(record.diagnosis)) if record.diagnosis else None,
        }  # fmt: skip
        tree = {
            "estimates": [_estimate(e) for e in record.estimates],
            "certificate": record.certificate.tree() if record.certificate else None,
            "adversary": adversary if doubts else None,
            "seconds": {e.name: e.seconds for e in record.estimates if not math.isnan(e.seconds)},
        }
        print(json.dumps(tree, indent=2))
        return
    rows = [
        {"estimator": e.name, "nats per datum": f"{e.value:.3f} ± {e.stderr:.3f}", "kind": e.meaning,
         "data": len(e.per_datum), "own error": "" if math.isnan(e.own_error) else f"{e.own_error:.3f}",
         "time": "" if math.isnan(e.seconds) else f"{e.seconds:.0f} s"}
        for e in record.estimates
    ]  # fmt: skip
    rows += [
        {"estimator": f"{e.name}, upper", "nats per datum": f"{e.diagnostics['upper']:.3f}",
         "kind": e.meaning.replace("lower", "upper"), "data": len(e.per_datum)}
        for e in record.estimates if e.quantity == "simulated"
    ]  # fmt: skip
    lines(rows, False, title)
    if record.certificate is not None:
        _checks(record.certificate.checks, f"Certificate of ais: {record.certificate.verdict}")
        out.print(HOLDS, markup=False)
    if doubts:
        _checks(doubts, f"What speaks against the adversary: {verdict(doubts)}")
        out.print("Each that fails is enough to convict it; all that pass do not acquit it.", markup=False)


def _estimate(estimate: "Estimate") -> dict[str, Any]:
    """What a program sees of it, the same each time."""
    numbers = {"value": estimate.value, "stderr": estimate.stderr, "own_error": estimate.own_error}
    return {
        "estimator": estimate.name, **{name: value for name, value in numbers.items() if not math.isnan(value)},
        "kind": estimate.kind, "quantity": estimate.quantity, "data": len(estimate.per_datum),
        "recipe": dict(estimate.recipe), **estimate.diagnostics,
    }  # fmt: skip


def _checks(checks: "Sequence[Check]", title: str) -> None:
    rows = [
        {"check": check.meaning, "measured": f"{check.value:.3g}", "limit": f"{check.relation} {check.limit:.3g}",
         "passed": "yes" if check.passed else "NO"}
        for check in checks
    ]  # fmt: skip
    lines(rows, False, title)


def hosts(found: "Mapping[str, Mapping[str, Any]]", members: "Mapping[str, Sequence[float]] | None") -> None:
    """What each host of a cluster has.

    Args:
        found: by address, what `distributed.check` has seen there.
        members: CPUs and GPUs of those that have joined Ray, by address; None before `ray up`.
    """
    lines([_host(address, has, members or {}) for address, has in found.items()], False, "Hosts")


def _host(address: str, has: "Mapping[str, Any]", members: "Mapping[str, Sequence[float]]") -> dict[str, str]:
    joined = members.get(address) or members.get(has["resolves"])
    return {
        "host": address,
        "name": has["hostname"],
        "python": ".".join(map(str, has["python"])),
        **{name: has["versions"].get(name, "to be installed") for name in ("ray", "torch", "mlflow")},
        "CPUs": str(has["cpus"]),
        "GPUs": str(has["gpus"]),
        "Ray": f"{joined[0]:g} CPUs, {joined[1]:g} GPUs" if joined else "-",
    }


def leaderboard(
    versions: "Sequence[RegisteredVersion]", as_json: bool, new: "Sequence[str]" = (), best: str | None = None
) -> None:
    """Sorted by the held-out lower bound, else by Parzen windows; what only an adversary believes stands apart.

    Models that were scored on other data, or by another measure, stand apart: their figures cannot be compared.

    Args:
        versions: what is registered.
        as_json: for programs.
        new: URIs of those to be marked.
        best: URI of the best of them, to be marked for programs.
    """
    rows = [{**_row(each), "new": each.uri in new, "best_of_new": each.uri == best} for each in versions]
    rows.sort(key=lambda row: (row["data"], row["scored_on"], -_score(row, "log p(x) >="), -_score(row, "parzen")))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        out.print("no model is registered yet")
        return
    cells = [_cells(row) for row in rows]
    ends = [row["scored_on"] != after["scored_on"] for row, after in pairwise(rows)]
    names = [name for name in cells[0] if name not in DETAILS or any(line[name] for line in cells)]
    endless = out.options.update(width=10_000)
    for detail in DETAILS:
        if out.measure(_board(names, cells, ends), options=endless).maximum <= out.width:
            break
        names = [name for name in names if name != detail]
    out.print(_board(names, cells, ends))
    notes = [note for name, note in NOTES.items() if name in names]
    out.print("\n".join([*notes, *([APART] if any(ends) else [])]), markup=False)


def _board(names: "Sequence[str]", cells: "Sequence[Mapping[str, str]]", ends: "Sequence[bool]") -> Table:
    """The table with some of the columns, and a line after each row with which a group ends; the last has no need."""
    table = Table(title="Held-out data, nats per datum", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in WORDS else "right", no_wrap=True)
    for line, end in zip(cells, [*ends, False], strict=True):
        table.add_row(*(line[name] for name in names), end_section=end)
    return table


def _score(row: "Mapping[str, Any]", name: str) -> float:
    """What rows are sorted by; those without it come last."""
    return -math.inf if row[name] is None else row[name]


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """What a person sees of a row."""
    error = "" if row["stderr"] is None else f" ± {row['stderr']:.2f}"
    training = "" if row["parzen_training"] is None else f" ({row['parzen_training']:.1f})"
    return {
        "model": row["model"].removeprefix("models:/") + (" *" if row["new"] else ""),
        "alias": row["alias"],
        "method": row["method"],
        "data": row["data"],
        "d": row["latent"],
        "log p(x) >=": _number(row["log p(x) >="]) + error,
        "IWAE": _number(row["iwae"]),
        "log p(x) ~": _number(row["log p(x) ~"]),
        "Parzen (training)": _number(row["parzen"], ".1f") + training,
        "drawn <=": _number(row["simulated <="]),
        "gap": _number(row["gap"]),
        "certificate": row["certificate"],
        "params": f"{row['parameters'] / 1000:.0f}k",
        "train": f"{row['seconds']:.0f} s",
    }


def _row(version: "RegisteredVersion") -> dict[str, Any]:
    """What a program sees of a version."""
    from avb_service.tracking.publish import HELD_OUT, SCORED_ON

    metrics, tags = version.metrics, version.tags
    return {
        "model": version.uri,
        "alias": ", ".join(version.aliases),
        "method": tags.get("method", ""),
        "latent": tags.get("latent_dim", ""),
        "log p(x) >=": metrics.get(HELD_OUT),
        "stderr": metrics.get(f"{HELD_OUT}.stderr"),
        "iwae": next((value for name, value in sorted(metrics.items()) if re.fullmatch(REFINED, name)), None),
        "log p(x) ~": metrics.get("test/log_likelihood.elbo_adversarial.estimate"),
        "parzen": metrics.get("test/parzen"),
        "parzen_training": metrics.get("test/parzen_training"),
        "simulated <=": metrics.get("certificate/simulated.upper"),
        "gap": metrics.get("certificate/gap"),
        "certificate": tags.get("certificate", ""),
        "promotion": tags.get("promotion", ""),
        "parameters": int(tags.get("parameters", 0)),
        "seconds": float(tags.get("train_seconds", 0)),
        "data": tags.get("data", ""),
        "scored_on": tags.get(SCORED_ON, ""),
    }


def _number(value: float | None, digits: str = ".2f") -> str:
    return "" if value is None else f"{value:{digits}}"
