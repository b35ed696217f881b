"""Bounds stand on fields; one function checks them and names the key, the value and what to use."""

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import MinLen

from bench.config.bounds import (
    Checked,
    Count,
    IfUsed,
    OptionError,
    PositiveShare,
    Text,
    as_yaml,
    check,
    choice,
)
from bench.config.build import find_options
from bench.errors import ConfigError


@dataclass
class Part:
    rate: PositiveShare = 0.5


@dataclass(frozen=True)
class Toy(Checked):
    usual_key = "task.*"

    steps: Count = 1
    scheme: Annotated[str, choice("bert", "mask")] = "bert"
    names: Annotated[list[Text], MinLen(1)] | None = None
    parts: tuple[Part, ...] | list[Part] = ()
    most: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.steps <= self.most, "steps", f"use at most most={self.most}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "task.*.steps=0: use 1 or more"),
        ({"steps": 10**10}, "task.*.steps=10000000000: use 1000000000 or less"),
        ({"steps": True}, "task.*.steps=true: it must be a valid integer"),
        ({"steps": 10}, "task.*.steps=10: use at most most=9"),
        ({"scheme": "word"}, "task.*.scheme='word': choose one of bert, mask"),
        ({"names": []}, "task.*.names=[]: give at least one, or null"),
        ({"names": ["a", " "]}, "task.*.names[1]=' ': give a text that is not empty, or null"),
        ({"parts": [Part(), Part(0.0)]}, "task.*.parts[1].rate=0.0: use a number above 0"),
        ({"parts": [Part(float("nan"))]}, "task.*.parts[0].rate=nan: use 1 or less"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_what_to_use(changes: dict[str, Any], message: str):
    with pytest.raises(OptionError) as caught:
        Toy(**changes)
    assert str(caught.value) == message


@dataclass(frozen=True)
class Conditional(Checked):
    usual_key = "task.*"

    protocol: str = "probe"
    steps: IfUsed[Count] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol == "finetune", "protocol", "steps")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"protocol": "finetune"}, "task.mine.steps is missing; protocol=finetune uses it"),
        ({"steps": 30}, "task.mine.steps=30: protocol=probe does not use it; remove it"),
        ({"protocol": "finetune", "steps": 0}, "task.mine.steps=0: use 1 or more"),
    ],
)
def test_an_option_is_given_exactly_where_it_is_used(node: dict[str, Any], message: str):
    with pytest.raises(OptionError) as caught:
        find_options(Conditional, node, "task.mine")
    assert str(caught.value) == message
    assert find_options(Conditional, {"protocol": "finetune", "steps": 3}, "task.mine").steps == 3
    assert find_options(Conditional, {}, "task.mine").steps is None


def test_values_within_bounds_pass():
    check(Toy(steps=9, scheme="mask", names=["a"], parts=[Part(1.0)]))


def test_the_key_is_the_one_that_was_typed():
    @dataclass(frozen=True)
    class Options(Checked):
        usual_key = "task.*"

        steps: Count = 1

    for value, end in ((0, "use 1 or more"), ("x", "")):
        with pytest.raises(ConfigError, match=rf"^task\.mine\.steps.*{end}"):
            find_options(Options, {"_target_": "any", "steps": value}, "task.mine")


def test_a_plain_dataclass_is_checked_as_well():
    with pytest.raises(ConfigError, match=r"^strategy\.rate=2\.0: use 1 or less"):
        find_options(Part, {"rate": 2.0}, "strategy")


def test_values_are_shown_as_yaml_writes_them():
    assert as_yaml([True, False, None, 0.5, "a b", {"a": []}]) == "[true, false, null, 0.5, 'a b', {a: []}]"
