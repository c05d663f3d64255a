"""Strict configuration sections: frozen, typed, read from plain trees and written back to them.

Floor 0. Each section of a configuration is a `Config` that lives beside the code that it configures; this module
only knows how to read one strictly and how to say, all at once, what is wrong with it.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from avb_service.errors import ConfigError, UserError
from avb_service.faults import doubtful, faults, lines, validated
from avb_service.kinds import TAG, Table, gathered, mark
from avb_service.schema import as_meant, at, names, wants_more, wants_text
from avb_service.trees import Location, Scalar, Tree, override, parse_yaml, quoted, to_yaml, without


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
        aside: set[Location] = set()
        defaults: set[str] = set()
        rest: Any = tree
        while True:
            try:
                parsed: Self = validated(cls, rest)
            except ValidationError as error:
                wrong = faults(cls, error, rest)
                problems += [line for line in lines(cls, wrong, rest, aside) if line not in problems]
                defaults.update(doubtful(cls, wrong, rest))
                aside.update(fault.location for fault in wrong)
                pruned = reduce(without, aside, rest)
                if pruned == rest:
                    break
                rest = pruned
            else:
                checked = (line for line in parsed.problems() if not defaults & set(re.findall(r"\w+", line)))
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

    def chosen(self) -> Iterator[tuple[Table[Any], str]]:
        """What is chosen from open tables, here and below: the table, and the name."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if found := mark(field.metadata):
                yield found.table, value if isinstance(value, str) else getattr(value, TAG)
            if isinstance(value, Config):
                yield from value.chosen()

    def packages(self) -> dict[str, str]:
        """Packages that what was chosen comes from, and their versions; without ours."""
        return gathered(found for table, name in self.chosen() if (found := table.origin(name)))

    @classmethod
    def kind_at(cls, location: Location, tree: Tree) -> Any:  # noqa: ANN401
        """The annotation of what stands at a place in the section's tree; None where nothing can."""
        return at(cls, location, tree)

    @classmethod
    def meaning(cls, location: Location, tree: Tree, scalar: Scalar) -> Any:  # noqa: ANN401
        """What is written there without quotation marks, as the section wants it: its very text for a text setting."""
        return as_meant(cls.kind_at(location, tree), scalar)

    @classmethod
    def assigned(cls, tree: Tree, assignments: Sequence[str]) -> tuple[Tree, list[str]]:
        """A tree of the section with assignments such as `algorithm.adversary.steps=2` on top.

        A text setting takes all that follows the first `=`, with blanks and #, unless YAML reads that as quoted; any
        other setting takes what YAML makes of it.

        Returns:
            The tree; and what is wrong with assignments that are none, a line each.
        """
        problems = []
        for assignment in assignments:
            path, given, text = assignment.partition("=")
            if not given or not all(path.strip().split(".")):
                problems.append(f"--set {assignment}: expected PATH=VALUE, such as algorithm.adversary.steps=2")
                continue
            try:
                tree = override(tree, path.strip(), cls._assigned(tree, path.strip(), text))
            except UserError as error:
                problems.append(" ".join(str(error).split()))
        return tree, problems

    @classmethod
    def _assigned(cls, tree: Tree, path: str, text: str) -> Any:  # noqa: ANN401
        """The value that an assignment means."""
        location = tuple(path.split("."))
        kind = cls.kind_at(location, tree)

        def meaning(below: Location, value: Any, scalar: Scalar) -> Any:  # noqa: ANN401
            return cls.meaning((*location, *below), override(tree, path, value), scalar)

        if not wants_text(kind):
            return parse_yaml(text, f"--set {path}", meaning)
        if (between := quoted(text)) is not None:
            return between
        if wants_more(kind):
            with suppress(UserError):
                if not isinstance(value := parse_yaml(text, f"--set {path}", meaning), str | None):
                    return value
        return as_meant(kind, Scalar(text.strip() if names(kind) else text, None))

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

    def settings(self, prefix: str = "", choice: str = "") -> Iterator[tuple[str, Any, str]]:
        """Dotted path, plain value and what it is, in the order of the definition; a section stands before its own.

        Args:
            prefix: of all paths.
            choice: what could be in place of the section.
        """
        for (name, about), value in zip(self.explained().items(), self.tree().values(), strict=True):
            below, table = getattr(self, name), mark(type(self).model_fields[name].metadata)
            others = f" One of {', '.join(table.table.labels())}." if table else ""
            is_section = isinstance(below, Config)
            yield f"{prefix}{name}", value, about + (choice if name == TAG else "") + ("" if is_section else others)
            if is_section:
                yield from below.settings(f"{prefix}{name}.", others)

    def to_yaml(self) -> str:
        """The resolved section as YAML text, in the order of its definition."""
        return to_yaml(self.tree())


def _attributes(section: type[Config]) -> dict[str, str]:
    """What a docstring in Google's style says of each attribute."""
    _, _, listed = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
