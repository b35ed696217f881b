"""JSON -> dataclasses, held against their annotations: nothing is converted, nothing unknown is let in.

Records come from other machines and other people. What is not of the type that a field states would turn up
as a traceback, or a wrong number, far from its file. Standard library only: `bench status` answers at once.
"""

import json
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # what a 64-bit integer holds, and every table
Reader = Callable[[Any], Any]
Written = Annotated[str, "by a model: NUL is one of its bytes"]


class MisfitError(ValueError):
    """A value that is not of its field's type: where, and what is wrong.

    Args:
        problem: of the value.
        place: field by field, from the outside.
    """

    def __init__(self, problem: str, place: str = "") -> None:
        self.problem, self.place = problem, place
        super().__init__(f"{place}: {problem}" if place else problem)

    def inside(self, step: str) -> "MisfitError":
        """The same, seen from one field further out."""
        return MisfitError(self.problem, f"{step}.{self.place}".rstrip("."))


def parse(text: str) -> Any:
    """JSON whose numbers are numbers.

    Raises:
        ValueError: not JSON, or with NaN or Infinity, which JSON does not know, or nested without end.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def is_text(value: str) -> bool:
    """Can it be written as UTF-8 and name a file? Without NUL and without halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def typed(kind: type[Any], value: Any) -> Any:
    """`value`, made of what `parse` gives, as a `kind`.

    Args:
        kind: a dataclass. Its fields are dataclasses, tuple[X, ...], list[X], dict[str, X], X | None,
            Literal, str, `Written`, int, float, bool or Any.
        value: its fields by name.

    Raises:
        MisfitError: another type, an unknown or missing field, or a number that no table holds.
    """
    reader: Reader = _reader(kind)  # type: ignore[arg-type]  # classes are hashable
    return reader(value)


@cache
def _reader(kind: Any) -> Reader:
    """What turns JSON into a `kind`, an annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass_reader(kind)
    if origin in (types.UnionType, Union):
        [other] = [_reader(one) for one in inner if one is not types.NoneType]
        return lambda value: None if value is None else other(value)
    if kind == Written:
        return _written
    if origin is Literal:
        return lambda value: _chosen(inner, value)
    if origin in (tuple, list):
        item = _reader(inner[0])
        return lambda value: origin(_parts(enumerate(_simple(list, value)), item))
    if origin is dict:
        item = _reader(inner[1])
        return lambda value: _mapping(value, item)
    return _any if kind is Any else lambda value: _simple(kind, value)


def _dataclass_reader(kind: Any) -> Reader:
    readers = {name: _reader(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]

    def read(value: Any) -> Any:
        given = _simple(dict, value)
        if unknown := [name for name in given if name not in readers]:
            raise MisfitError(f"{unknown[0]!r:.40} is no field of {kind.__name__}")
        if missing := [name for name in needed if name not in given]:
            raise MisfitError(f"{missing[0]!r} is missing")
        made = {}
        for name, part in given.items():
            try:
                made[name] = readers[name](part)
            except MisfitError as error:
                raise error.inside(name) from None
        return kind(**made)

    return read


def _parts(items: Iterable[tuple[Any, Any]], read: Reader) -> list[Any]:
    found = []
    for name, part in items:
        try:
            found.append(read(part))
        except MisfitError as error:
            raise error.inside(f"{name!s:.40}") from None
    return found


def _mapping(value: Any, read: Reader) -> dict[str, Any]:
    given = _simple(dict, value)
    names = [_simple(str, name) for name in given]
    return dict(zip(names, _parts(given.items(), read), strict=True))


def _any(value: Any) -> Any:
    """What no annotation describes: any JSON of numbers and texts."""
    if isinstance(value, dict):
        return _mapping(value, _any)
    if isinstance(value, list):
        return _parts(enumerate(value), _any)
    return value if value is None else _simple(type(value), value)


def _chosen(choices: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise MisfitError(f"{value!r:.40} is none of {', '.join(choices)}")
    return value


def _written(value: Any) -> Any:
    _simple(str, value.replace("\0", "") if isinstance(value, str) else value)
    return value


def _simple(kind: type[Any], value: Any) -> Any:
    """The value, if it is of this very kind; a whole number is a float as well."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise MisfitError(f"{value!r:.40} is no {kind.__name__}")
    if type(value) is float and not math.isfinite(value):
        raise MisfitError("is no finite number")
    if type(value) is int and abs(value) > LARGEST:
        raise MisfitError(f"is beyond {LARGEST}")
    if type(value) is str and not is_text(value):
        raise MisfitError("holds what is no text")
    return value
