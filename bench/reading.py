"""JSON -> dataclasses, held against their annotations: nothing is guessed, nothing unknown is let in.

Records come from other machines and other people. What is not of the type that a field states would turn up
as a traceback, or a wrong number, far from its file. pydantic-core checks, since large studies wait for it;
what a field may hold is stated here. All that is converted is a whole number where a float is asked for.
"""

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic_core import CoreSchema, ErrorDetails, SchemaValidator, ValidationError, core_schema, from_json

LARGEST = 2**63 - 1  # what a 64-bit integer holds, and every table
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

    def inside(self, step: object) -> "MisfitError":
        """The same, seen from one field further out."""
        return MisfitError(self.problem, f"{step!s:.40}.{self.place}".rstrip("."))


def parse(text: bytes | str) -> Any:
    """JSON whose numbers are numbers.

    Raises:
        ValueError: not JSON, or with NaN or Infinity, which JSON does not know, or nested without end.
    """
    return from_json(text, allow_inf_nan=False)


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
    try:
        return _validator(kind).validate_python(value)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise _misfit(error.errors(include_url=False)[0]) from None


@cache
def _validator(kind: type[Any]) -> SchemaValidator:
    return SchemaValidator(_schema(kind))


def _schema(kind: Any) -> CoreSchema:
    """What a `kind`, an annotation, may hold, for pydantic-core."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass_schema(kind)
    if origin in (types.UnionType, Union):
        [other] = [_schema(one) for one in inner if one is not types.NoneType]
        return core_schema.nullable_schema(other)
    if kind == Written:
        return core_schema.str_schema(strict=True)
    if origin is Literal:
        return core_schema.literal_schema(list(inner))
    if origin is tuple:
        return core_schema.tuple_variable_schema(_schema(inner[0]))
    if origin is list:
        return core_schema.list_schema(_schema(inner[0]))
    if origin is dict:
        return core_schema.dict_schema(_schema(str), _schema(inner[1]))
    return _SIMPLE[kind]


def _dataclass_schema(kind: Any) -> CoreSchema:
    hints = get_type_hints(kind, include_extras=True)
    parts = []
    for field in fields(kind):
        part = _schema(hints[field.name])
        if field.default is not MISSING:
            part = core_schema.with_default_schema(part, default=field.default)
        elif field.default_factory is not MISSING:
            part = core_schema.with_default_schema(part, default_factory=field.default_factory)
        parts.append(core_schema.dataclass_field(field.name, part))
    return core_schema.dataclass_schema(
        kind,
        core_schema.dataclass_args_schema(kind.__name__, parts),
        list(hints),
        config=core_schema.CoreConfig(extra_fields_behavior="forbid"),
    )


def _misfit(error: ErrorDetails) -> MisfitError:
    """The first of pydantic's errors, in one line."""
    kind, context, steps = error["type"], error.get("ctx", {}), list(error["loc"])
    found = f"{error['input']!r:.40}"
    if kind == "value_error":
        misfit: MisfitError = context["error"]
    elif kind == "missing":
        misfit = MisfitError(f"{steps.pop()!r} is missing")
    elif kind == "unexpected_keyword_argument":
        misfit = MisfitError(f"{steps.pop()!r:.40} is no field")
    elif kind == "literal_error":
        choices = context["expected"].replace("'", "")
        misfit = MisfitError(f"{found} is none of {choices}")
    elif kind in ("string_pattern_mismatch", "string_unicode"):
        misfit = MisfitError(_NO_TEXT)
    elif kind in ("less_than_equal", "greater_than_equal"):
        misfit = MisfitError(_TOO_LARGE)
    else:
        misfit = MisfitError(f"{found} is no {kind.removesuffix('_type')}")
    for step in reversed(steps):
        misfit = misfit.inside(step)
    return misfit


def _real(value: Any) -> float:
    """A float; a whole number is one as well."""
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) not in (float, int):
        raise MisfitError(f"{value!r:.40} is no float")
    return float(_number(value))


def _any(value: Any) -> Any:
    """What no annotation describes: any JSON of numbers and texts."""
    if isinstance(value, dict):
        for name, part in value.items():
            _inside(name, name)
            _inside(name, part)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _inside(i, part)
    elif isinstance(value, str) and not is_text(value):
        raise MisfitError(_NO_TEXT)
    elif isinstance(value, (int, float)):
        _number(value)
    return value


def _inside(step: object, part: Any) -> None:
    try:
        _any(part)
    except MisfitError as error:
        raise error.inside(step) from None


def _number(value: float) -> float:
    if type(value) is float and not math.isfinite(value):
        raise MisfitError("is no finite number")
    if type(value) is int and abs(value) > LARGEST:
        raise MisfitError(_TOO_LARGE)
    return value


_NO_TEXT, _TOO_LARGE = "holds what is no text", f"is beyond {LARGEST}"
_SIMPLE: dict[Any, CoreSchema] = {
    str: core_schema.str_schema(strict=True, pattern=r"\A[^\x00]*\z"),
    int: core_schema.int_schema(strict=True, ge=-LARGEST, le=LARGEST),
    bool: core_schema.bool_schema(strict=True),
    float: core_schema.no_info_plain_validator_function(_real),
    Any: core_schema.no_info_plain_validator_function(_any),
}
