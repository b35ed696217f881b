"""`bench fill`: what a masked language model puts where a text says [MASK]. A folder, a text -> tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.data.pretrained_files import first_line
from bench.errors import ConfigError
from bench.models.from_huggingface import quiet_transformers


@dataclass(frozen=True)
class Candidate:
    """One token with its probability."""

    token: str
    probability: float


@torch.no_grad()
def fill(model: Path, text: str, k: int) -> list[list[Candidate]]:
    """The `k` most probable tokens for each mask of `text`.

    Args:
        model: a folder with a checkpoint of transformers (safetensors), an export of ours among them.
        text: with `[MASK]`, or the model's own mask token, once or more.
        k: how many.

    Raises:
        ConfigError: the folder holds no masked language model with its tokenizer, or the text no mask.
    """
    quiet_transformers()
    tokenizer, masked_lm = _open(model)
    tokens = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
    masked = (tokens["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(masked):
        raise ConfigError(f"text={text!r} holds no mask; write [MASK] where a token is to be filled in")
    length = tokens["input_ids"].shape[1]
    most = getattr(masked_lm.config, "max_position_embeddings", length)
    if length > most:
        raise ConfigError(f"text is {length} tokens long, model={model} reads {most}; shorten it")
    reads_at = (masked - getattr(masked_lm.config, "mask_shift", 0)).clamp(min=0)
    logits = masked_lm(**tokens).logits[0, reads_at]  # (masks, V)
    best = logits.softmax(dim=-1).topk(min(k, logits.shape[-1]))
    return [
        [Candidate(tokenizer.decode([i]), p) for i, p in zip(row.tolist(), shares.tolist(), strict=True)]
        for row, shares in zip(best.indices, best.values, strict=True)
    ]


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    if not folder.is_dir():
        raise ConfigError(f"model={folder} is no folder; give that of a checkpoint, such as exports/<run id>")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, found = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever damaged files and foreign architectures make of it
        reason = first_line(error)
        raise ConfigError(f"model={folder} is no masked language model in safetensors: {reason}") from error
    if found["missing_keys"]:
        raise ConfigError(f"model={folder} has no masked-LM head; use a checkpoint pretrained to fill masks")
    if tokenizer.mask_token is None:
        raise ConfigError(f"model={folder}: its tokenizer has no mask token; use a BERT-style checkpoint")
    return tokenizer, model.eval()
