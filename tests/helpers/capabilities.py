"""Representatives of a capability: `make test` tests contracts on them, `make test-product` on all others.

What a strategy can do is asked of the strategy, and what a task does of the task, so a new YAML whose
capability no other has is a representative without an edit here.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
from toy_models import make_strategy

from bench.config.build import find_class
from bench.tasks.base import Task


def of_strategy(stem: str) -> Hashable:
    """Modality, attention, likelihoods, way to write, and whether the weights are here."""
    model = make_strategy(stem)
    return model.modality, model.options.attention, model.likelihoods, model.writes, model.has_weights


def of_task(name: str, node: dict[str, Any]) -> Hashable:
    """The class whose `evaluate` it runs, its protocol and its kind of likelihood."""
    evaluate = find_class(node, Task, name).evaluate  # type: ignore[type-abstract]
    return evaluate.__qualname__, node.get("protocol"), node.get("kind")


def representatives(names: Sequence[str], capability: Callable[[str], Hashable]) -> set[str]:
    """The first of those that can do the same."""
    first: dict[Hashable, str] = {}
    for name in names:
        first.setdefault(capability(name), name)
    return set(first.values())


def product(names: Sequence[str], chosen: set[str]) -> list[Any]:
    """Parameters of a test: all names, those that are not chosen in the tier `product`."""
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.product) for name in names]
