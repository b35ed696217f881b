"""The cost of an evaluation in FLOPs: forward hooks count every pass through a model's backbone.

Torch's own counter (`torch.utils.flop_counter`) misses attention on CPU and doubles the time of small fits.
The meter uses the same functions as pretraining (`bench.models.flops`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.config.schema import Model
from bench.models.decoder import Decoder
from bench.models.flops import BACKWARD_OVER_FORWARD, blocks_flops, decoder_flops, head_flops
from bench.models.heads import Head


@dataclass
class Meter:
    """A running total of FLOPs."""

    flops: float = 0.0

    def add(self, forward_flops: float) -> None:
        """Add a forward pass, and its backward pass if gradients are recorded."""
        self.flops += forward_flops * (1 + BACKWARD_OVER_FORWARD * torch.is_grad_enabled())

    @contextlib.contextmanager
    def reads(self, backbone: nn.Module, model: Model) -> Iterator[None]:
        """Count passes of ids (B, T) through a backbone of this size and through copies of it."""

        def count(module: nn.Module, inputs: tuple[Any, ...], how: dict[str, Any], output: Tensor) -> None:
            batch, length = inputs[0].shape
            at = how.get("at")
            self.add(batch * blocks_flops(model, length, None if at is None else len(at) / batch))

        handle = backbone.register_forward_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def writes(self, objective: nn.Module, model: Model) -> Iterator[None]:
        """Count passes through prediction heads and decoders, which `reads` does not count."""

        def count_head(module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
            vocab_size = logits.shape[-1]
            self.add(head_flops(model, vocab_size, logits.numel() / vocab_size))

        def count_decoder(module: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> None:
            batch, length = hidden.shape[:2]
            self.add(batch * decoder_flops(model, length, inputs[1].shape[1]))

        with contextlib.ExitStack() as handles:
            for module in objective.modules():
                if isinstance(module, Head):
                    handles.callback(module.register_forward_hook(count_head).remove)
                elif isinstance(module, Decoder):
                    handles.callback(module.register_forward_hook(count_decoder).remove)
            yield
