"""An external reference: a checkpoint that was trained elsewhere, evaluated as it is."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from bench.config.schema import Optim
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, InapplicableError
from bench.models.huggingface_adapters import ClipBackbone
from bench.objectives.base import (
    Attention,
    Core,
    Likelihood,
    Modality,
    Objective,
    ObjectiveOptions,
    Shapes,
)
from bench.objectives.likelihood import causal_nll
from bench.objectives.options import ReferenceOptions
from bench.objectives.sampling import Sampling, write_causally


class Reference(Objective):
    """Features are the checkpoint's own hidden states; one with two towers also embeds images and texts."""

    modality: ClassVar[Modality] = "none"
    measures_checkpoint = True

    Options = ReferenceOptions

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

    @override
    def _is_causal(self, attention: Attention) -> bool:
        is_causal = bool(self.backbone.is_causal)
        if attention not in ("own", "causal" if is_causal else "bidirectional"):
            raise InapplicableError(f"the checkpoint has no {attention} attention")
        return is_causal

    @property
    def likelihoods(self) -> frozenset[Likelihood]:  # type: ignore[override]
        """Exact if it is a causal language model whose tokens encode texts without loss."""
        return frozenset({"exact"} if self.writes and self.backbone.is_lossless else ())

    @property
    def writes(self) -> str | None:  # type: ignore[override]
        """From left to right if it is a causal language model."""
        predicts = not isinstance(self.head, nn.Identity)
        return "left to right" if predicts and self.backbone.is_causal else None

    @override
    @torch.no_grad()
    def token_nll(
        self, tokens: Tensor, kind: Likelihood, *, scored: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        return causal_nll(self.backbone, self.head, tokens, scored)

    @override
    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        if self.writes is None:
            return super().write(prompts, n_new, sampling, uniforms)
        vocab_size = self.shapes.vocab_size
        return write_causally(self.backbone, self.head, vocab_size, prompts, n_new, sampling, uniforms)

    def _embed_texts(self, tokens: Tensor) -> Tensor:
        backbone: object = self.backbone
        assert isinstance(backbone, ClipBackbone)
        return backbone.embed_texts(tokens, tokens != PAD)
