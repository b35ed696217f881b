"""Adapters that give Hugging Face models the interface of our backbone and head, with our token ids.

The backbone maps our ids to the checkpoint's and returns hidden states of our tokens: tokens that its
tokenizer puts before a text ([CLS], <s>) are added and their states removed. The head is the checkpoint's own
language model without its body. Dropout is off, as in our own backbone, and prefix masks are not supported.
`bench.models.from_huggingface` builds both from files.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from bench.data.pretrained_files import Checkpoint
from bench.errors import ConfigError
from bench.models.heads import Head
from bench.models.transformer import states_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Embedding:
    """The size of an embedding whose weights strategies cannot use."""

    num_embeddings: int


class HuggingFaceBackbone(nn.Module):
    """A replacement of `bench.models.transformer.Transformer`; always in evaluation mode, with gradients."""

    def __init__(self, body: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__()
        self.body = body.eval()
        self.name = checkpoint.name
        self.embedding = Embedding(checkpoint.vocab_size)
        self.is_causal: bool | None = None  # set by `from_huggingface`
        self.is_lossless = checkpoint.is_lossless
        self.to_theirs: Tensor
        self.before: Tensor
        self.register_buffer("to_theirs", torch.tensor(checkpoint.to_theirs), persistent=False)
        before = torch.tensor(checkpoint.prefix, dtype=torch.long)
        self.register_buffer("before", before, persistent=False)

    @property
    def text(self) -> nn.Module:
        """The module that reads texts."""
        return self.body

    @property
    def n_before(self) -> int:
        """P, the tokens that the model puts before every text."""
        return len(self.before)

    @override
    def train(self, mode: bool = True) -> "HuggingFaceBackbone":
        return super().train(False)  # dropout stays off

    def forward(
        self,
        tokens: Tensor,
        attended: Tensor | None = None,
        *,
        causal: bool | None,
        prefix: Tensor | None = None,
        documents: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states.

        Args:
            tokens: (B, T), our ids.
            attended: (B, T) bool, False at padding, on the right; None: no padding.
            causal: the attention that the strategy needs; None: the checkpoint's own.
            prefix, documents, dropout: not supported; `documents` may be None only.
            every_layer: also return the input of the first layer and the output of each of the L layers.
            at: (N,) flat indices of the states to return, as in `states_at`; all are computed.

        Returns:
            (B, T, D), or (N, D) with `at`, or (L + 1, B, T, D) with `every_layer`.

        Raises:
            ConfigError: the checkpoint does not support this attention.
        """
        self._check_attention(causal, documents if prefix is None else prefix, dropout)
        ids, mask = self.read(tokens, attended)
        output = self.text(input_ids=ids, attention_mask=mask, output_hidden_states=every_layer)
        last = output.last_hidden_state
        hidden = torch.stack([*output.hidden_states[:-1], last]) if every_layer else last
        return states_at(hidden[..., self.n_before :, :], at)

    def read(self, tokens: Tensor, attended: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the checkpoint's ids and attention mask, each (B, P + T), with P tokens before the text."""
        attended = torch.ones_like(tokens, dtype=torch.bool) if attended is None else attended
        before = self.before.expand(len(tokens), -1)
        ids = torch.cat([before, self.to_theirs[tokens]], dim=1)
        return ids, torch.cat([torch.ones_like(before), attended.long()], dim=1)

    @contextlib.contextmanager
    def recorded_attention(self) -> Iterator[list[Tensor]]:
        """Record the attention weights of forward passes inside the block: (B, H, P + T, P + T) per layer.

        The list stays empty if the architecture returns no attention weights.
        """
        recorded: list[Tensor] = []

        def request(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return inputs, named | {"output_attentions": True}

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            recorded.extend(weights for weights in output.attentions or () if weights is not None)

        text: Any = self.text
        was = text.config._attn_implementation
        text.set_attn_implementation("eager")  # fused kernels return no weights
        handles = [
            text.register_forward_pre_hook(request, with_kwargs=True),
            text.register_forward_hook(record),
        ]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()
            text.set_attn_implementation(was)

    def _check_attention(self, causal: bool | None, prefix: Tensor | None, dropout: float) -> None:
        if prefix is None and not dropout and (causal is None or causal == self.is_causal):
            return
        own, fits = ("causal", "clm") if self.is_causal else ("bidirectional", "mlm or a similar one")
        raise ConfigError(
            f"model.name={self.name} has {own} attention and no dropout, but this strategy needs another; "
            f"choose strategy={fits}, or strategy.attention={own} for strategy=scratch"
        )


class ClipBackbone(HuggingFaceBackbone):
    """CLIP (arXiv:2103.00020): states of its text tower, and embeddings of both towers in one space."""

    def __init__(self, body: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__(body, checkpoint)
        path = checkpoint.folder / "preprocessor_config.json"
        stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.mean: Tensor
        self.std: Tensor
        for name, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            channels = torch.tensor(stated.get(f"image_{name}", default))[:, None, None]  # (3, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    @property
    @override
    def text(self) -> nn.Module:
        tower = self.body.text_model
        assert isinstance(tower, nn.Module)
        return tower

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images, resized to the tower's input: (B, S, S, 3) uint8 -> unit rows (B, E)."""
        size = self.body.config.vision_config.image_size
        pixels = images.permute(0, 3, 1, 2).to(self.mean) / 255
        resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return _unit(self.body.get_image_features(pixel_values=(resized - self.mean) / self.std))

    def embed_texts(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Embed texts: (B, L) of our ids and their mask -> unit rows (B, E)."""
        ids, mask = self.read(tokens, attended)
        return _unit(self.body.get_text_features(input_ids=ids, attention_mask=mask))


class HuggingFaceHead(Head):
    """Predict our ids: hidden states (..., D) -> logits (..., V); duplicate ids get the lowest logit."""

    def __init__(self, model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = model
        self.to_theirs: Tensor
        self.duplicates: Tensor
        self.register_buffer("to_theirs", torch.tensor(checkpoint.to_theirs), persistent=False)
        duplicates = torch.zeros(checkpoint.vocab_size, dtype=torch.bool)
        duplicates[checkpoint.aliases] = True
        self.register_buffer("duplicates", duplicates, persistent=False)
        setattr(model, model.base_model_prefix, _Passthrough())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D) -> (..., V)."""
        logits = self.model(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1])).logits[0]
        return self.ours(logits).reshape(*hidden.shape[:-1], -1)

    def ours(self, logits: Tensor) -> Tensor:
        """Reorder the checkpoint's logits (..., V') by our ids: (..., V)."""
        ordered = logits.index_select(-1, self.to_theirs)
        return ordered.masked_fill(self.duplicates, torch.finfo(logits.dtype).min)


class _Passthrough(nn.Module):
    """Stands in for the body of a model: returns its input as the hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _unit(features: Any) -> Tensor:
    """Normalise features, which may be the pooled output of a transformers result, to unit length."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)
