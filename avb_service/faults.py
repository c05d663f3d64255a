"""What is wrong with a tree of settings, a line each: what was given where, and what was expected.

Floor 0. Pydantic tries every member of a union and reports what each of them says. Here the one that was meant is found
first, by its name or by the shape of what is given, and only that one is heard.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from avb_service.kinds import TAG, UNUSABLE
from avb_service.schema import at, beneath, described, is_section, keys, meant, members, names
from avb_service.trees import Location, child, flatten

UNKNOWN, MISSING = "extra_forbidden", "missing"  # pydantic's names
NO_MEMBER = "no_member"  # ours, of a value that is meant for no member of a union, or for any of several


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        location: of the value, or of the key.
        kind: pydantic's name for it, or NO_MEMBER.
        given: the value.
        expected: in pydantic's words.
    """

    location: Location
    kind: str
    given: Any
    expected: str


def validated(kind: Any, given: Any, config: Any = None) -> Any:  # noqa: ANN401
    """What is given as a section, or as another kind under the `config` of one.

    JSON mode: a list may be a tuple there, while "5" is still no int and 1 no bool.

    Raises:
        ValidationError: it is none.
    """
    text = json.dumps(given, default=str)
    if is_section(kind):
        return kind.model_validate_json(text, strict=True)
    return TypeAdapter(kind, config=config).validate_json(text, strict=True)


def faults(section: type[BaseModel], error: ValidationError, tree: Any) -> list[Fault]:  # noqa: ANN401
    """What pydantic says of a tree, heard of those members of unions that were meant."""
    return list(_heard(section, error, tree, section.model_config, ()))


def lines(
    section: type[BaseModel],
    found: Collection[Fault],
    tree: Any,  # noqa: ANN401
    aside: Collection[Location],
) -> Iterator[str]:
    """One line for each fault, without what only follows from another.

    Args:
        section: that the tree should be.
        found: in it.
        tree: what was given.
        aside: what has been taken out of it: a section may be empty, or lack something, for that alone.
    """
    for fault in found:
        others = {each.location for each in found} | (set(aside) if fault.given == {} else set())
        inner = any(_within(other, fault.location) and other != fault.location for other in others)
        if not inner and not (fault.kind == MISSING and any(_within(each, fault.location) for each in aside)):
            yield _line(section, fault, tree)


def doubtful(section: type[BaseModel], found: Iterable[Fault], tree: Any) -> Iterator[str]:  # noqa: ANN401
    """The keys whose value will be a default that nobody has chosen."""
    for fault in found:
        above, key = fault.location[:-1], str(fault.location[-1]) if fault.location else ""
        if fault.kind != UNKNOWN:
            yield key
        elif (near := _nearest(key, _known(section, fault, tree))) and near not in reduce(child, above, tree):
            yield near


def one_of(given: str, known: Collection[str]) -> str:
    """What is given, one of the names that there are.

    Raises:
        ValueError: it is none of them; lists them, and names the nearest.
    """
    if given not in known:
        raise ValueError(f"one of {', '.join(known)}{hint(given, known)}")
    return given


def nearest(given: object, known: Collection[str], count: int = 3) -> list[str]:
    """Names that may have been meant, the nearest first; none where none is near."""
    return difflib.get_close_matches(str(given), known, n=count)


def hint(given: object, known: Collection[str]) -> str:
    """Which name was probably meant, as the end of a message; empty where none is near."""
    near = _nearest(given, known)
    return f"; did you mean {near}?" if near else ""


def _within(location: Location, other: Location) -> bool:
    return location[: len(other)] == other


def _nearest(given: object, known: Collection[str]) -> str | None:
    return next(iter(nearest(given, known, 1)), None)


def _known(section: type[BaseModel], fault: Fault, tree: Any) -> list[str]:  # noqa: ANN401
    """The keys that there could be in place of an unknown one."""
    above = fault.location[:-1]
    return sorted(keys(at(section, above, tree), reduce(child, above, tree)))


def _heard(kind: Any, error: ValidationError, given: Any, config: Any, above: Location) -> Iterator[Fault]:  # noqa: ANN401
    asked: set[Location] = set()
    for item in error.errors(include_url=False):
        location, union = _located(kind, item["loc"], given)
        if union is None:
            yield Fault((*above, *location), item["type"], item["input"], _expected(item["msg"]))
        elif location not in asked:
            asked.add(location)
            yield from _of_member(union, reduce(child, location, given), config, (*above, *location))


def _located(kind: Any, loc: Location, given: Any) -> tuple[Location, Any]:  # noqa: ANN401
    """Where in what is given pydantic means, without its labels for the members of unions.

    Returns:
        The location; and the union there, where the rest is about one of several members which pydantic has tried.
    """
    location: Location = ()
    for part in loc:
        choices = members(kind)
        if len(choices) > 1:
            if not (named := [each for each in choices if part in names(each)]):
                return location, kind
            kind = named[0]
            continue
        inner = meant(choices[0], given) if choices else ()
        location, given = (*location, part), child(given, part)
        kind = beneath(inner[0], part) if inner else None
    return location, None


def _of_member(union: Any, given: Any, config: Any, location: Location) -> Iterator[Fault]:  # noqa: ANN401
    """What the member says that was meant; where none was, or one of several, what is allowed."""
    found: list[Fault] = []
    if len(choices := meant(union, given)) == 1:
        try:
            validated(choices[0], given, config)
        except ValidationError as error:
            found = list(_heard(choices[0], error, given, config, location))
    of_type = any(fault.location == location and fault.kind.endswith("_type") for fault in found)
    yield from found if found and not of_type else [Fault(location, NO_MEMBER, given, described(union))]


def _expected(message: str) -> str:
    """Pydantic's words, on one line, as what was expected."""
    text = re.sub(r"^(Value error, |Input should be |\w+ should have )|( after validation)", "", message)
    return " ".join(text.split())


def _line(section: type[BaseModel], fault: Fault, tree: Any) -> str:  # noqa: ANN401
    parts, given, kind = [*map(str, fault.location)], fault.given, at(section, fault.location, tree)
    match fault.kind:
        case "extra_forbidden":
            known = _known(section, fault, tree)
            text = f"unknown key{hint(parts[-1], known) or ';'} known here: {', '.join(known)}"
        case "json_invalid":  # the only text that Python has and JSON has not
            parts, given = next(([path], value) for path, value in flatten(tree).items() if not _in_unicode(value))
            text = f"given {given!r}, expected text in UTF-8"
        case "missing":
            text = "required, but not given"
        case "union_tag_not_found":
            text = f"needs a '{TAG}' that selects its kind, one of {', '.join(names(kind))}; given {given!r}"
        case "union_tag_invalid":
            parts, given = [*parts, TAG], given[TAG]
            text = f"given {given!r}, expected one of {', '.join(names(kind))}{hint(given, names(kind))}"
        case plugin if plugin == UNUSABLE:
            text = fault.expected
        case "model_type" | "dict_type":
            text = f"given {given!r}, expected {_section(kind, given)}"
        case "tuple_type" | "list_type":
            text = f"given {given!r}, expected a list"
        case _:
            text = f"given {given!r}, expected {fault.expected}{hint(given, names(kind))}"
    return f"{'.'.join(parts) or '(top)'}: {text}"


def _in_unicode(value: Any) -> bool:  # noqa: ANN401
    try:
        return bool(json.dumps(value, ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError:
        return False


def _section(kind: Any, given: Any) -> str:  # noqa: ANN401
    """What there should be in place of a value that is no section."""
    if kinds := names(kind):
        name = given if given in kinds else _nearest(given, kinds) or kinds[0]
        return f"a section, such as {{{TAG}: {name}}}"
    known = keys(kind, None)
    return f"a section, with keys among {', '.join(known)}" if known else "a mapping, such as {key: value}"
