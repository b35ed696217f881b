"""Fill the masks of a text with a masked language model, for `bench fill`: a folder, a text -> tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.data.pretrained_files import first_line
from bench.errors import ConfigError, printable
from bench.models.from_huggingface import misfit, quiet_transformers


@dataclass(frozen=True)
class Candidate:
    """One token with its probability."""

    token: str
    probability: float


@torch.no_grad()
def fill(model: Path, text: str, k: int) -> list[list[Candidate]]:
    """Return the `k` most probable tokens for each mask of `text`.

    Args:
        model: a folder with a checkpoint of transformers (safetensors), such as an export of this project.
        text: contains `[MASK]`, or the model's own mask token, one or more times.
        k: candidates per mask.

    Raises:
        ConfigError: the folder holds no masked language model with its tokenizer, or the text no mask or
            bytes that are not UTF-8.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(f"text={printable(text)}: not UTF-8 text; type it in a UTF-8 terminal")
    quiet_transformers()
    tokenizer, masked_lm = _open(model)
    tokens = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
    masked = (tokens["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
    if not len(masked):
        raise ConfigError(f"text={text!r} holds no mask; write [MASK] where a token is to be filled in")
    length = tokens["input_ids"].shape[1]
    most = getattr(masked_lm.config, "max_position_embeddings", length)
    if length > most:
        raise ConfigError(f"text is {length} tokens long, but model={model} reads {most}; shorten it")
    at = (masked - getattr(masked_lm.config, "mask_shift", 0)).clamp(min=0)
    logits = masked_lm(**tokens).logits[0, at]  # (masks, V)
    best = logits.softmax(dim=-1).topk(min(k, logits.shape[-1]))
    return [
        [
            Candidate(tokenizer.decode([i]), p)
            for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]
        for ids, probabilities in zip(best.indices, best.values, strict=True)
    ]


def _open(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    if not folder.is_dir():
        raise ConfigError(f"model={folder} is no folder; give that of a checkpoint, such as exports/<run id>")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files and unknown architectures raise many types
        reason = first_line(error)
        raise ConfigError(f"model={folder} is no masked language model in safetensors: {reason}") from error
    if report["missing_keys"]:
        raise ConfigError(f"model={folder} has no masked-LM head; use a checkpoint pretrained to fill masks")
    if problem := misfit(model, report):
        raise ConfigError(f"model={folder}: {problem}; its config.json describes another model")
    if tokenizer.mask_token is None:
        raise ConfigError(f"model={folder}: its tokenizer has no mask token; use a BERT-style checkpoint")
    return tokenizer, model.eval()
