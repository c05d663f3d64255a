"""What commands and results tell, as tables for people: printed to a console, the terminal's by default.

Floor 8. Nothing heavy is imported before it is needed, so that help answers at once.
"""

import json
import math
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from avb_service.records import Check, LikelihoodRecord

out = Console() if sys.stdout.isatty() else Console(width=120)
ERR = Console(stderr=True)  # for what goes on meanwhile, and what is wrong

# Of the leaderboard's columns: those that hold words; those that a terminal may have no room for, the first to go
# first; and what they mean.
WORDS = ("model", "alias", "method", "data", "certificate")
DETAILS = ("params", "train", "drawn <=", "data", "gap", "IWAE", "log p(x) ~", "Parzen (training)")
APART = "Between two lines: scored on the same data, by the same measure; only such numbers can be compared."
NOTES = {
    "model": "*: new.  ±: standard error over data.",
    "IWAE": "IWAE: iwae_mixture, another lower bound on the same data; searches compare by it on validation data.",
    "log p(x) ~": "~: what an adversary believes; it bounds nothing.",
    "drawn <=": "drawn <=: upper bound on data that the model drew itself.",
    "gap": "gap: between the two bounds on such data, plus 2 s.e.",
    "Parzen (training)": "Parzen: a density around samples, and beside it that around training data; no log p(x).",
}


def line(text: str, console: Console | None = None, style: str | None = None) -> None:
    """A text as it is, which the terminal breaks and not we."""
    (console or out).print(text, markup=False, highlight=False, style=style, soft_wrap=True)


def lines(rows: "Sequence[Mapping[str, Any]]", title: str, console: Console | None = None) -> None:
    """Rows that have the same keys."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    (console or out).print(table)


def methods(rows: "Sequence[Mapping[str, Any]]", console: Console | None = None) -> None:
    """What each is, what it can do, and its presets: in blocks, so that names are whole on a narrow terminal."""
    table = Table(box=SIMPLE, show_header=False, title="Methods")
    for row in rows:
        said = [row["about"], _abilities(row), f"presets: {' '.join(row['presets'])}"]
        said += [f"of the package {row['package']}"] if row["package"] else []
        table.add_row(row["name"], "\n".join(filter(None, said)), end_section=True)
    (console or out).print(table, highlight=False)


def _abilities(row: "Mapping[str, Any]") -> str:
    """What a method can do, in a line; empty where nobody has looked."""
    if row["draws"] is None:
        return ""
    kinds = ", ".join(row["log_likelihood"]).replace("_", " ") or "none"
    draws = {"prior": "p(z)"}.get(row["draws"], row["draws"])
    noise = ", under a noise that you name" if row["needs_noise"] else ""
    return f"draws: {draws};  encodes: {'yes' if row['encodes'] else 'no'};  log p(x): {kinds}{noise}"


def plan(rows: "Sequence[Mapping[str, Any]]", title: str, console: Console | None = None) -> None:
    """A round on so many workers each."""
    columns = ("workers", "computing, ms", "averaging, ms", "round, ms", "times as fast", "hours of training")
    table = Table(*columns, box=SIMPLE, title=title)
    for row in rows:
        times = (f"{1000 * row[name]:.2f}" for name in ("computing_s", "averaging_s", "round_s"))
        table.add_row(str(row["workers"]), *times, f"{row['speedup']:.2f}", f"{row['training_s'] / 3600:.2f}")
    (console or out).print(table)


def trials(rows: "Sequence[Mapping[str, Any]]", title: str, console: Console | None = None) -> None:
    """Trials of a search, best first."""
    if not rows:
        line(f"{title}: no trial has begun", console)
        return
    table = Table("trial", "objective", "rounds", "seconds", "ended", "settings", title=title, box=SIMPLE)
    for row in rows:
        objective = "" if row["objective"] is None else f"{row['objective']:.2f}"
        drawn = ", ".join(f"{each['setting']}={_short(each['value'])}" for each in row["settings"])
        cells = (row["trial"], objective, str(row["rounds"]), f"{row['train_seconds']:.0f}", row["status"], drawn)
        table.add_row(*map(escape, cells))
    (console or out).print(table, highlight=False)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def datasets(rows: "Sequence[Mapping[str, Any]]", console: Console | None = None) -> None:
    """The data sets that have a name."""
    shown = [{**row, "values": row["values"] or "as in the file", "package": row["package"] or "ours"} for row in rows]
    lines(shown, "Data sets", console)


def settings(rows: "Sequence[Mapping[str, Any]]", title: str, console: Console | None = None) -> None:
    """Each setting as YAML has it, and what it is; a section stands above what is in it."""
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("setting", no_wrap=True)
    for name in ("value", "about"):
        table.add_column(name, overflow="fold")
    sections = {row["setting"].rpartition(".")[0] for row in rows}
    for row in rows:
        value = "" if row["setting"] in sections else json.dumps(row["value"])
        table.add_row(*map(escape, (row["setting"], value, row["about"])))
    (console or out).print(table, highlight=False)


def estimates(
    record: "LikelihoodRecord", title: str, other_data: str | None = None, console: Console | None = None
) -> None:
    """Likelihoods, each with its kind and error bar; what the certificate says; what speaks against an adversary.

    Args:
        record: all of it.
        title: of the table.
        other_data: that they are of other data than the model's own, if so.
        console: where to.
    """
    from avb_service.records import HOLDS, verdict

    rows = [
        {
            "estimator": e.name,
            "nats per datum": f"{e.value:.3f} ± {e.stderr:.3f}",
            "kind": e.meaning,
            "data": len(e.per_datum),
            "own error": "" if math.isnan(e.own_error) else f"{e.own_error:.3f}",
            "time": "" if math.isnan(e.seconds) else f"{e.seconds:.0f} s",
        }
        for e in record.estimates
    ]
    rows += [
        {
            "estimator": f"{e.name}, upper",
            "nats per datum": f"{e.diagnostics['upper']:.3f}",
            "kind": e.meaning.replace("lower", "upper"),
            "data": len(e.per_datum),
        }
        for e in record.estimates
        if e.quantity == "simulated"
    ]
    lines(rows, title, console)
    if other_data is not None:
        (console or out).print(f"{other_data}.", markup=False)
    if record.shortfall is not None:
        (console or out).print(f"{record.shortfall}.", markup=False)
    if record.certificate is not None:
        _checks(record.certificate.checks, f"Certificate of ais: {record.certificate.verdict}", console)
        (console or out).print(HOLDS, markup=False)
    if doubts := record.doubts:
        _checks(doubts, f"What speaks against the adversary: {verdict(doubts)}", console)
        (console or out).print("Each that fails is enough to convict it; all that pass do not acquit it.", markup=False)


def _checks(checks: "Sequence[Check]", title: str, console: Console | None) -> None:
    rows = [
        {
            "check": check.meaning,
            "measured": f"{check.value:.3g}",
            "limit": f"{check.relation} {check.limit:.3g}",
            "passed": "yes" if check.passed else "NO",
        }
        for check in checks
    ]
    lines(rows, title, console)


def hosts(rows: "Sequence[Mapping[str, Any]]", console: Console | None = None) -> None:
    """What each host of a cluster has."""
    lines([_host(row) for row in rows], "Hosts", console)


def _host(row: "Mapping[str, Any]") -> dict[str, str]:
    joined = row["ray_cpus"] is not None
    return {
        "host": row["address"],
        "name": row["hostname"],
        "python": row["python"],
        **{name: row[name] or "to be installed" for name in ("ray", "torch", "mlflow")},
        "CPUs": str(row["cpus"]),
        "GPUs": str(row["gpus"]),
        "Ray": f"{row['ray_cpus']:g} CPUs, {row['ray_gpus']:g} GPUs" if joined else "-",
    }


def leaderboard(rows: "Sequence[Mapping[str, Any]]", console: Console | None = None) -> None:
    """Held-out lower bounds, or Parzen windows; what only an adversary believes stands apart.

    Models that were scored on other data, or by another measure, stand apart: their numbers cannot be compared.

    Args:
        rows: in their order.
        console: where to.
    """
    if not rows:
        (console or out).print("no model is registered yet")
        return
    cells = [_cells(row) for row in rows]
    ends = [row["scored_on"] != after["scored_on"] for row, after in pairwise(rows)]
    names = [name for name in cells[0] if name not in DETAILS or any(line[name] for line in cells)]
    console = console or out
    endless = console.options.update(width=10_000)
    for detail in DETAILS:
        if console.measure(_board(names, cells, ends), options=endless).maximum <= console.width:
            break
        names = [name for name in names if name != detail]
    console.print(_board(names, cells, ends))
    notes = [note for name, note in NOTES.items() if name in names]
    notes += [
        f"!: {row['model']} has an estimate that is too low, by {row['shortfall']:.2f} at least, as "
        f"{row['shortfall_by']} shows."
        for row in rows
        if row["shortfall"] is not None
    ]
    notes += [f"external: not made here; {row['name']} is {row['model']}." for row in rows if row["version"] is None]
    console.print("\n".join([*notes, *([APART] if any(ends) else [])]), markup=False)


def _board(names: "Sequence[str]", cells: "Sequence[Mapping[str, str]]", ends: "Sequence[bool]") -> Table:
    """The table with some of the columns, and a line after each row with which a group ends; the last has no need."""
    table = Table(title="Held-out data, nats per datum", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in WORDS else "right", no_wrap=True)
    for line, end in zip(cells, [*ends, False], strict=True):
        table.add_row(*(line[name] for name in names), end_section=end)
    return table


def _called(row: "Mapping[str, Any]") -> str:
    """A registered model by its version; what was not made here by its owner's name for it."""
    return row["name"] if row["version"] is None else row["model"].removeprefix("models:/")


def _cells(row: "Mapping[str, Any]") -> dict[str, str]:
    """What a person sees of a row."""
    error = _number(row["log_likelihood_stderr"], " ± {:.2f}")
    return {
        "model": _called(row) + (" *" if row["new"] else ""),
        "alias": ", ".join(row["aliases"]),
        "method": row["method"] or "",
        "data": row["data"] or "",
        "d": _number(row["latent_dim"], "{}"),
        "log p(x) >=": _number(row["log_likelihood"]) + error + ("" if row["shortfall"] is None else " !"),
        "IWAE": _number(row["iwae_refined"] if row["iwae_mixture"] is None else row["iwae_mixture"]),
        "log p(x) ~": _number(row["elbo_adversarial"]),
        "Parzen (training)": _number(row["parzen"], "{:.1f}") + _number(row["parzen_training"], " ({:.1f})"),
        "drawn <=": _number(row["simulated_upper"]),
        "gap": _number(row["gap"]),
        "certificate": row["certificate"] or "",
        "params": _number(row["parameters"] and row["parameters"] / 1000, "{:.0f}k"),
        "train": _number(row["train_seconds"], "{:.0f} s"),
    }


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)
