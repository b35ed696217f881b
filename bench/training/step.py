"""How a step is computed: its precision, compilation, recomputation and gradient accumulation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed
from typing_extensions import override

from bench.config.schema import Trainer
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models.heads import PredictionHead
from bench.objectives.base import Loss, Objective
from bench.training.distributed import blocks_of

Gradients = list[tuple[Tensor | None, ...]]  # per term of a loss and parameter; None: not used


@contextmanager
def computed_as(objective: Objective, settings: Trainer) -> Iterator[None]:
    """Apply the settings to the blocks and the loss of an objective; afterwards restore both, for tasks.

    Raises:
        ConfigError: gradient accumulation with a loss that compares the rows of a step.
    """
    if settings.accumulate_grad_batches > 1 and objective.couples_rows:
        raise ConfigError(
            f"trainer.accumulate_grad_batches={settings.accumulate_grad_batches}: {type(objective).__name__} "
            "compares all rows of a step with each other; use trainer.recompute=true instead"
        )
    blocks = blocks_of(objective)
    heads = [module for module in objective.modules() if isinstance(module, PredictionHead)]
    if settings.compile:
        torch.compiler.reset()  # the number of compilations per function is limited, over all runs
    try:
        # Not on a CPU, where a block of logits stays in the cache and fusing makes it slower: 0.87 to 0.98.
        for head in heads if settings.compile and settings.accelerator == "gpu" else ():
            head.nll_and_gradient = torch.compile(head.nll_and_gradient)  # type: ignore[method-assign]
        for block in blocks:
            if settings.compile:
                block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
            if settings.recompute:  # keep only the input of every block (arXiv:1604.06174)
                block.forward = partial(checkpointed, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if settings.accumulate_grad_batches > 1:
            parts = partial(loss_in_parts, objective, objective.loss, settings.accumulate_grad_batches)
            objective.loss = parts  # type: ignore[method-assign]
        yield
    finally:
        for module in (*blocks, *heads, objective):
            for name in ("forward", "nll_and_gradient", "loss"):
                vars(module).pop(name, None)  # restores those of the class


def loss_in_parts(objective: Objective, loss: Callable[[Batch], Loss], n_parts: int, batch: Batch) -> Loss:
    """Accumulate gradients: compute the loss of all rows with the activations of one part at a time.

    The gradients of each part are computed at once. Sums and counts are added before they are divided, so
    that the result is the loss of the whole batch, also if parts have different numbers of targets.
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
        total = _KnownGradients.apply([terms for _, terms in used], total, *(p for p, _ in used))  # type: ignore[no-untyped-call]
    return Loss(total, torch.stack(counts).sum(dim=0))


def _gradients(sums: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Return the gradients of each term, and free the graph."""
    terms = sums.reshape(-1).unbind()
    return [
        torch.autograd.grad(term, parameters, retain_graph=term is not terms[-1], allow_unused=True)
        for term in terms
    ]


def _added(one: Gradients, other: Gradients) -> Gradients:
    """Add two sets of gradients; if one is empty, return the other."""
    if not one:
        return other
    return [
        tuple(b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True))
        for left, right in zip(one, other, strict=True)
    ]


class _KnownGradients(torch.autograd.Function):
    """Inject precomputed gradients into autograd, for clipping, ranks and loss scaling."""

    @staticmethod
    def forward(
        ctx: Any, gradients: Sequence[Sequence[Tensor | None]], sums: Tensor, *used: Tensor
    ) -> Tensor:
        ctx.gradients = gradients  # for each parameter, for each term
        return sums

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scales = outer[0].reshape(-1).unbind()
        return (None, None, *(_weighted(terms, scales) for terms in ctx.gradients))


def _weighted(terms: Sequence[Tensor | None], scales: Sequence[Tensor]) -> Tensor:
    """Return the gradient of one parameter: the sum over terms, each times its scale."""
    first, *others = [t * scale.to(t) for t, scale in zip(terms, scales, strict=True) if t is not None]
    return sum(others, first)


class Bf16(MixedPrecision):
    """bf16 by autocast, with gradient clipping under a fused optimizer.

    Lightning refuses this combination, because a fused optimizer removes the scale of fp16 gradients only in
    its step. bf16 has the range of float32, so nothing is scaled.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    @override
    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        Precision.clip_gradients(self, *args, **kwargs)


def precision_plugins(settings: Trainer) -> list[Precision]:
    """Return plug-ins that replace Lightning's `precision`, which it does not accept beside them."""
    if settings.precision != "bf16-mixed":
        return []
    return [Bf16(device_of(settings).type)]


def device_of(trainer: Trainer) -> torch.device:
    """Return the device on which a run's steps and tasks are computed."""
    return torch.device("cuda" if trainer.accelerator == "gpu" else "cpu")
