"""Conditions: a setting that is searched only where others of the trial have given values.

Floor 9. A trial is a preset's resolved tree with the values that were drawn on top.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from avb_service.trees import Tree, flatten
from avb_service.tuning.domains import DomainConfig

Domains = Mapping[str, DomainConfig]


def in_order(space: Domains) -> list[str]:
    """Paths, each after those that its condition depends on; those in a circle last."""
    ordered: list[str] = []
    left = list(space)
    while left:
        free = [path for path in left if not any(decided_by(space, key) in left for key in space[path].when or ())]
        ordered += free or left
        left = [path for path in left if path not in ordered]
    return ordered


def decided_by(space: Domains, key: str) -> str | None:
    """The searched path that decides about a setting: its own, or that of a section which it is in."""
    above = key
    while above not in space and "." in above:
        above = above.rpartition(".")[0]
    return above if above in space else None


def stands(key: str, base: Tree, values: Mapping[str, Any]) -> Any:  # noqa: ANN401  any setting
    """What a trial has at a path; None where nothing.

    Args:
        key: the path.
        base: its preset, resolved.
        values: that were drawn, which stand above it.
    """
    node: Any = base
    parts = key.split(".")
    for i in range(len(parts), 0, -1):
        if (above := ".".join(parts[:i])) in values:
            node, parts = values[above], parts[i:]
            break
    for part in parts:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def holds(domain: DomainConfig, base: Tree, values: Mapping[str, Any]) -> bool:
    """Whether a trial meets a domain's condition."""
    return all(stands(key, base, values) in allowed(wanted) for key, wanted in (domain.when or {}).items())


def allowed(wanted: Any) -> list[Any]:  # noqa: ANN401  any setting
    """What a condition asks for: a value, or one of several."""
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def sections_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in an order in which none is lost under that of a section which it is in."""
    return dict(sorted(values.items(), key=lambda item: item[0].count(".")))


def completed(space: Domains, base: Tree, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Drawn values with what their conditions ask for besides; None where that cannot be."""
    found = dict(values)
    waiting = list(values)
    while waiting:
        for key, wanted in (space[waiting.pop()].when or {}).items():
            if stands(key, base, found) in allowed(wanted):
                continue
            above = decided_by(space, key)
            if above is None or above in found:
                return None
            fitting = next(_fitting(space[above], above, key, allowed(wanted)), None)
            if fitting is None:
                return None
            found[above] = fitting[0]
            waiting.append(above)
    return found if all(holds(space[path], base, found) for path in found) else None


def of_choice(domain: DomainConfig, value: Any) -> Any:  # noqa: ANN401  any setting
    """The section of a choice that a resolved one was made of, the most specific; any other value is itself."""
    name, values = domain.given()
    if name != "choice" or not isinstance(value, Mapping):
        return value
    leaves = flatten(value)
    made = [each for each in values if isinstance(each, Mapping) and flatten(each).items() <= leaves.items()]
    return max(made, key=len, default=value)


def _fitting(domain: DomainConfig, path: str, key: str, wanted: list[Any]) -> Iterator[tuple[Any]]:
    """Values of a domain, with which a setting at or below its path is as wanted."""
    candidates = domain.given()[1] if domain.given()[0] == "choice" else wanted
    for value in candidates:
        if domain.contains(value) and stands(key, {}, {path: value}) in wanted:
            yield (value,)
