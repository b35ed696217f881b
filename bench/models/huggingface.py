"""Hugging Face models behind the interface of our backbone and head: our ids in, our ids' logits out.

The backbone takes our ids and gives the checkpoint's hidden states at them; what its tokenizer puts before a
text ([CLS], <s>) is put there and taken away again. The head is the checkpoint's own language model with its
body taken out. Dropout is off, as in our own backbone; there is no prefix mask. They are loaded by
`bench.models.from_huggingface`.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.pretrained_files import Checkpoint
from bench.errors import ConfigError
from bench.models.heads import Head
from bench.models.transformer import states_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Embedding:
    """What strategies ask of an embedding that is not theirs to read."""

    num_embeddings: int


class HuggingFaceBackbone(nn.Module):
    """Called as `bench.models.transformer.Transformer`; always in evaluation mode, gradients flow."""

    def __init__(self, body: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__()
        self.body = body.eval()
        self.name = checkpoint.name
        self.embedding = Embedding(checkpoint.vocab_size)
        self.is_causal: bool | None = None  # once it is known
        self.is_lossless = checkpoint.is_lossless
        self.to_theirs: Tensor
        self.before: Tensor
        self.register_buffer("to_theirs", torch.tensor(checkpoint.to_theirs), persistent=False)
        before = torch.tensor(checkpoint.prefix, dtype=torch.long)
        self.register_buffer("before", before, persistent=False)

    @property
    def text(self) -> nn.Module:
        """What reads texts."""
        return self.body

    @property
    def n_before(self) -> int:
        """P, the tokens of its own that it puts before every text."""
        return len(self.before)

    def train(self, mode: bool = True) -> "HuggingFaceBackbone":
        """Its dropout stays off."""
        return super().train(False)

    def forward(
        self,
        tokens: Tensor,
        attended: Tensor | None = None,
        *,
        causal: bool | None,
        prefix: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states.

        Args:
            tokens: (B, T) ids of ours.
            attended: (B, T) bool, False at padding, on the right; None: no padding.
            causal: as the strategy wants it; None: as the checkpoint does it.
            prefix, dropout: not to be had.
            every_layer: also what goes into the first layer and what comes out of each of the L.
            at: (N,) the places that are wanted, as in `states_at`; the others are computed all the same.

        Returns:
            (B, T, D), or (N, D) `at` places, or (L + 1, B, T, D), the last of which is the same.

        Raises:
            ConfigError: the checkpoint cannot attend so.
        """
        self._check_attention(causal, prefix, dropout)
        ids, mask = self.read(tokens, attended)
        found = self.text(input_ids=ids, attention_mask=mask, output_hidden_states=every_layer)
        last = found.last_hidden_state
        hidden = torch.stack([*found.hidden_states[:-1], last]) if every_layer else last
        return states_at(hidden[..., self.n_before :, :], at)

    def read(self, tokens: Tensor, attended: Tensor | None) -> tuple[Tensor, Tensor]:
        """Their ids and attention mask, each (B, P + T), P of them before the text."""
        attended = torch.ones_like(tokens, dtype=torch.bool) if attended is None else attended
        before = self.before.expand(len(tokens), -1)
        ids = torch.cat([before, self.to_theirs[tokens]], dim=1)
        return ids, torch.cat([torch.ones_like(before), attended.long()], dim=1)

    @contextlib.contextmanager
    def recorded_attention(self) -> Iterator[list[Tensor]]:
        """Attention weights of the passes inside, layer after layer: each (B, H, P + T, P + T).

        P tokens stand before the text. The list is filled as passes happen; it stays empty where an
        architecture gives none.
        """
        found: list[Tensor] = []

        def ask(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return inputs, named | {"output_attentions": True}

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.extend(weights for weights in output.attentions or () if weights is not None)

        text: Any = self.text
        was = text.config._attn_implementation
        text.set_attn_implementation("eager")  # fused kernels give no weights
        handles = [
            text.register_forward_pre_hook(ask, with_kwargs=True),
            text.register_forward_hook(record),
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
            text.set_attn_implementation(was)

    def _check_attention(self, causal: bool | None, prefix: Tensor | None, dropout: float) -> None:
        if prefix is None and not dropout and (causal is None or causal == self.is_causal):
            return
        reads, fits = ("from left to right", "clm") if self.is_causal else ("both ways", "mlm or its like")
        own = "causal" if self.is_causal else "bidirectional"
        raise ConfigError(
            f"model.name={self.name} reads texts {reads}, without dropout, and this strategy does otherwise; "
            f"choose strategy={fits}, or strategy.attention={own} for strategy=scratch"
        )


class ClipBackbone(HuggingFaceBackbone):
    """CLIP (arXiv:2103.00020): hidden states are its text tower's; both towers meet in one space."""

    def __init__(self, body: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__(body, checkpoint)
        path = checkpoint.folder / "preprocessor_config.json"
        stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.mean: Tensor
        self.std: Tensor
        for name, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            channels = torch.tensor(stated.get(f"image_{name}", usual))[:, None, None]  # (3, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    @property
    def text(self) -> nn.Module:
        """The text tower."""
        tower = self.body.text_model
        assert isinstance(tower, nn.Module)
        return tower

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8, resized to what the tower takes -> unit rows (B, E)."""
        size = self.body.config.vision_config.image_size
        pixels = images.permute(0, 3, 1, 2).to(self.mean) / 255
        resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return _unit(self.body.get_image_features(pixel_values=(resized - self.mean) / self.std))

    def embed_texts(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """(B, L) ids of ours and their mask -> unit rows (B, E)."""
        ids, mask = self.read(tokens, attended)
        return _unit(self.body.get_text_features(input_ids=ids, attention_mask=mask))


class HuggingFaceHead(Head):
    """Hidden states (..., D) -> logits (..., V) of our ids; a second id of a token has none."""

    def __init__(self, model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = model
        self.to_theirs: Tensor
        self.silent: Tensor
        self.register_buffer("to_theirs", torch.tensor(checkpoint.to_theirs), persistent=False)
        silent = torch.zeros(checkpoint.vocab_size, dtype=torch.bool)
        silent[checkpoint.aliases] = True
        self.register_buffer("silent", silent, persistent=False)
        setattr(model, model.base_model_prefix, _Given())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D) -> (..., V)."""
        logits = self.model(inputs_embeds=hidden.reshape(1, -1, hidden.shape[-1])).logits[0]
        return self.ours(logits).reshape(*hidden.shape[:-1], -1)

    def ours(self, logits: Tensor) -> Tensor:
        """Their logits (..., V') in the order of our ids (..., V); rows without a token are left out."""
        ordered = logits.index_select(-1, self.to_theirs)
        return ordered.masked_fill(self.silent, torch.finfo(logits.dtype).min)


class _Given(nn.Module):
    """In place of a body: its answer is what it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _unit(features: Any) -> Tensor:
    """Their features, or the pooled ones of an output that holds them -> unit rows."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)
