"""Export weights and tokenizer to Hugging Face's ModernBERT: objective -> model of a stock class.

The backbone computes what those classes compute (see `bench.models.transformer`), so an export only renames
weights. Transformers is imported late because the import takes seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor

from bench.data.tokenizer import BOS, EOS, MASK, PAD, SPECIAL_TOKENS
from bench.models.transformer import NORM_EPS, ROPE_THETA
from bench.objectives.base import Objective, StockClass

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BODY = {  # our prefix -> the prefix in transformers
    "backbone.embedding.": "embeddings.tok_embeddings.",
    "backbone.blocks.embedding_norm.": "embeddings.norm.",
    "backbone.blocks.": "",
}


@dataclass(frozen=True)
class Architecture:
    """Properties of a stock class of transformers."""

    auto: str  # the Auto class that selects it
    task: str  # its pipeline, by the hub's name
    pipeline: bool = True  # the pipeline is useful for a model that was only pretrained
    decoder: bool = False  # causal; query, key and value have separate matrices
    masks: bool = False  # predicts masked tokens
    head: Mapping[str, str] = field(default_factory=dict)  # as in `BODY`, longest first


ARCHITECTURES: dict[StockClass, Architecture] = {
    "ModernBertModel": Architecture("AutoModel", "feature-extraction"),
    "ModernBertDecoderModel": Architecture("AutoModel", "feature-extraction", decoder=True),
    "ModernBertForMaskedLM": Architecture(
        "AutoModelForMaskedLM",
        "fill-mask",
        masks=True,
        head={"head.decoder.": "decoder.", "head.": "head."},
    ),
    "ModernBertDecoderForCausalLM": Architecture(
        "AutoModelForCausalLM",
        "text-generation",
        decoder=True,
        head={"head.decoder.": "decoder.", "head.": "lm_head."},
    ),
    "ModernBertForTokenClassification": Architecture(
        "AutoModelForTokenClassification",
        "token-classification",
        pipeline=False,
        head={"head.classifier.": "classifier.", "head.": "head."},
    ),
}


def architecture(objective: Objective) -> Architecture:
    """Return the architecture to which an objective is exported."""
    return ARCHITECTURES[objective.stock_class]


def stock_model(objective: Objective) -> "PreTrainedModel":
    """Return a model of transformers with copies of the backbone and, if the class has one, of the head."""
    import transformers

    model = getattr(transformers, objective.stock_class)(stock_config(objective))
    model.load_state_dict(stock_weights(objective), strict=True)
    return model.eval()


def stock_config(objective: Objective) -> "PretrainedConfig":
    """Return the settings with which transformers computes the same as our backbone."""
    import transformers

    model, is_decoder = objective.shapes.model, architecture(objective).decoder
    config = transformers.ModernBertDecoderConfig if is_decoder else transformers.ModernBertConfig
    return config(
        vocab_size=objective.backbone.embedding.num_embeddings,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        intermediate_size=model.d_ff,
        max_position_embeddings=objective.shapes.sequence_length,
        layer_types=["full_attention"] * model.n_layers,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": ROPE_THETA}},
        norm_eps=NORM_EPS,
        num_labels=1,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        cls_token_id=BOS,
        sep_token_id=EOS,
        mask_token_id=MASK,
        mask_shift=objective.mask_shift,  # not a setting of transformers: `bench fill` reads it
    )


def stock_weights(objective: Objective) -> dict[str, Tensor]:
    """Return the weights that the stock class holds, under its names."""
    stock = architecture(objective)
    body = BODY if objective.stock_class.endswith("Model") else {a: f"model.{b}" for a, b in BODY.items()}
    prefixes = body | dict(stock.head)
    renamed: dict[str, Tensor] = {}
    for name, weight in objective.state_dict().items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            continue
        new = prefixes[prefix] + name.removeprefix(prefix)
        if stock.decoder and new.endswith("attn.Wqkv.weight"):
            for part, matrix in zip("qkv", weight.chunk(3), strict=True):
                renamed[new.replace("Wqkv", f"{part}_proj")] = matrix
        else:
            renamed[new] = weight
    return renamed


def other_modules(objective: Objective) -> list[str]:
    """Return the names of modules and parameters whose weights no stock class holds."""
    prefixes = (*BODY, *architecture(objective).head)
    weights = objective.state_dict(keep_vars=True)
    held = {id(weight) for name, weight in weights.items() if name.startswith(prefixes)}
    return sorted({name.split(".")[0] for name, weight in weights.items() if id(weight) not in held})


def write_tokenizer(objective: Objective, path: Path, folder: Path) -> None:
    """Write the tokenizer of a run for transformers; unlike in training, "[MASK]" in a text is the mask.

    It ends texts with EOS, except for decoders, which continue them.

    Args:
        objective: its extra ids become `<extra_id_0>` and so on.
        path: the tokenizer's own file.
        folder: receives the files of transformers.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(path))
    # The mask includes the space before it, which belongs to the masked token.
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    n_extra = objective.backbone.embedding.num_embeddings - objective.shapes.vocab_size
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(n_extra)])
    if not architecture(objective).decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [EOS]", pair="$A [EOS] $B:1 [EOS]:1", special_tokens=[("[EOS]", EOS)]
        )
    names = {"pad": PAD, "eos": EOS, "mask": MASK, "bos": BOS, "cls": BOS, "sep": EOS}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=objective.shapes.sequence_length,
        **{f"{name}_token": SPECIAL_TOKENS[i] for name, i in names.items()},
    ).save_pretrained(folder)
