"""The numbers that a step is computed in: in full, or its matrix products in 16 bits, by autocast."""

from typing import Any

import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision

from bench.config.schema import Trainer

FP16 = "16-mixed"  # of too small a range for gradients, which are scaled


class Bf16(MixedPrecision):
    """bf16 by autocast, where the gradients of a fused optimizer may be clipped.

    Lightning refuses that, since such an optimizer takes out the scale of fp16's gradients only in its step.
    bf16 has the range of float32, so nothing is scaled.

    Args:
        device: cpu or cuda.
    """

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        """As without autocast."""
        Precision.clip_gradients(self, *args, **kwargs)


def plugins_of(settings: Trainer) -> list[Precision]:
    """What replaces Lightning's own way; it takes no `precision` beside it."""
    if settings.precision != "bf16-mixed":
        return []
    return [Bf16(device_of(settings).type)]


def device_of(trainer: Trainer) -> torch.device:
    """Where a run's steps and tasks are done."""
    return torch.device("cuda" if trainer.accelerator == "gpu" else "cpu")
