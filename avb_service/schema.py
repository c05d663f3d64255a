"""What the annotations of a section say of a place in its tree: which kinds stand there, which keys, and whether text.

Floor 0. Annotations are those of pydantic fields: sections, unions and open tables of them told apart by `name`, lists,
mappings, scalars.
"""

from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from avb_service.kinds import TAG, OneOf, mark
from avb_service.trees import Location, Scalar, child


def members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The kinds that an annotation allows beside None: the members of a union, else itself alone."""
    kind = bare(annotation)
    if get_origin(kind) in (Union, UnionType):
        return tuple(member for each in get_args(kind) for member in members(each))
    return () if kind is NoneType else (annotation,)


def meant(annotation: Any, given: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """The members of a union that a value can be meant for: by its name, else by its shape; all where there is none."""
    return tuple(_chosen(each, given) for each in _meant(annotation, given))


def _chosen(annotation: Any, given: Any) -> Any:  # noqa: ANN401
    """Of an open table the section that the value's name selects, where one does."""
    table = table_of(annotation)
    return table and is_section(annotation) and table.chosen(given) or annotation


def _meant(annotation: Any, given: Any) -> tuple[Any, ...]:  # noqa: ANN401
    fitting = tuple(each for each in members(annotation) if given is None or _shape(each) in (_shape_of(given), Any))
    name = given.get(TAG) if isinstance(given, Mapping) else None
    return tuple(each for each in fitting if name in names(each)) or fitting


def at(annotation: Any, location: Location, tree: Any) -> Any:  # noqa: ANN401
    """The annotation of what stands at a place; None where nothing can.

    Args:
        annotation: of the whole.
        location: of the place.
        tree: what is given for the whole; by its names, the members of unions are told apart.
    """
    for part in location:
        found = tuple(kind for each in meant(annotation, tree) if (kind := beneath(each, part)) is not None)
        if not found:
            return None
        annotation, tree = Union[found], child(tree, part)  # noqa: UP007  no | over a tuple
    return annotation


def beneath(annotation: Any, part: int | str) -> Any:  # noqa: ANN401
    """The annotation of what is under a key or index of one kind; None where nothing can be."""
    kind, arguments = bare(annotation), get_args(bare(annotation))
    if is_section(kind):
        return _of_field(kind.model_fields.get(str(part)))
    if get_origin(kind) is dict:
        return arguments[1]
    if get_origin(kind) not in (list, tuple) or not isinstance(part, int):
        return None
    return arguments[0] if len(arguments) == 1 or Ellipsis in arguments else dict(enumerate(arguments)).get(part)


def keys(annotation: Any, given: Any) -> list[str]:  # noqa: ANN401
    """The keys that a section may have, by what is given for it."""
    sections = (bare(each) for each in meant(annotation, given) if is_section(each))
    return list(dict.fromkeys(key for each in sections for key in each.model_fields))


def names(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The names that there are to choose from: those that select a section, or those that a value may have."""
    chosen = (name for each in members(annotation) for name in _of_table(each) or get_args(_chooser(bare(each))))
    return tuple(name for name in chosen if isinstance(name, str))


def as_meant(annotation: Any, scalar: Scalar) -> Any:  # noqa: ANN401
    """A scalar as the annotation has it: its very text where that is wanted, else what YAML takes it for.

    Where there may be text or nothing, `null` and an empty value are nothing. Where a whole number is
    wanted, 1e4 is one.
    """
    if wants_text(annotation) and not (_optional(annotation) and scalar.text in ("", "null")):
        return scalar.text
    kinds, value = [bare(each) for each in members(annotation)], scalar.value
    whole = isinstance(value, float) and value.is_integer() and "e" in scalar.text.lower()
    return int(value) if whole and int in kinds and float not in kinds else value


def wants_text(annotation: Any) -> bool:  # noqa: ANN401
    """Whether a scalar is text there, or one of several names, and no number or truth value."""
    scalars = [bare(each) for each in members(annotation) if _shape(each) is str]
    return bool(scalars) and all(map(_is_text, scalars))


def wants_more(annotation: Any) -> bool:  # noqa: ANN401
    """Whether there may also be a list, a mapping or a section in place of a scalar."""
    return any(_shape(each) is not str for each in members(annotation))


def described(annotation: Any) -> str:  # noqa: ANN401
    """What may stand there, for people: `true or false, a number or text`."""
    kinds = [bare(each) for each in members(annotation)]
    return _in_words(dict.fromkeys(_described(kind) for kind in kinds if kind is not int or float not in kinds))


def is_section(kind: Any) -> bool:  # noqa: ANN401
    """Whether it is a section, with keys of its own."""
    kind = bare(kind)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def table_of(annotation: Any) -> OneOf | None:  # noqa: ANN401
    """The open table that is chosen from there, if one is."""
    if get_origin(annotation) is not Annotated:
        return None
    return mark(annotation.__metadata__)


def bare(annotation: Any) -> Any:  # noqa: ANN401
    """An annotation without what `Annotated` adds to it."""
    return bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _of_field(field: FieldInfo | None) -> Any:  # noqa: ANN401
    """The annotation of a field, with what pydantic has taken off it."""
    if field is None or not field.metadata:
        return field and field.annotation
    return Annotated[(field.annotation, *field.metadata)]


def _of_table(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401
    found = table_of(annotation)
    return () if found is None else tuple(found.table)


def _optional(annotation: Any) -> bool:  # noqa: ANN401
    kind = bare(annotation)
    return kind is NoneType or (get_origin(kind) in (Union, UnionType) and any(map(_optional, get_args(kind))))


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    return kind is str or (get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind)))


def _chooser(kind: Any) -> Any:  # noqa: ANN401
    """The Literal of the names that select a section, or that a value may have; None where there is none."""
    if is_section(kind):
        return _chooser(kind.model_fields[TAG].annotation) if TAG in kind.model_fields else None
    return kind if get_origin(kind) is Literal else None


def _shape(annotation: Any) -> Any:  # noqa: ANN401
    """Dict (of sections, too), list, str of any scalar, or Any."""
    kind = bare(annotation)
    if is_section(kind) or get_origin(kind) is dict:
        return dict
    if get_origin(kind) in (list, tuple):
        return list
    return Any if kind is Any else str


def _shape_of(given: Any) -> Any:  # noqa: ANN401
    """The same of a value."""
    return dict if isinstance(given, Mapping) else list if isinstance(given, list | tuple) else str


def _described(kind: Any) -> str:  # noqa: ANN401
    if get_origin(kind) is Literal:
        return _in_words(map(repr, get_args(kind)))
    by_shape = {dict: "a mapping", list: "a list", Any: "anything"}
    by_kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return by_shape.get(_shape(kind)) or by_kind.get(kind) or str(kind)


def _in_words(parts: Iterable[str]) -> str:
    """`a, b or c`."""
    *others, last = parts
    return f"{', '.join(others)} or {last}" if others else last
