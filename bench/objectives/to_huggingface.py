"""Our weights and tokenizer as Hugging Face's ModernBERT has them: objective -> model of a stock class.

The backbone computes what those classes compute (see `bench.models.transformer`), so a renaming is all
there is to an export. Transformers is imported late: it takes seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor

from bench.data.tokenizer import BOS, EOS, MASK, PAD, SPECIAL_TOKENS
from bench.models.rope import ROPE_THETA
from bench.models.transformer import NORM_EPS
from bench.objectives.base import Objective, StockClass

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BODY = {  # our prefix -> theirs
    "backbone.embedding.": "embeddings.tok_embeddings.",
    "backbone.blocks.embedding_norm.": "embeddings.norm.",
    "backbone.blocks.": "",
}


@dataclass(frozen=True)
class Architecture:
    """How transformers sees a stock class."""

    auto: str  # the Auto class that picks it
    task: str  # its pipeline, as the hub names it
    pipeline: bool = True  # does that pipeline make sense of a model that was only pretrained?
    decoder: bool = False  # sees the left only; query, key and value are matrices of their own
    masks: bool = False  # predicts hidden tokens
    head: Mapping[str, str] = field(default_factory=dict)  # our prefix -> theirs, the longer first


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
    """That of the class which an objective is exported to."""
    return ARCHITECTURES[objective.stock_class]


def stock_model(objective: Objective) -> "PreTrainedModel":
    """The backbone, with the head where the class has one, as a model of transformers; shares no memory."""
    import transformers

    theirs = getattr(transformers, objective.stock_class)(stock_config(objective))
    theirs.load_state_dict(stock_weights(objective), strict=True)
    return theirs.eval()


def stock_config(objective: Objective) -> "PretrainedConfig":
    """The settings under which transformers computes what our backbone does."""
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
        mask_shift=objective.mask_shift,  # ours: read by `bench fill`
    )


def stock_weights(objective: Objective) -> dict[str, Tensor]:
    """The weights that the stock class holds, under its names."""
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
    """The modules and parameters of an objective with weights that no stock class holds, by name."""
    prefixes = (*BODY, *architecture(objective).head)
    weights = objective.state_dict(keep_vars=True)
    held = {id(weight) for name, weight in weights.items() if name.startswith(prefixes)}
    return sorted({name.split(".")[0] for name, weight in weights.items() if id(weight) not in held})


def write_tokenizer(objective: Objective, path: Path, folder: Path) -> None:
    """The tokenizer of a run as transformers takes it; unlike in training it reads "[MASK]" as the mask.

    Texts end with EOS, except for decoders, which go on where the text ends.

    Args:
        objective: whose extra ids become `<extra_id_0>` and so on.
        path: the tokenizer's own file.
        folder: where transformers' files go.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(path))
    # The mask takes the space before it, which belongs to the token that it hides.
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
