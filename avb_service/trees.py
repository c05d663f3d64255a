"""Nested mappings of plain values: read from YAML and written to it, changed and compared by dotted path.

Floor 0. Knows no section; what a scalar means where it stands is asked of whoever reads.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from avb_service.errors import UserError

Tree = dict[str, Any]
Location = tuple[int | str, ...]  # keys and indices, from the top of a tree down

LARGEST = 100_000  # values in a YAML file


class Scalar(NamedTuple):
    """A value that stands in YAML without quotation marks and is no text there: 2024, no, 1e-3, null.

    Attributes:
        text: as it is written.
        value: what YAML takes it for.
    """

    text: str
    value: Any


Meaning = Callable[[Location, Tree, Scalar], Any]  # of a scalar at its place in the tree; YAML's unless somebody knows


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as everybody who writes it means, and no key is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401  as PyYAML has it
        """Refuse a key that is there already, of which PyYAML would take the last."""
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (before := first.get(key.value)) is not None:
                twice = f"the key {key.value!r} is given twice; leave one out. It is"
                raise yaml.composer.ComposerError(twice, before.start_mark, "and again", key.start_mark)
            first[key.value] = key
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401  as PyYAML has it
        """Keep what is written beside what YAML takes it for."""
        value = super().construct_object(node, deep)
        plain = isinstance(node, yaml.ScalarNode) and not node.style and not isinstance(value, str)
        return Scalar(node.value, value) if plain else value


class _Dumper(yaml.SafeDumper):
    """Puts quotation marks around what the loader would not take for text."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str, source: str, meaning: Meaning | None = None) -> Any:  # noqa: ANN401  any YAML value
    """Parse YAML safely. Keys are text, as they are written.

    Args:
        text: the document.
        source: what to call it in an error.
        meaning: of scalars where they stand; what YAML takes them for by default.

    Raises:
        UserError: the text is not YAML, names the line; or it is nested or grows without measure.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > LARGEST:
            raise UserError(f"{source} holds more than {LARGEST} values once its aliases (*name) are written out")
        document = None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # the second for numbers and dates that there cannot be
        raise UserError(f"{source} is not valid YAML: {error}") from error
    tree = _settled(document, lambda location, scalar: scalar.value)
    return tree if meaning is None else _settled(document, lambda location, scalar: meaning(location, tree, scalar))


def quoted(text: str) -> str | None:
    """What stands between the quotation marks of a text that YAML reads as quoted as a whole; None of any other."""
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError:
        return None
    return node.value if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') else None


def to_yaml(tree: Tree) -> str:
    """A tree as YAML text, in its own order; `parse_yaml` gives it back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path, meaning: Meaning | None = None) -> Tree:
    """Read a YAML file that holds a mapping.

    Args:
        path: of the file.
        meaning: of scalars where they stand, as for `parse_yaml`.

    Raises:
        UserError: no such file, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    tree = parse_yaml(text, str(path), meaning)
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


def overridden(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Tree:
    """A copy of the tree with the value at each dotted path replaced or added, in their order."""
    return reduce(lambda below, item: override(below, *item), values.items(), dict(tree))


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


def child(node: Any, part: int | str) -> Any:  # noqa: ANN401
    """What stands under a key or index; None where there is nothing."""
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def without(node: Any, location: Location) -> Any:  # noqa: ANN401
    """The tree without what stands there; a list goes as a whole, so that the rest of a tree can be looked at."""
    if not location:
        return node
    if not isinstance(node, Mapping) or location[0] not in node:
        return node
    below = node[location[0]]
    if len(location) > 1 and isinstance(below, Mapping):
        return {**node, location[0]: without(below, location[1:])}
    return {key: value for key, value in node.items() if key != location[0]}


def _settled(node: Any, meaning: Callable[[Location, Scalar], Any], location: Location = ()) -> Any:  # noqa: ANN401
    """A document with every scalar as it is meant where it stands."""
    if isinstance(node, Scalar):
        return meaning(location, node)
    if isinstance(node, dict):
        keys = {key: key.text if isinstance(key, Scalar) else str(key) for key in node}
        return {name: _settled(node[key], meaning, (*location, name)) for key, name in keys.items()}
    if isinstance(node, list):
        return [_settled(value, meaning, (*location, index)) for index, value in enumerate(node)]
    return node


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds with its aliases written out; infinitely many where it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # what an alias of the node finds inside of it
        below = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        nodes = [] if isinstance(node, yaml.ScalarNode) else below
        known[id(node)] = 1 + sum(_size(child, known) for child in nodes)
    return known[id(node)]


def mapped(node: Any, leaf: Callable[[Any], Any]) -> Any:  # noqa: ANN401  any JSON value
    """The same tree, with what `leaf` makes of all that is neither a mapping nor a list; tuples become lists."""
    if isinstance(node, Mapping):
        return {key: mapped(value, leaf) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [mapped(value, leaf) for value in node]
    return leaf(node)
