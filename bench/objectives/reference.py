"""An external reference: a checkpoint trained elsewhere, measured as it is and never trained here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.config.schema import Optim
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, InapplicableError
from bench.models.huggingface import ClipBackbone
from bench.models.pooling import POOLINGS
from bench.objectives.base import Attention, Core, Likelihood, Modality, Objective, ObjectiveOptions, Shapes
from bench.objectives.likelihood import causal_nats
from bench.objectives.sampling import Sampling, causal_logits, left_to_right


class Reference(Objective):
    """Features of the checkpoint's own hidden states. One with two towers embeds images and texts."""

    modality: ClassVar[Modality] = "none"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """How hidden states become features; attention is the checkpoint's."""

        def __post_init__(self) -> None:
            if self.attention != "own":
                raise ConfigError(f"strategy.attention={self.attention!r}: a checkpoint has its own; use own")
            if self.pooling not in POOLINGS:
                raise ConfigError(f"strategy.pooling={self.pooling!r}: choose one of {', '.join(POOLINGS)}")

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        if core is None:
            raise ConfigError("strategy=reference measures a checkpoint: choose model=hf model.name=PATH")
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.head = core.head
        backbone: object = core.backbone
        if isinstance(backbone, ClipBackbone):
            self.embed_images: Callable[[Tensor], Tensor] = backbone.embed_images
            self.embed_texts: Callable[[Tensor], Tensor] = self._embed_texts

    def _is_causal(self, attention: Attention) -> bool:
        """The checkpoint's own way alone; what it puts before a text is left out of its states."""
        is_causal = bool(self.backbone.is_causal)
        if attention not in ("own", "causal" if is_causal else "bidirectional"):
            raise InapplicableError(f"the checkpoint has no {attention} attention")
        return is_causal

    @property
    def likelihoods(self) -> frozenset[Likelihood]:  # type: ignore[override]
        """Exact where it reads from left to right, predicts, and its tokens give a text back."""
        return frozenset({"exact"} if self.writes and self.backbone.is_lossless else ())

    @property
    def writes(self) -> str | None:  # type: ignore[override]
        """It does where it reads from left to right and predicts."""
        predicts = not isinstance(self.head, nn.Identity)
        return "left to right" if predicts and self.backbone.is_causal else None

    @torch.no_grad()
    def token_nats(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Exact."""
        return causal_nats(self.backbone, self.head, tokens, scored)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Each token given those on its left."""
        if self.writes is None:
            return super().write(prompts, n_new, sampling, uniforms)

        next_logits = causal_logits(self.backbone, self.head, self.shapes.vocab_size)
        return left_to_right(next_logits, prompts, n_new, sampling, uniforms[:, :, 0])

    def _embed_texts(self, tokens: Tensor) -> Tensor:
        backbone: object = self.backbone
        assert isinstance(backbone, ClipBackbone)
        return backbone.embed_texts(tokens, tokens != PAD)
