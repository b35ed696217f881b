"""The tokenizer: lossless byte-level BPE, the same for all strategies."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.config.schema import MAX_VOCAB_SIZE as MAX_VOCAB_SIZE
from bench.config.schema import MIN_VOCAB_SIZE as MIN_VOCAB_SIZE

SPECIAL_TOKENS = ["[PAD]", "[EOS]", "[MASK]", "[BOS]"]
PAD, EOS, MASK, BOS = range(len(SPECIAL_TOKENS))
LONGEST_WORD = 1000  # characters, in training
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` tokens; few distinct words give fewer tokens.

    Words of thousands of characters are cut first, since the time grows with the length of the longest word
    times the number of tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain.from_iterable(map(_short_words, texts)), trainer)
    return tokenizer


def _short_words(text: str) -> Iterator[str]:
    """Yield the text, cut after every `LONGEST_WORD` characters without, or of nothing but, white space."""
    start = 0
    for word in LONG_WORD.finditer(text):
        yield text[start : word.end()]
        start = word.end()
    yield text[start:]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that treats "[MASK]" in a text as ordinary text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer
