"""Strict configuration trees: YAML to frozen, typed sections and back.

Floor 0. Each section of a configuration is a `Config` that lives beside the code that it configures; this module
only knows how to read one strictly and how to say, all at once, what is wrong with it.
"""

import difflib
import inspect
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from avb_service.errors import ConfigError, UserError

Tree = dict[str, Any]

LARGEST = 100_000  # values in a YAML file
TAG = "name"  # the key that selects a member wherever a section has several kinds


class Config(BaseModel):
    """A frozen section of the configuration; unknown keys, wrong types and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def parse(cls, tree: Mapping[str, Any], source: str = "configuration", found: Sequence[str] = ()) -> Self:
        """Read a tree strictly.

        Args:
            tree: nested mappings as YAML gives them.
            source: what to call the tree in an error.
            found: problems that are known already, to be told with the rest.

        Raises:
            ConfigError: with every problem found. Sections that fail are set aside and the rest is checked
                again, so that an incompatible pair is reported beside a misspelt key; but not one that is about
                a default which was taken only because what was given for it is wrong or misspelt.
        """
        problems: list[str] = [*found]
        aside: set[tuple[int | str, ...]] = set()
        doubtful: set[str] = set()
        rest: Any = _text_keys(tree)
        while True:
            try:
                # JSON mode: a list may be a tuple there, while "5" is still no int and 1 no bool.
                parsed = cls.model_validate_json(json.dumps(rest, default=str), strict=True)
            except ValidationError as error:
                problems += [line for line in _lines(cls, error, rest, aside) if line not in problems]
                doubtful.update(_doubtful(cls, error, rest))
                aside.update(_path(e["loc"], rest) for e in error.errors())
                pruned = _without(rest, aside)
                if pruned == rest:
                    break
                rest = pruned
            else:
                checked = (line for line in parsed.problems() if not doubtful & set(re.findall(r"\w+", line)))
                problems += [line for line in checked if line not in problems]
                if not problems:
                    return parsed
                break
        raise ConfigError(problems, source)

    def problems(self) -> Iterator[str]:
        """Lines `path: what does not fit together`, for checks that span several fields."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Config):
                yield from (f"{name}.{line}" for line in value.problems())

    def tree(self) -> Tree:
        """The resolved section as plain YAML values, defaults included."""
        return self.model_dump(mode="json")

    @classmethod
    def explained(cls) -> dict[str, str]:
        """What each field is, by the `Attributes:` of the section's docstring and of those that it extends."""
        texts = {TAG: "which kind it is."}
        for section in reversed(cls.__mro__):
            if issubclass(section, Config):
                texts |= _attributes(section)
        return {name: texts.get(name, "") for name in cls.model_fields}

    def settings(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """Dotted path, plain value and what it is, in the order of the definition; a section stands before its own."""
        for (name, about), value in zip(self.explained().items(), self.tree().values(), strict=True):
            yield f"{prefix}{name}", value, about
            if isinstance(below := getattr(self, name), Config):
                yield from below.settings(f"{prefix}{name}.")

    def to_yaml(self) -> str:
        """The resolved section as YAML text, in the order of its definition."""
        return yaml.safe_dump(self.tree(), sort_keys=False)


def _attributes(section: type[Config]) -> dict[str, str]:
    """What a docstring in Google's style says of each attribute."""
    _, _, listed = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as everybody who writes it means, and no key is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401  as PyYAML has it
        """Refuse a key that is there already, of which PyYAML would take the last."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (before := first.get((key.tag, key.value))) is not None:
                twice = f"the key {key.value!r} is given twice; leave one out. It is"
                raise yaml.composer.ComposerError(twice, before.start_mark, "and again", key.start_mark)
            first[key.tag, key.value] = key
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401  any YAML value
    """Parse YAML safely.

    Raises:
        UserError: the text is not YAML, names the line; or it is nested or grows without measure.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > LARGEST:
            raise UserError(f"{source} holds more than {LARGEST} values once its aliases (*name) are written out")
        return None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # the second for numbers and dates that there cannot be
        raise UserError(f"{source} is not valid YAML: {error}") from error


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds with its aliases written out; infinitely many where it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # what an alias of the node finds inside of it
        below = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        nodes = [] if isinstance(node, yaml.ScalarNode) else below
        known[id(node)] = 1 + sum(_size(child, known) for child in nodes)
    return known[id(node)]


def read_yaml(path: Path) -> Tree:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: no such file, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        holds = "is empty" if tree is None else f"holds {type(tree).__name__}"
        raise UserError(f"{path} {holds}, expected a mapping, lines such as 'name: value'")
    return tree


def override(tree: Mapping[str, Any], path: str, value: Any) -> Tree:  # noqa: ANN401
    """A copy of the tree with the value at the dotted path replaced or added."""
    head, _, tail = path.partition(".")
    below = tree.get(head)
    inner = override(below if isinstance(below, Mapping) else {}, tail, value) if tail else value
    return {**tree, head: inner}


def parse_overrides(assignments: Sequence[str]) -> tuple[Tree, list[str]]:
    """Parse `algorithm.adversary.steps=2`.

    Returns:
        A mapping from dotted path to YAML value; and what is wrong with assignments that are none, a line each.
    """
    values: Tree = {}
    problems = []
    for assignment in assignments:
        path, given, text = assignment.partition("=")
        if not given:
            problems.append(f"--set {assignment}: expected PATH=VALUE, such as algorithm.adversary.steps=2")
            continue
        try:
            values[path.strip()] = parse_yaml(text, f"--set {path}")
        except UserError as error:
            problems.append(" ".join(str(error).split()))
    return values, problems


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differing leaves of two trees, one line `path: old -> new` each."""
    before, after = flatten(old), flatten(new)
    missing = "(absent)"
    return [
        f"{path}: {before.get(path, missing)} -> {after.get(path, missing)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, missing) != after.get(path, missing)
    ]


def must_match(old: Mapping[str, Any], new: Mapping[str, Any], claim: str, remedy: str) -> None:
    """Refuse to go on with something under another configuration.

    Args:
        old: what it was begun with.
        new: what is given now.
        claim: what the difference means.
        remedy: what to do.

    Raises:
        UserError: they differ; has the differing lines.
    """
    if lines := difference(old, new):
        raise UserError("\n  ".join([f"{claim}; differing:", *lines]) + f"\n{remedy}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Dotted path to leaf."""
    leaves: Tree = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= flatten(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return leaves


def _path(loc: tuple[int | str, ...], tree: Any) -> tuple[int | str, ...]:  # noqa: ANN401
    """Pydantic's location without the member tags that it inserts for unions."""
    path: list[int | str] = []
    node = tree
    for part in loc:
        if isinstance(node, Mapping) and node.get(TAG) == part and part not in node:
            continue
        path.append(part)
        node = _child(node, part)
    return tuple(path)


def _child(node: Any, part: int | str) -> Any:  # noqa: ANN401
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _without(tree: Any, paths: Iterable[tuple[int | str, ...]]) -> Any:  # noqa: ANN401
    """The tree without the values at the given paths, so that the rest can be looked at."""
    for path in paths:
        tree = _drop(tree, path)
    return tree


def _drop(node: Any, path: tuple[int | str, ...]) -> Any:  # noqa: ANN401
    if not path:
        return node
    if isinstance(node, list):  # a list with a bad element is set aside as a whole by its owner
        return []
    if not isinstance(node, Mapping) or path[0] not in node:
        return node
    below = node[path[0]]
    if len(path) > 1 and isinstance(below, Mapping):
        return {**node, path[0]: _drop(below, path[1:])}
    return {key: value for key, value in node.items() if key != path[0]}


def _text_keys(node: Any) -> Any:  # noqa: ANN401
    """The tree with keys that YAML takes for dates or numbers as text, so that they are reported as unknown."""
    if isinstance(node, Mapping):
        return {key if isinstance(key, str) else str(key): _text_keys(value) for key, value in node.items()}
    return [_text_keys(value) for value in node] if isinstance(node, list) else node


def _lines(
    model: type[Config], error: ValidationError, tree: Any, aside: Collection[tuple[int | str, ...]]  # noqa: ANN401
) -> list[str]:
    """What is wrong, without what only follows from it: a list is short of its bad elements, a bad value set aside."""
    lines = []
    paths = [_path(item["loc"], tree) for item in error.errors()]
    for item, path in zip(error.errors(), paths, strict=True):
        emptied = aside if item["input"] == {} else ()  # all that was given there is set aside
        inner = any(len(other) > len(path) and other[: len(path)] == path for other in (*paths, *emptied))
        if inner or (item["type"] == "missing" and path in aside):
            continue
        dotted = ".".join(map(str, path)) or "(top)"
        if item["type"] == "extra_forbidden":
            known, near = _known(model, path, tree)
            hint = f"did you mean {near}?" if near else f"known here: {', '.join(sorted(known))}"
            lines.append(f"{dotted}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{dotted}: required, but not given")
        elif item["type"] in ("model_type", "dict_type"):
            lines.append(f"{dotted}: given {item['input']!r}, expected {_section(model, path, tree)}")
        elif item["type"] == "union_tag_not_found":
            lines.append(f"{dotted}: needs a '{TAG}' that selects its kind; given {item['input']!r}")
        elif item["type"] == "union_tag_invalid":
            context = item["ctx"]
            lines.append(f"{dotted}.{TAG}: given {context['tag']!r}, expected one of {context['expected_tags']}")
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            lines.append(f"{dotted}: given {item['input']!r}, expected {message}")
    return lines


def _section(model: type[Config], path: Sequence[int | str], tree: Any) -> str:  # noqa: ANN401
    """What there should be in place of a value that is no section."""
    given, keys = reduce(_child, path, tree), _fields(model, path, tree)
    if TAG in keys:
        return f"a section, such as {{{TAG}: {given if isinstance(given, str) else '...'}}}"
    return f"a section, with keys among {', '.join(keys)}" if keys else "a mapping, such as {key: value}"


def _doubtful(model: type[Config], error: ValidationError, tree: Any) -> Iterator[str]:  # noqa: ANN401
    """The keys whose value will be a default that nobody has chosen."""
    for item in error.errors():
        path = _path(item["loc"], tree)
        if item["type"] != "extra_forbidden":
            yield from map(str, path[-1:])
        elif (near := _known(model, path, tree)[1]) and _child(reduce(_child, path[:-1], tree), near) is None:
            yield near


def _known(model: type[Config], path: Sequence[int | str], tree: Any) -> tuple[list[str], str | None]:  # noqa: ANN401
    """The keys that there could be in place of an unknown one, and the one that was probably meant."""
    known = _fields(model, path[:-1], tree)
    return known, next(iter(difflib.get_close_matches(str(path[-1]), known, n=1)), None)


def _fields(annotation: Any, path: Sequence[int | str], tree: Any) -> list[str]:  # noqa: ANN401
    """The keys that the section at the path may have."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, type(int | str)):
        members = [m for m in get_args(annotation) if m is not type(None)]
        tag = tree.get(TAG) if isinstance(tree, Mapping) else None
        chosen = [m for m in members if hasattr(m, "model_fields") and TAG in m.model_fields
                  and tag in get_args(m.model_fields[TAG].annotation)]
        annotation = (chosen or members)[0]
    if not hasattr(annotation, "model_fields"):
        return []
    if not path:
        return list(annotation.model_fields)
    field = annotation.model_fields.get(str(path[0]))
    return _fields(field.annotation, path[1:], _child(tree, path[0])) if field else []

