"""Words and their states: sentences -> windows of ids -> one vector per word.

A sentence is read as its words with single spaces between them, as in pretraining text, and a token belongs
to the word that its last character lies in. A sentence that is too long for the model is read in several
windows; each word is read in exactly one of them, none is dropped.
Shapes: S sentences, K words in all of them, W windows of at most T ids, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from bench.data.tokenizer import EOS, PAD
from bench.objectives.base import Attention, Objective
from bench.tasks import probe

NOT_READ = -1


@dataclass(frozen=True)
class Windows:
    """Sentences as a model reads them.

    Attributes:
        tokens: (W, T) ids, each window closed by EOS and padded on the right.
        owner: (W, T) the word, counted over all sentences, to whose state a token adds; `NOT_READ` for none.
        sentence: (W,) the sentence that a window is of.
        starts: (S + 1,) where each sentence starts among all words; the last is K.
        has_state: (K,) False for a word that the tokenizer leaves nothing of.
    """

    tokens: Tensor
    owner: Tensor
    sentence: Tensor
    starts: Tensor
    has_state: Tensor


def windows(
    sentences: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    length: int,
    *,
    first_only: bool,
    context_share: float,
) -> Windows:
    """Encode words.

    Args:
        sentences: the words of each.
        length: ids in a window at most, with its EOS.
        first_only: a word's state is that of its first token; else the mean over its tokens. Of a word
            that is longer than a window, the tokens that fit into it.
        context_share: of a window, ids of the window before that a further one starts with, read again so
            that its first words have a left context.
    """
    encodings = tokenizer.encode_batch([" ".join(words) for words in sentences], add_special_tokens=False)
    starts = np.cumsum([0, *map(len, sentences)])
    rows: list[tuple[int, list[int], list[int]]] = []
    for s, (words, encoding) in enumerate(zip(sentences, encodings, strict=True)):
        word_of = _owners(words, encoding)
        for begin, first, stop in _cuts(word_of, length - 1, context_share):
            read = [NOT_READ] * (first - begin)
            for i in range(first, stop):
                again = first_only and word_of[i] in word_of[first:i]
                read.append(NOT_READ if again or word_of[i] == NOT_READ else int(starts[s]) + word_of[i])
            rows.append((s, encoding.ids[begin:stop], read))
    width = max((len(ids) for _, ids, _ in rows), default=0) + 1
    tokens = torch.tensor([[*ids, EOS] + [PAD] * (width - 1 - len(ids)) for _, ids, _ in rows])
    owner = torch.tensor([read + [NOT_READ] * (width - len(read)) for _, _, read in rows])
    has_state = torch.zeros(int(starts[-1]), dtype=torch.bool)
    has_state[owner[owner != NOT_READ]] = True
    return Windows(tokens, owner, torch.tensor([s for s, _, _ in rows]), torch.from_numpy(starts), has_state)


def _owners(words: Sequence[str], encoding: Encoding) -> list[int]:
    """The word of each token; `NOT_READ` for one that is only the space between words."""
    at: list[int] = []  # the word at each character
    for i, word in enumerate(words):
        at += [i] * len(word) + [NOT_READ]
    return [at[last - 1] if last > first else NOT_READ for first, last in encoding.offsets]


def _cuts(owner: list[int], room: int, context_share: float) -> list[tuple[int, int, int]]:
    """Windows of a sentence: where the context begins, the first token that is new, and the end."""
    ends = [i + 1 for i in range(len(owner)) if i + 1 == len(owner) or _starts_word(owner, i + 1)]
    cuts: list[tuple[int, int, int]] = []
    first = 0
    while first < len(owner):
        begin = max(0, first - int(context_share * room))
        word_end = min(end for end in ends if end > first)
        if word_end > begin + room:  # a long word: rather the whole of it than a context
            begin = first
        stop = max((end for end in ends if first < end <= begin + room), default=begin + room)
        cuts.append((begin, first, stop))
        first = max(stop, word_end)  # of a word longer than a window, the rest is not read
    return cuts


def _starts_word(owner: list[int], i: int) -> bool:
    """Does a window that ends before token i leave every word whole? A space goes with the word after it."""
    return owner[i - 1] not in (owner[i], NOT_READ)


def read_words(
    model: Objective, tokens: Tensor, owner: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """States of the words in some windows.

    Returns:
        The words, counted over all sentences, ascending (k,) on CPU, and their states (k, D).
    """
    width = int((tokens != PAD).sum(dim=1).max())
    tokens, owner = tokens[:, :width], owner[:, :width]
    read = owner != NOT_READ
    hidden = model.states(tokens.to(model.device), attention)[read.to(model.device)]
    words, place, n_tokens = owner[read].unique(return_inverse=True, return_counts=True)
    total = hidden.new_zeros(len(words), hidden.shape[1]).index_add(0, place.to(model.device), hidden)
    return words, total / n_tokens.to(total)[:, None]


@torch.no_grad()
def all_words(model: Objective, text: Windows, attention: Attention) -> Tensor:
    """Frozen states (K, D) of all words, in batches of windows of similar length; NaN where there is none."""
    model.eval()
    states = torch.full((len(text.has_state), model.shapes.model.d_model), torch.nan, device=model.device)
    lengths = (text.tokens != PAD).sum(dim=1)
    for index in lengths.argsort(stable=True).split(probe.EVALUATION_BATCH):
        words, found = read_words(model, text.tokens[index], text.owner[index], attention)
        states[words.to(model.device)] = found
    return states
