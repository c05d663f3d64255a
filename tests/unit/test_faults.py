"""Whatever is wrong with a setting is said in one line, which names its path once and no member of a union but the one
that was written; by the kind: every field of every section that there is, all members of unions included."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from avb_service.config import Config
from avb_service.errors import ConfigError
from avb_service.schema import beneath, is_section, members, names, table_of
from avb_service.settings import ExperimentConfig
from avb_service.trees import Tree, child
from avb_service.tuning.space import SpaceConfig

WRONG: tuple[Any, ...] = (
    None, True, -7.5, 10**400, "two\nlines", [], ["wrong", [1]], [{"wrong": 1}], {}, {"wrong": [], "name": "wrong"},
)  # fmt: skip
LABEL = re.compile(r"\b(tuple|list|dict|union|literal|nullable|function|constrained)[-\[]|Config\b|Input\b|Value error")
BASES: dict[type[Config], Tree] = {
    ExperimentConfig: {"algorithm": {"name": "vae"}, "data": {"name": "digits", "binarisation": "dynamic"}},
    SpaceConfig: {"name": "x", "preset": "vae_digits", "space": {"training.rounds": {"choice": [1, 2]}}},
}
Place = tuple[tuple[Any, ...], Any, Tree]


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with something else at a place; lists have one element."""
    if not path:
        return value
    if isinstance(path[0], int):
        return [put(None, path[1:], value)]
    below = tree if isinstance(tree, dict) else {}
    return {**below, path[0]: put(below.get(path[0]), path[1:], value)}


def choices(annotation: Any) -> Iterator[Any]:
    """The members of a union, and of an open table."""
    for member in members(annotation):
        open_ = table_of(member) if is_section(member) else None
        yield from (open_.section(each) for each in open_.table.own.values()) if open_ else (member,)


def places(annotation: Any, path: tuple[Any, ...], tree: Tree, seen: set[type]) -> Iterator[Place]:
    """Every place below one, with a tree that has it: every section once, as a member of some union."""
    if path:
        yield path, annotation, tree
    for member in choices(annotation):
        if is_section(member):
            if member in seen:
                continue
            seen.add(member)
            chosen = put(tree, path, {"name": names(member)[0]}) if path and names(member) else tree
            for key in member.model_fields:
                yield from places(beneath(member, key), (*path, key), chosen, seen)
        elif (each := beneath(member, "wrong")) is not None:
            key = next(iter(child_at(tree, path) or {}), "some.key")
            yield from places(each, (*path, key), tree, seen)
        elif (each := beneath(member, 0)) is not None:
            yield from places(each, (*path, 0), tree, seen)


def child_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = child(tree, part)
    return tree


ALL = [(section, *place) for section, base in BASES.items() for place in places(section, (), base, set())]


def lines(section: type[Config], tree: Tree) -> list[str]:
    try:
        section.parse(tree)
    except ConfigError as error:
        return error.problems
    return []


def fine(line: str, path: str) -> bool:
    """Whether a line is one, and about the place."""
    named = line.split(": ")[0]
    once = line.count(named) == 1 or "." not in named
    return line.isprintable() and named.startswith(path) and once and not LABEL.search(line)


def new(section: type[Config], tree: Tree, before: list[str], path: tuple[Any, ...], value: Any) -> list[str]:
    """What is said of the value, and not without it."""
    return [line for line in lines(section, put(tree, path, value)) if line not in before]


@pytest.fixture(autouse=True)
def _no_trials(monkeypatch):
    """A space is not tried out: what is wrong with a trial is said by the configuration of that."""
    monkeypatch.setattr(SpaceConfig, "problems", Config.problems)


def test_the_walk_comes_to_every_section():
    found = {kind for _, _, annotation, _ in ALL for kind in choices(annotation) if is_section(kind)}
    assert len(found) > 40 and len(ALL) > 300


@pytest.mark.parametrize("section", BASES, ids=lambda section: section.__name__)
def test_a_wrong_value_is_one_line_at_its_place(section):
    said = 0
    for _, path, _, tree in (place for place in ALL if place[0] is section):
        dotted, before = ".".join(map(str, path)), lines(section, tree)
        for value in WRONG:
            told = new(section, tree, before, path, value)
            said += bool(told)
            about = [line for line in told if line.startswith(dotted)]  # others are of sections that do not go together
            assert all(fine(line, dotted) for line in about), (value, about)
            assert len(about) <= 2 and len({line.split(":")[0] for line in about}) == len(about), (value, about)
    assert said > 100


@pytest.mark.parametrize("section", BASES, ids=lambda section: section.__name__)
def test_an_unknown_key_is_told_with_those_of_the_section_where_it_stands_and_of_no_other(section):
    for _, path, annotation, tree in (place for place in ALL if place[0] is section):
        dotted, before = ".".join(map(str, path)), lines(section, tree)
        for member in filter(is_section, choices(annotation)):
            given = {"name": names(member)[0]} if names(member) else child_at(tree, path) or {}
            known, longest = ", ".join(sorted(member.model_fields)), max(member.model_fields, key=len)
            told = new(section, tree, before, path, {**given, "?": 1, f"{longest}x": 1})
            assert f"{dotted}.?: unknown key; known here: {known}" in told
            assert f"{dotted}.{longest}x: unknown key; did you mean {longest}? known here: {known}" in told


@pytest.mark.parametrize("section", BASES, ids=lambda section: section.__name__)
def test_an_unknown_name_is_told_with_the_nearest_and_all_that_there_are(section):
    for _, path, annotation, tree in (place for place in ALL if place[0] is section and names(place[2])):
        first, *_ = names(annotation)
        place = (*path, "name") if any(map(is_section, members(annotation))) else path
        start = f"{'.'.join(map(str, place))}: given '{first}x', expected "
        (line,) = (each for each in lines(section, put(tree, place, f"{first}x")) if each.startswith(start))
        assert all(name in line for name in names(annotation)) and "; did you mean " in line


class Bird(Config):
    name: Literal["bird"] = "bird"
    wings: int = 2


class Fish(Config):
    name: Literal["fish"] = "fish"
    fins: Annotated[tuple[int, int] | int | None, Field()] = 2
    food: str | tuple[str, ...] | dict[str, Bird] | Bird = ()


class Zoo(Config):
    animals: tuple[Annotated[Bird | Fish, Field(discriminator="name")], ...] = ()


@pytest.mark.parametrize(
    ("animal", "line"),
    [
        ({"name": "fish", "wings": 2}, "animals.0.wings: unknown key; did you mean fins? known here: fins, food, name"),
        ({"name": "fish", "fins": "two"}, "animals.0.fins: given 'two', expected a list or a whole number"),
        ({"name": "fish", "fins": ["two", 2]}, "animals.0.fins.0: given 'two', expected a valid integer"),
        ({"name": "fish", "fins": [1, 2, 3]}, "animals.0.fins: given [1, 2, 3], expected at most 2 items, not 3"),
        ({"name": "fish", "food": 5}, "animals.0.food: given 5, expected text, a list or a mapping"),
        ({"name": "fish", "food": ["a", 5]}, "animals.0.food.1: given 5, expected a valid string"),
        ({"name": "fish", "food": {"name": "bird", "wings": "x"}},
         "animals.0.food.wings: given 'x', expected a valid integer"),
    ],
)  # fmt: skip
def test_only_the_member_of_a_union_is_heard_that_was_meant(animal, line):
    assert lines(Zoo, {"animals": [animal]}) == [line]


def test_a_list_that_is_required_is_not_called_missing_for_a_bad_element():
    base = BASES[SpaceConfig]
    assert lines(SpaceConfig, {**base, "preset": ["vae_digits", 5]}) == ["preset.1: given 5, expected a valid string"]


def test_text_that_no_file_can_hold_is_refused_where_it_is():
    tree = {**BASES[ExperimentConfig], "tracking": {"experiment": "caf\udce9"}}
    assert lines(ExperimentConfig, tree) == ["tracking.experiment: given 'caf\\udce9', expected text in UTF-8"]
