"""Our training step without one of its optimisations, to measure what each one saves.

Each is replaced by the straightforward code; `tests/speed/test_ablations.py` checks that losses stay the same
within rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import deterministic

from bench.models import transformer
from bench.models.cross_entropy import IGNORED
from bench.models.heads import Head, PredictionHead
from bench.models.transformer import Attention, Blocks, GatedMlp, rotated_heads, states_at
from bench.objectives import optim
from bench.speed.settings import ALL_PLAIN


def _last_block_everywhere() -> AbstractContextManager[None]:
    return _blocks_everywhere(lambda states, at: None)


@contextmanager
def _logits_everywhere() -> Iterator[None]:
    """Send every token through the last block and the head; tokens without a target have no loss."""
    latest: list[tuple[Tensor, Tensor]] = []
    summed_nll = PredictionHead.summed_nll

    def keep(states: Tensor, at: Tensor | None) -> None:
        latest[:] = [] if at is None else [(states.flatten(0, 1), at)]

    def everywhere(
        head: PredictionHead, hidden: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        if not latest:
            return summed_nll(head, hidden, targets, weights)
        states, at = latest.pop()
        spread = targets.new_full((len(states),), IGNORED).scatter(0, at, targets.flatten())
        if weights is not None:
            weights = weights.new_zeros(len(states)).scatter(0, at, weights.flatten())
        return summed_nll(head, states, spread, weights)

    with _blocks_everywhere(keep), patch.object(PredictionHead, "summed_nll", everywhere):
        yield


@contextmanager
def _blocks_everywhere(seen: Callable[[Tensor, Tensor | None], None]) -> Iterator[None]:
    """Compute all states of the last block, and call `seen` with them and the indices of those needed."""
    plain = Blocks.forward

    def everywhere(blocks: Blocks, *args: Any, at: Tensor | None = None, **kwargs: Any) -> Tensor:
        states = plain(blocks, *args, **kwargs)
        seen(states, at)
        return states_at(states, at)

    with patch.object(Blocks, "forward", everywhere):
        yield


def _whole_logits() -> AbstractContextManager[Any]:
    """Compute the logits of all targets as one tensor, of which autograd keeps what it needs."""
    return patch.object(PredictionHead, "summed_nll", Head.summed_nll)


def _rope_by_autograd() -> AbstractContextManager[Any]:
    return patch.object(transformer, "RotatedHeads", SimpleNamespace(apply=rotated_heads))


@contextmanager
def _separate_products() -> Iterator[None]:
    """Use one product each for queries, keys and values, and for gate and value of the feed-forward."""

    def project(layer: Attention, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        weights = layer.Wqkv.weight.chunk(3)
        q, k, v = (F.linear(x, weight).unflatten(-1, (layer.n_heads, -1)) for weight in weights)
        cos, sin = rope[0][:, : layer.n_heads], rope[1].repeat(1, 1, 2)
        q, k = (part * cos + _half_turned(part) * sin for part in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def gated(mlp: GatedMlp, x: Tensor) -> Tensor:
        a, b = (F.linear(x, weight) for weight in mlp.Wi.weight.chunk(2))
        return mlp.Wo(F.gelu(a) * b)

    with patch.object(Attention, "_project", project), patch.object(GatedMlp, "forward", gated):
        yield


def _half_turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def _unfused_adamw() -> AbstractContextManager[Any]:
    adamw = optim.adamw

    def unfused(*args: Any, **kwargs: Any) -> torch.optim.AdamW:
        return adamw(*args, **kwargs | {"fused": False})

    return patch.object(optim, "adamw", unfused)


@contextmanager
def _filled_tensors() -> Iterator[None]:
    """Fill every new tensor with NaN, the default of `torch.use_deterministic_algorithms`."""
    before = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


REPLACEMENTS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "last_block_everywhere": _last_block_everywhere,
    "whole_logits": _whole_logits,
    "logits_everywhere": _logits_everywhere,  # after whole_logits, whose loss it calls
    "rope_by_autograd": _rope_by_autograd,
    "separate_products": _separate_products,
    "unfused_adamw": _unfused_adamw,
    "filled_tensors": _filled_tensors,
}


@contextmanager
def ablated(name: str) -> Iterator[None]:
    """Compute our steps without the named optimisation inside this context; `ALL_PLAIN`: without any."""
    with ExitStack() as stack:
        for replaced in REPLACEMENTS if name == ALL_PLAIN else (name,):
            stack.enter_context(REPLACEMENTS[replaced]())
        yield
