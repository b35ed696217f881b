"""States of words: sentences -> windows of ids -> one vector per word.

A sentence is encoded as its words joined by single spaces, as in pretraining text; a token belongs to the
word that contains the token's last character. A sentence that is too long for the model is read in several
windows. Each word is read in exactly one of them; none is dropped.
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
class WordWindows:
    """Encoded sentences.

    Attributes:
        tokens: (W, T) ids; each window ends with EOS and is padded on the right.
        owner: (W, T) the word whose state a token contributes to, counted over all sentences; `NOT_READ` for
            none.
        sentence: (W,) the sentence of a window.
        starts: (S + 1,) index of each sentence's first word among all words; the last is K.
        has_state: (K,) False for a word that the tokenizer leaves no token of.
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
) -> WordWindows:
    """Encode sentences given as words, in windows of at most `length` ids.

    With `first_only` the state of a word is that of its first token instead of the mean over its tokens. Of
    a word that is longer than a window, only the tokens that fit are used. A further window of a sentence
    starts with the end of the previous one, `context_share` of its length, as left context of the new words.
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
    sentence = torch.tensor([s for s, _, _ in rows])
    return WordWindows(tokens, owner, sentence, torch.from_numpy(starts), has_state)


def _owners(words: Sequence[str], encoding: Encoding) -> list[int]:
    """Return the word of each token; `NOT_READ` for a token that is only the space between words."""
    at: list[int] = []  # the word at each character
    for i, word in enumerate(words):
        at += [i] * len(word) + [NOT_READ]
    return [at[last - 1] if last > first else NOT_READ for first, last in encoding.offsets]


def _cuts(owner: list[int], room: int, context_share: float) -> list[tuple[int, int, int]]:
    """Return the windows of a sentence: where the context begins, the first new token, and the end."""
    ends = [i + 1 for i in range(len(owner)) if i + 1 == len(owner) or _starts_word(owner, i + 1)]
    cuts: list[tuple[int, int, int]] = []
    first = 0
    while first < len(owner):
        begin = max(0, first - int(context_share * room))
        word_end = min(end for end in ends if end > first)
        if word_end > begin + room:  # a long word: reading all of it matters more than its context
            begin = first
        stop = max((end for end in ends if first < end <= begin + room), default=begin + room)
        cuts.append((begin, first, stop))
        first = max(stop, word_end)  # the rest of a word that is longer than a window is not read
    return cuts


def _starts_word(owner: list[int], i: int) -> bool:
    """Return whether ending a window before token i cuts no word. A space belongs to the next word."""
    return owner[i - 1] not in (owner[i], NOT_READ)


def read_words(
    model: Objective, tokens: Tensor, owner: Tensor, attention: Attention, *, every_layer: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the words in some windows (k,), ascending, on CPU, and their states (k, D).

    With `every_layer` those of the embedding and of each of the L blocks: (k, L + 1, D).
    """
    width = int((tokens != PAD).sum(dim=1).max())
    tokens, owner = tokens[:, :width], owner[:, :width]
    read = owner != NOT_READ
    if every_layer:
        hidden = model.layer_states(tokens.to(model.device), attention).permute(1, 2, 0, 3)
    else:
        hidden = model.states(tokens.to(model.device), attention)
    hidden = hidden[read.to(model.device)]  # (tokens, D) or (tokens, L + 1, D)
    words, place, n_tokens = owner[read].unique(return_inverse=True, return_counts=True)
    total = hidden.new_zeros(len(words), *hidden.shape[1:]).index_add(0, place.to(model.device), hidden)
    return words, total / n_tokens.to(total).view(-1, *[1] * (total.ndim - 1))


@torch.no_grad()
def all_words(
    model: Objective, text: WordWindows, attention: Attention, *, every_layer: bool = False
) -> Tensor:
    """Return frozen states of all words, as `read_words` does; NaN for words without one.

    They are computed in batches of similar length.
    """
    model.eval()
    lengths = (text.tokens != PAD).sum(dim=1)
    read = [
        read_words(model, text.tokens[index], text.owner[index], attention, every_layer=every_layer)
        for index in lengths.argsort(stable=True).split(probe.EVALUATION_BATCH)
    ]
    words, found = torch.cat([part for part, _ in read]), torch.cat([part for _, part in read])
    states = found.new_full((len(text.has_state), *found.shape[1:]), torch.nan)
    states[words.to(states.device)] = found
    return states
