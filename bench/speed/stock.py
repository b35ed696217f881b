"""The stock classes of transformers that ours are timed against: how each is sized, what it reads of a batch.

Each has our width, blocks, heads, vocabulary and dropout (none), and its own feed-forward: 4 D wide where it
is not gated, as ours where it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.data.batches import Batch
from bench.data.tokenizer import BOS, EOS, PAD
from bench.models.cross_entropy import IGNORED
from bench.models.rope import ROPE_THETA
from bench.models.vision import to_float
from bench.speed.ours import Setup

PLAIN_WIDTH = 4  # of a feed-forward that is not gated, in widths of the model
Fields = dict[str, Any]  # arguments of a model's forward


@dataclass(frozen=True)
class Stock:
    """A class of transformers, how it is sized, and what it reads of a batch of ours."""

    name: str
    config: Callable[[Setup], Any]
    fields: Callable[[Batch, Setup], Fields]


# What each class reads


def _continued(batch: Batch, ready: Setup) -> Fields:
    return {"input_ids": batch["tokens"], "labels": batch["tokens"]}  # the class shifts them


def _hidden(batch: Batch, ready: Setup) -> Fields:
    """As many targets as ours in each row, at random positions."""
    tokens = batch["tokens"]
    n_targets = min(tokens.shape[1], max(1, round(ready.cost.predicted_tokens / ready.cost.rows)))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(tokens.shape, generator=generator).argsort(dim=1)[:, :n_targets]
    labels = torch.full_like(tokens, IGNORED).scatter(1, chosen, tokens.gather(1, chosen))
    return {"input_ids": tokens, "labels": labels}


def _spans(batch: Batch, ready: Setup) -> Fields:
    return {"input_ids": batch["tokens"], "labels": batch["targets"]}


def _pairs(batch: Batch, ready: Setup) -> Fields:
    images = to_float(batch["images"])
    return {"pixel_values": images, "input_ids": batch["captions"], "return_loss": True}


# How each class is sized


def vocab_size(ready: Setup) -> int:
    """That of our own embedding, the ids of the strategy's own included."""
    return ready.objective.backbone.embedding.num_embeddings


def _gpt2(ready: Setup) -> Any:
    from transformers import GPT2Config

    model = ready.config.model
    return GPT2Config(
        vocab_size=vocab_size(ready),
        n_positions=ready.config.sequence_length,
        n_embd=model.d_model,
        n_layer=model.n_layers,
        n_head=model.n_heads,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **_special_ids(),
        use_cache=False,
    )


def _modernbert(ready: Setup, name: str, **settings: Any) -> Any:
    import transformers

    model = ready.config.model
    return getattr(transformers, name)(
        vocab_size=vocab_size(ready),
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        intermediate_size=model.d_ff,
        max_position_embeddings=ready.config.sequence_length,
        layer_types=["full_attention"] * model.n_layers,  # as ours; a window of 128 would see no less
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": ROPE_THETA}},
        **_special_ids(),
        cls_token_id=BOS,
        sep_token_id=EOS,
        **settings,
    )


def _modernbert_masked(ready: Setup) -> Any:
    return _modernbert(ready, "ModernBertConfig", sparse_prediction=True)  # logits at targets only, as ours


def _modernbert_decoder(ready: Setup) -> Any:
    return _modernbert(ready, "ModernBertDecoderConfig", use_cache=False)


def _t5(ready: Setup) -> Any:
    from transformers import T5Config

    model = ready.config.model
    return T5Config(
        vocab_size=vocab_size(ready),
        d_model=model.d_model,
        d_kv=model.d_model // model.n_heads,
        d_ff=PLAIN_WIDTH * model.d_model,
        num_layers=model.n_layers,
        num_decoder_layers=model.n_layers,
        num_heads=model.n_heads,
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        use_cache=False,
    )


def _clip(ready: Setup) -> Any:
    from transformers import CLIPConfig

    model = ready.config.model
    tower = {
        "hidden_size": model.d_model,
        "intermediate_size": PLAIN_WIDTH * model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "projection_dim": model.d_model,
    }
    length = {"vocab_size": vocab_size(ready), "max_position_embeddings": ready.config.caption_length}
    image = {"image_size": ready.data.pairs.image_size, "patch_size": model.patch_size}
    return CLIPConfig(
        text_config=tower | length | _special_ids(),
        vision_config=tower | image,
        projection_dim=model.d_model,
    )


def _special_ids() -> dict[str, int]:
    return {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


STOCK: Mapping[str, Stock] = {
    "gpt2": Stock("GPT2LMHeadModel", _gpt2, _continued),
    "modernbert_decoder": Stock("ModernBertDecoderForCausalLM", _modernbert_decoder, _continued),
    "modernbert": Stock("ModernBertForMaskedLM", _modernbert_masked, _hidden),
    "t5": Stock("T5ForConditionalGeneration", _t5, _spans),
    "clip": Stock("CLIPModel", _clip, _pairs),
}
