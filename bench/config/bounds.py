"""The values that a setting may have: declared once, on its field, and checked by one function. No torch.

A field states its bounds in its type, which OmegaConf ignores and pydantic checks:

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        mask_rate: PositiveShare = MISSING
        scheme: Annotated[str, choice("bert", "mask")] = MISSING

Bounds that involve several fields are written with `Checked.require` in `__post_init__`, and those that
involve other settings of the run in `Checked.check_run`. An option that only some values of another option
use is declared as `name: IfUsed[Steps] = None`, and `Checked.require_given` says where it is used.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import AfterValidator, AllowInfNan, TypeAdapter, ValidationError

from bench.errors import ConfigError

T = TypeVar("T")

Positive = Annotated[float, Gt(0), AllowInfNan(False)]
NonNegative = Annotated[float, Ge(0), AllowInfNan(False)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
Temperature = Annotated[float, Interval(gt=0, le=1000)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
Rate = Annotated[float, Interval(gt=0, le=10)]  # a peak learning rate of AdamW; larger ones only diverge
# Upper bounds are far above any use: a larger number is a typing error, and would fill the memory or run on.
Count = Annotated[int, Interval(ge=1, le=10**9)]
BatchSize = Annotated[int, Interval(ge=1, le=2**16)]
Steps = Annotated[int, Interval(ge=1, le=10**7)]
Repeats = Annotated[int, Interval(ge=1, le=1000)]  # of a whole fit or evaluation
# An option that is given only where it has an effect; messages therefore do not recommend null.
IfUsed = Annotated[T | None, "see Checked.require_given"]

ADVICE = {
    "greater_than": "use a number above {gt:g}",
    "greater_than_equal": "use {ge:.15g} or more",
    "less_than": "use a number below {lt:g}",
    "less_than_equal": "use {le:.15g} or less",
    "finite_number": "use a finite number",
    "too_short": "give at least one",
    "value_error": "{error}",
}


class OptionError(ConfigError):
    """A value that a setting cannot have.

    Args:
        name: The field, such as `label_budgets[0]`.
        value: Its value.
        advice: What to use instead.
        key: Where the field stands in the config, such as `task.library_probe`.
    """

    def __init__(self, name: str, value: object, advice: str, key: str = "") -> None:
        super().__init__(name, value, advice, key)
        self.name, self.value, self.advice, self.key = name, value, advice, key

    def __str__(self) -> str:
        return f"{_joined(self.key, self.name)}={as_yaml(self.value)}: {self.advice}"

    def moved(self, usual_key: str, key: str) -> "OptionError":
        """Return the same error with the key that the user has typed in the place of the usual one."""
        within = self.key.removeprefix(usual_key).lstrip(".")
        return type(self)(self.name, self.value, self.advice, _joined(key, within) if within else key)


class MissingOptionError(OptionError):
    """An option that is used but not given."""

    def __str__(self) -> str:
        return f"{_joined(self.key, self.name)} is missing; {self.advice}"


@dataclass(frozen=True)
class Checked:
    """Base of `Options` dataclasses, whose bounds are checked when they are constructed."""

    usual_key: ClassVar[str] = ""  # where such options stand in a config; `bench.config.build` knows better

    def __post_init__(self) -> None:
        check(self, self.usual_key)

    def require(self, condition: bool, name: str, advice: str) -> None:
        """Raise OptionError for the field `name` unless a condition holds."""
        if not condition:
            raise OptionError(name, getattr(self, name), advice, self.usual_key)

    def require_given(self, used: bool, user: str, *names: str) -> None:
        """Require options where the value of the option `user` uses them, and refuse them elsewhere.

        Raises:
            MissingOptionError: A used option is None.
            OptionError: An option is given that has no effect.
        """
        value = f"{user}={as_yaml(getattr(self, user))}".replace("'", "")
        for name in names:
            if used and getattr(self, name) is None:
                raise MissingOptionError(name, None, f"{value} uses it", self.usual_key)
            self.require(used or getattr(self, name) is None, name, f"{value} does not use it; remove it")

    def part(self, cls: type[T]) -> T:
        """Return those options that the dataclass `cls` has, as an instance of it."""
        return cls(**{name: getattr(self, name) for name in names_of(cls)})

    def check_run(self, config: Any) -> None:
        """Check the options against the other settings of the run, a `bench.config.schema.Config`.

        Raises:
            OptionError: They cannot work together.
        """


def names_of(cls: Any) -> list[str]:
    """Return the names of a dataclass' fields."""
    return [field.name for field in fields(cls)]


def given(value: T | None) -> T:
    """Return the value of an option that is used here, so that `Checked.require_given` found it given."""
    assert value is not None
    return value


def check(settings: Any, key: str = "") -> None:
    """Check each field of a dataclass, and of the dataclasses in it, against the bounds in its type.

    Args:
        settings: An instance.
        key: Where it stands in the config, for messages.

    Raises:
        OptionError: A value is out of bounds.
    """
    for name, (adapter, advice) in _adapters(settings.__class__).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as caught:
            error = caught.errors(include_url=False)[0]
            place = [part for part in error["loc"] if isinstance(part, int) or str(part).isidentifier()]
            raise OptionError(_placed(name, place), error["input"], _advice(error) + advice, key) from None
    for name, part in _dataclasses_in(settings):
        check(part, _joined(key, name))


@cache
def _adapters(cls: Any) -> dict[str, tuple[TypeAdapter[Any], str]]:
    """Return for each field what checks it, and the end of the advice; fields of any type are left out."""
    hints = get_type_hints(cls, include_extras=True)
    own = {field.name: hints[field.name] for field in fields(cls)}
    return {
        name: (TypeAdapter(hint), ", or null" if type(None) in get_args(hint) else "")
        for name, hint in own.items()
        if hint is not Any and not is_dataclass(hint)
    }


def _advice(error: Mapping[str, Any]) -> str:
    if template := ADVICE.get(error["type"]):
        return template.format(**error.get("ctx", {}))
    return str(error["msg"]).replace("Input should", "it must")


def _dataclasses_in(settings: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if is_dataclass(item):
                yield _placed(field.name, [i] if isinstance(value, list) else []), item


def _placed(name: str, place: list[int | str]) -> str:
    return name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


# Bounds of other kinds


def choice(*names: str) -> AfterValidator:
    """Return the bound of a text that is one of these names."""
    return must(lambda text: text in names, f"choose one of {', '.join(names)}")


def matches(pattern: str, advice: str) -> AfterValidator:
    """Return the bound of a text that a regular expression matches as a whole."""
    return must(lambda text: re.fullmatch(pattern, text, re.ASCII) is not None, advice)


def must(condition: Callable[[Any], bool], advice: str) -> AfterValidator:
    """Return the bound of a value for which a condition holds; `advice` says what to use otherwise."""

    def checked(value: T) -> T:
        if not condition(value):
            raise ValueError(advice)
        return value

    return AfterValidator(checked)


Text = Annotated[str, must(lambda text: bool(text.strip()), "give a text that is not empty")]
Names = Annotated[list[Text], MinLen(1)]


def as_yaml(value: object) -> str:
    """Return a value as a command line or a YAML file writes it.

    >>> as_yaml([True, None, 0.5, "a b"])
    "[true, null, 0.5, 'a b']"
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {as_yaml(item)}' for name, item in value.items())}}}"
    return repr(value) if isinstance(value, str) else str(value)
