"""How a step is computed, never what: compiled, with activations computed again, in parts of its rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from bench.config.schema import Trainer
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models.heads import PredictionHead
from bench.objectives.base import Loss, Objective
from bench.training.distributed import blocks_of

Gradients = list[tuple[Tensor | None, ...]]  # of each term of a loss, by each parameter; None: it has no part


@contextmanager
def computed_as(objective: Objective, settings: Trainer) -> Iterator[None]:
    """Inside, blocks and loss are computed as the settings say; after it as ever, whatever a task reads.

    Raises:
        ConfigError: parts of a step's rows, of a loss that is of all rows together.
    """
    if settings.accumulate_grad_batches > 1 and objective.couples_rows:
        raise ConfigError(
            f"trainer.accumulate_grad_batches={settings.accumulate_grad_batches}: {type(objective).__name__} "
            "holds all rows of a step against each other; use trainer.recompute=true instead"
        )
    blocks = blocks_of(objective)
    heads = [module for module in objective.modules() if isinstance(module, PredictionHead)]
    if settings.compile:
        torch.compiler.reset()  # a function is compiled a few times and no more, earlier runs' among them
    try:
        # On a CPU a block of logits stays in the cache, where fusing gains nothing: 0.87 to 0.98 as fast.
        for head in heads if settings.compile and settings.accelerator == "gpu" else ():
            head.errors = torch.compile(head.errors)  # type: ignore[method-assign]
        for block in blocks:
            if settings.compile:
                block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
            if settings.recompute:  # keep of every block its input alone (arXiv:1604.06174)
                block.forward = partial(checkpointed, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if settings.accumulate_grad_batches > 1:
            parts = partial(loss_in_parts, objective, objective.loss, settings.accumulate_grad_batches)
            objective.loss = parts  # type: ignore[method-assign]
        yield
    finally:
        for module in (*blocks, *heads, objective):
            for name in ("forward", "errors", "loss"):
                vars(module).pop(name, None)  # back to the class' own


def loss_in_parts(objective: Objective, loss: Callable[[Batch], Loss], n_parts: int, batch: Batch) -> Loss:
    """Gradient accumulation: the loss of all rows, from the activations of one part of them at a time.

    Each part's gradients are found at once. Sums and counts are added before they are divided, so that parts
    with more targets weigh more, as they do in the whole.

    Args:
        objective: whose parameters are trained.
        loss: of a batch.
        n_parts: into which the rows are split, as evenly as they can be.
        batch: of a step.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    split = {name: values.chunk(n_parts) for name, values in batch.items()}
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    gradients: Gradients = []
    for values in zip(*split.values(), strict=True):
        part = loss(dict(zip(split, values, strict=True)))
        sums.append(part.sum.detach())
        counts.append(torch.as_tensor(part.count))
        if torch.is_grad_enabled():
            gradients = _added(gradients, _gradients(part.sum, parameters))
    total = torch.stack(sums).sum(dim=0)
    if gradients:
        by_parameter = zip(parameters, *gradients, strict=True)
        used = [(p, terms) for p, *terms in by_parameter if any(term is not None for term in terms)]
        total = _Found.apply([terms for _, terms in used], total, *(p for p, _ in used))  # type: ignore[no-untyped-call]
    return Loss(total, torch.stack(counts).sum(dim=0))


def _gradients(sums: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Of each term; frees what was kept for them."""
    terms = sums.reshape(-1).unbind()
    return [
        torch.autograd.grad(term, parameters, retain_graph=term is not terms[-1], allow_unused=True)
        for term in terms
    ]


def _added(one: Gradients, other: Gradients) -> Gradients:
    """Their sum; where one is empty, the other."""
    if not one:
        return other
    return [
        tuple(b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True))
        for left, right in zip(one, other, strict=True)
    ]


class _Found(torch.autograd.Function):
    """Hands on gradients that are known, so that clipping, ranks and loss scaling see them as any other."""

    @staticmethod
    def forward(ctx: Any, found: Sequence[Sequence[Tensor | None]], sums: Tensor, *used: Tensor) -> Tensor:
        ctx.found = found  # of each parameter, of each term
        return sums

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scales = outer[0].reshape(-1).unbind()
        return (None, None, *(_weighted(terms, scales) for terms in ctx.found))


def _weighted(terms: Sequence[Tensor | None], scales: Sequence[Tensor]) -> Tensor:
    """One parameter's gradient: that of each term by its scale, added."""
    first, *others = [t * scale.to(t) for t, scale in zip(terms, scales, strict=True) if t is not None]
    return sum(others, first)
