"""Tables of named things: ours, and those that installed packages add.

Floor 0. A package offers a thing by an entry point of the group `avb_service.KIND`. What is offered is known by its
name alone; it is imported when that name is read, and not before.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from avb_service.errors import UserError

GROUP = "avb_service."  # how the names of our groups of entry points begin
DEVELOPMENT = "AVB_PLUGINS"  # name=module:object, several with commas, for things that no installed package offers yet
TAG = "name"  # the key that selects a member wherever a section has several kinds
UNUSABLE = "plugin"  # the kind of fault that a thing of another package is
Thing = TypeVar("Thing")

_log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where a thing of somebody else's comes from.

    Attributes:
        package: the installed distribution; AVB_PLUGINS, where that variable names it.
        version: of the distribution; what stands in that variable.
    """

    package: str
    version: str

    def __str__(self) -> str:
        """As a requirement is written, without its sign."""
        return f"{self.package} {self.version}"


class Table(Mapping[str, Thing], Generic[Thing]):
    """Things of one kind by name. To iterate is to see names; to ask for one is to import it.

    Args:
        kind: in the plural, as its group of entry points ends: `trunks`.
        own: ours.
        objection: what a thing of that name should be and is not, as the end of `expected ...`; None where it is that.
        load: brings what an entry point names.
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, Thing],
        objection: Callable[[str, Any], str | None],
        load: Callable[[EntryPoint], Any] = EntryPoint.load,
    ) -> None:
        self.kind, self.own, self.objection, self._load = kind, own, objection, load

    def __iter__(self) -> Iterator[str]:
        """Names: ours, then theirs."""
        yield from self.own
        theirs = {point.name for point in (*_installed(self.kind), *self._in_development())}
        yield from sorted(theirs - self.own.keys())

    def __len__(self) -> int:
        """How many names there are."""
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        """Whether anything has the name; nothing is imported for it."""
        return name in self.own or any(name == each for each in self)

    def __getitem__(self, name: str) -> Thing:
        """What has the name, imported if need be.

        Raises:
            KeyError: nothing has.
            UserError: several have, or what has it cannot be used; names the package.
        """
        claims = self._claims(name)
        if not claims:
            return self.own[name]
        if name in self.own or len(claims) > 1:
            owners = [*(["avb-service itself"] if name in self.own else []), *(str(origin(point)) for point in claims)]
            raise UserError(
                f"{name} is a name that {' and '.join(owners)} have given to {self.kind}; rename all but one, or "
                f"uninstall the package"
            )
        return self._usable(claims[0])

    def claimed(self, name: str) -> bool:
        """Whether anything has the name, or the variable gives it to what cannot be used; to ask for that says why."""
        return name in self or bool(self._claims(name))

    def labels(self) -> Iterator[str]:
        """The names; theirs with the package that offers them."""
        for name in self:
            origin = self.origin(name)
            yield f"{name} ({origin})" if origin else name

    def origin(self, name: str) -> Origin | None:
        """Who offers it; None where it is ours."""
        return next(map(origin, self._claims(name)), None)

    def _claims(self, name: str) -> list[EntryPoint]:
        """What others offer by that name; where nobody does, what the variable calls so, to be told what it lacks."""
        found = [point for point in (*_installed(self.kind), *self._in_development()) if point.name == name]
        return found or [point for point in _developed() if point.name == name and name not in self.own]

    def _in_development(self) -> list[EntryPoint]:
        """Those of the variable's things that are of this kind; only by importing them can that be known."""
        return [point for point in _developed() if self.objection(point.name, self._loaded(point)) is None]

    def _loaded(self, point: EntryPoint) -> Any:  # noqa: ANN401
        try:
            return self._load(point)
        except Exception as error:  # whatever a module of somebody else's does when it is imported
            message = f"{point.name} is {point.value} of {origin(point)}, which cannot be imported: {error!r}"
            lost = point.dist is None and isinstance(error, ModuleNotFoundError)
            raise UserError(f"{message}; PYTHONPATH has to name its folder" if lost else message) from error

    def _usable(self, point: EntryPoint) -> Thing:
        found: Thing = self._loaded(point)
        if objection := self.objection(point.name, found):
            raise UserError(f"{point.name} is {point.value} of {origin(point)}, expected {objection}")
        return found


@dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a place of a section where a table's things are chosen: by their name, or by the section that has it.

    `Annotated[str, OneOf(SOURCES)]` is a name. `Annotated[Trunk, OneOf(TRUNKS)]` is any section of the table, told by
    its key `name`; so a section may be chosen that was written after the one which it is part of.

    Attributes:
        table: of names.
        section: that a thing of the table is configured by; the thing itself, by default.
    """

    table: Table[Any]
    section: Callable[[Any], type[BaseModel]] = lambda found: found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """How pydantic reads what stands there, and writes it."""
        if source is str:
            return core_schema.no_info_after_validator_function(self._name, handler(source))
        written = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, source) else self._section(given), serialization=written
        )

    def chosen(self, given: Any) -> type[BaseModel] | None:  # noqa: ANN401
        """The section that a tree is meant for, by its name; None where it has none that can be used."""
        name = given.get(TAG) if isinstance(given, Mapping) else None
        with suppress(UserError):
            if isinstance(name, str) and name in self.table:
                return self.section(self.table[name])
        return None

    def _name(self, name: str) -> str:
        if not self.table.claimed(name):
            raise ValueError(f"one of {', '.join(self.table)}")
        self._thing(name)
        return name

    def _section(self, given: Any) -> BaseModel:  # noqa: ANN401
        if not isinstance(given, Mapping):
            raise PydanticCustomError("model_type", "a section")
        if given.get(TAG) is None:
            raise PydanticCustomError("union_tag_not_found", "a name")
        if not isinstance(given[TAG], str) or not self.table.claimed(given[TAG]):
            raise PydanticCustomError("union_tag_invalid", "a name of the table")
        section = self.section(self._thing(given[TAG]))
        # As JSON, in which a list may be a tuple while "5" is still no int and 1 no bool.
        return section.model_validate_json(json.dumps(given, default=str), strict=True)

    def _thing(self, name: str) -> Any:  # noqa: ANN401
        try:
            return self.table[name]
        except UserError as error:
            raise PydanticCustomError(UNUSABLE, "{reason}", {"reason": str(error)}) from error


def mark(metadata: Iterable[Any]) -> OneOf | None:
    """Of what annotates a place, the mark that a table's things are chosen there."""
    return next((each for each in metadata if isinstance(each, OneOf)), None)


def subclass_of(base: type) -> Callable[[str, Any], str | None]:
    """The objection to what is no subclass of a class; to a section, that it is not strict, or has another name."""

    def objection(name: str, found: Any) -> str | None:  # noqa: ANN401
        wanted = f"a subclass of {base.__module__}.{base.__qualname__}"
        if not (isinstance(found, type) and issubclass(found, base)):
            return wanted
        if lacks := getattr(found, "__abstractmethods__", ()):
            return f"{wanted} with all its methods; it lacks {', '.join(sorted(lacks))}"
        return strictness(name, found) if issubclass(found, BaseModel) else None

    return objection


def strictness(name: str, section: type[BaseModel]) -> str | None:
    """What a section lacks to be read strictly under a name."""
    asked = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}
    if any(section.model_config.get(key) != value for key, value in asked.items()):
        return f"a section that refuses unknown keys, as avb_service.config.Config does by model_config {asked}"
    if TAG not in section.model_fields or section.model_fields[TAG].default != name:
        return f'a section with the field {TAG}: Literal["{name}"] = "{name}"'
    return None


def origin(point: EntryPoint) -> Origin:
    """Who offers what an entry point names."""
    if point.dist is None:
        return Origin(DEVELOPMENT, f"{point.name}={point.value}")
    return Origin(point.dist.name, point.dist.version)


def offered(kind: str) -> tuple[str, ...]:
    """Names that installed packages give to things of a kind, and the variable to any; nothing is imported for it."""
    return tuple(sorted({point.name for point in (*_installed(kind), *_developed())}))


def packages() -> dict[str, str]:
    """Installed distributions that offer anything, and their versions."""
    points = (point for found in _groups(tuple(sys.path)).values() for point in found)
    return dict(sorted({(found.package, found.version) for found in map(origin, points)}))


def gathered(origins: Iterable[Origin]) -> dict[str, str]:
    """Packages and their versions; of AVB_PLUGINS, what has to stand in it."""
    found: dict[str, str] = {}
    for package, number in sorted(set(origins)):
        found[package] = f"{found[package]},{number}" if package in found else number
    return found


def check_packages(asked: Mapping[str, str], what: str) -> None:
    """Make sure that what was made with packages can be used here; of another version, it is said.

    Args:
        asked: as `gathered` gives them.
        what: was made with them, for people.

    Raises:
        UserError: one is not there; says how it comes here.
    """
    for package, wanted in asked.items():
        if package == DEVELOPMENT:
            if set(wanted.split(",")) - {f"{each.name}={each.value}" for each in _developed()}:
                raise UserError(f"{what} was made with {DEVELOPMENT}={wanted}; set it, and have its modules importable")
            continue
        said = f"{what} was made with {package} {wanted}"
        try:
            here = version(package)
        except PackageNotFoundError:
            raise UserError(f"{said}, which is not installed: pip install {package}=={wanted}") from None
        if here != wanted:
            _log.warning("%s, and here is %s; if it is not the same: pip install %s==%s", said, here, package, wanted)


def _installed(kind: str) -> tuple[EntryPoint, ...]:
    """What installed packages offer of a kind."""
    return _groups(tuple(sys.path)).get(kind, ())


@cache
def _groups(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of all our groups on a path, found once: to look through all packages takes a while."""
    points = entry_points()
    ours = (group for group in points.groups if group.startswith(GROUP))
    return {group.removeprefix(GROUP): tuple(points.select(group=group)) for group in ours}


def _developed() -> list[EntryPoint]:
    """What the variable for development names.

    Raises:
        UserError: it is not written as it should be.
    """
    given = [each for each in re.split(r"[,\s]+", os.environ.get(DEVELOPMENT, "")) if each]
    if wrong := [each for each in given if not re.fullmatch(r"[^=]+=[\w.]+:[\w.]+", each)]:
        raise UserError(f"{DEVELOPMENT}: given {wrong[0]!r}, expected name=module:object, several with commas between")
    pairs = (each.split("=", 1) for each in given)
    return [EntryPoint(name, value, DEVELOPMENT) for name, value in pairs]
