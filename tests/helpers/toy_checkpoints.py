"""Tiny Hugging Face checkpoints with weights drawn at random and tokenizers trained on a few words."""

# ruff: noqa: S106 - tokens, not passwords
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench.data.pretrained_files import Checkpoint, open_checkpoint
from bench.models.from_huggingface import Loaded, load

LENGTH = 24  # of texts, in tokens

TEXTS = [
    "Some words, 42 of them, näher betrachtet.",
    "the quick brown fox jumps over the lazy dog, says [MASK] and </s>",
    "Sphinx of black quartz, judge my vow: 0123456789!",
]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]"}
END = "<|end|>"


def trained(model: Any, splitter: Any, trainer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def wordpiece() -> Any:
    """As BERT has it: [CLS] text [SEP], in lower case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = list(SPECIAL.values())
    tokenizer.train_from_iterator(
        TEXTS * 4, trainers.WordPieceTrainer(vocab_size=120, special_tokens=names, show_progress=False)
    )
    return framed(tokenizer, "[CLS] $A [SEP]", **SPECIAL)


def byte_level(special: list[str], frame: str | None, **named: str) -> Any:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = trained(models.BPE(), splitter, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return framed(tokenizer, frame, **named)


def gpt() -> Any:
    """As GPT-2 has it: one token that begins, ends and stands for the unknown; the last id; none added."""
    theirs = byte_level([], None)
    theirs.add_special_tokens({"eos_token": END, "bos_token": END, "unk_token": END})
    return theirs


def roberta() -> Any:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    named = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), names, strict=True))
    return byte_level(names, "<s> $A </s>", **named, cls_token="<s>", sep_token="</s>")


def clip() -> Any:
    """As CLIP has it: the closing token pads."""
    named = {"bos_token": "<|start|>", "eos_token": END, "pad_token": END, "unk_token": END}
    return byte_level(["<|start|>", END], f"<|start|> $A {END}", **named)


def unigram() -> Any:
    """As T5 has it: a text is closed, nothing is put before it."""
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer = trained(models.Unigram(), pre_tokenizers.Metaspace(), trainer)
    return framed(tokenizer, "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def framed(tokenizer: Tokenizer, frame: str | None, **named: str) -> Any:
    if frame:
        specials = [(word, tokenizer.token_to_id(word)) for word in frame.split() if word != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=specials)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert(vocab_size: int, **changes: Any) -> Any:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**WIDE | {"vocab_size": vocab_size, "max_position_embeddings": 72} | changes)
    )


def distilbert(vocab_size: int) -> Any:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    config = transformers.DistilBertConfig(**sizes, vocab_size=vocab_size)
    return transformers.DistilBertForMaskedLM(config)


def roberta_model(vocab_size: int) -> Any:
    config = transformers.RobertaConfig(**WIDE, vocab_size=vocab_size, max_position_embeddings=80)
    return transformers.RobertaForMaskedLM(config)


def modernbert(vocab_size: int) -> Any:
    config = transformers.ModernBertConfig(**WIDE, vocab_size=vocab_size, pad_token_id=0)
    return transformers.ModernBertForMaskedLM(config)


def gpt2(vocab_size: int) -> Any:
    config = transformers.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=72)
    return transformers.GPT2LMHeadModel(config)


def modernbert_decoder(vocab_size: int) -> Any:
    config = transformers.ModernBertDecoderConfig(**WIDE, vocab_size=vocab_size, pad_token_id=0)
    return transformers.ModernBertDecoderForCausalLM(config)


def t5(vocab_size: int) -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, vocab_size=vocab_size, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def clip_model(vocab_size: int) -> Any:
    text = WIDE | {"vocab_size": vocab_size, "max_position_embeddings": 72, "eos_token_id": 1}
    vision = WIDE | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return transformers.CLIPModel(config)


MAKERS: Mapping[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "bert": (wordpiece, bert),
    "distilbert": (wordpiece, distilbert),
    "roberta": (roberta, roberta_model),
    "modernbert": (wordpiece, modernbert),
    "gpt2": (gpt, gpt2),
    "modernbert_decoder": (gpt, modernbert_decoder),
    "t5": (unigram, t5),
    "clip": (clip, clip_model),
}
MASKED = ["bert", "distilbert", "roberta", "modernbert"]
CAUSAL = ["gpt2", "modernbert_decoder"]


def write_checkpoint(kind: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint as `save_pretrained` leaves it."""
    tokenizer_maker, maker = MAKERS[kind]
    tokenizer = tokenizer_maker()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = maker(len(tokenizer), **changes)
        for weight in model.parameters():  # no bias is 0, no norm is 1: a lost one shows
            torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(
    folder: Path, *, predicts: bool | None = False, pretrained: bool = True
) -> tuple[Checkpoint, Loaded]:
    checkpoint = open_checkpoint(str(folder))
    loaded = load(checkpoint, patch_size=8, length=LENGTH, pretrained=pretrained, predicts=predicts)
    return checkpoint, loaded
