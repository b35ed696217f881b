"""Generation: each strategy continues prompts from held-out documents, and the texts are scored.

The main score is the perplexity under an n-gram model of bytes (`bench.tasks.text_metrics`), which is fitted
to the training split and independent of every strategy and tokenizer. Such a model prefers frequent text, so
a repetitive text can score better than a human one. Read it together with distinct-n and the repetition rate,
and with the scores of the held-out text itself (`ceiling`): these are the target, not the best value.
Shapes: N prompts of P tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from bench.data.tokenizer import EOS
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.objectives.sampling import Sampling, unigram_texts
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.options import GenerationOptions
from bench.tasks.text_metrics import (
    ByteNGrams,
    distinct,
    fit_byte_ngrams,
    perplexity,
    repetition,
    self_bleu,
    words,
)

DISTINCT_ORDERS = (1, 2, 3)
REPEATED_ORDER = 4  # of Welleck et al.
COUNTED_TOKENS = 2_000_000  # of which token frequencies are estimated
BATCH_DOCUMENTS = 512  # decoded at a time


@dataclass(frozen=True)
class Continuations:
    """Generated or held-out texts, and the prompts before them."""

    before: list[str]
    texts: list[str]
    are_closed: list[bool]  # ended by EOS, not by the limit of tokens


class Generation(Task):
    """Continue the first tokens of held-out documents."""

    Options = GenerationOptions
    options: GenerationOptions
    packages = ("sacrebleu",)

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the n-gram perplexity, distinct-n, the repetition rate and self-BLEU.

        Chance is the score of texts whose tokens are drawn independently by their frequency in training.
        """
        prompts, held_out = self._prompts(setting)  # (N, P), (N, n_new)
        generated = self._generated(model, prompts, setting)
        shares = token_shares(setting)
        generator = torch.Generator().manual_seed(setting.seed)
        drawn = unigram_texts(shares, len(prompts), self.options.new_tokens, generator)
        ngrams = self._ngrams(setting)
        found, real, chance = (continuations(prompts, ids, setting) for ids in (generated, held_out, drawn))
        outcome, uninformed = _scored(found, ngrams), _scored(chance, ngrams)
        by_metric = {m.metric: m.value for m in uninformed.scores}
        scores = [replace(m, chance=by_metric[m.metric]) for m in outcome.scores]
        return replace(outcome, scores=scores, samples=self._samples(found, real))

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Score the held-out text itself, which people wrote. A model can score higher or lower."""
        prompts, held_out = self._prompts(setting)
        return _scored(continuations(prompts, held_out, setting), self._ngrams(setting))

    def _prompts(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Return the beginnings of documents (N, P) and their continuations (N, n_new)."""
        options = self.options
        length = options.prompt_tokens + options.new_tokens
        options.check_length(setting.sequence_length)
        test = setting.text.test()
        starts = test.offsets[:-1][np.diff(test.offsets) > length]  # the EOS is not counted
        if len(starts) < 2:
            raise DataError(
                f"the test split has {len(starts)} documents of more than {length} tokens; lower "
                "task.*.prompt_tokens or task.*.new_tokens, so that it has 2 or more"
            )
        n = min(options.prompts, len(starts))
        chosen = starts[np.arange(n) * len(starts) // n]
        rows = np.stack([test.read(start, start + length) for start in chosen.tolist()])
        tokens = torch.from_numpy(rows.astype(np.int64))
        return tokens[:, : options.prompt_tokens], tokens[:, options.prompt_tokens :]

    def _generated(self, model: Objective, prompts: Tensor, setting: Setting) -> Tensor:
        top_p = 1.0 if self.options.top_p is None else self.options.top_p
        sampling = Sampling(self.options.temperature, top_p)
        generator = torch.Generator().manual_seed(setting.seed)
        model.eval()
        parts = []
        with torch.no_grad(), setting.meter.writes(model, model.shapes.model):
            for batch in prompts.split(self.options.batch_size):
                setting.keep_going()
                ids = model.generate(batch.to(model.device), self.options.new_tokens, sampling, generator)
                parts.append(ids.cpu())
        return torch.cat(parts)

    def _ngrams(self, setting: Setting) -> ByteNGrams:
        return fit_byte_ngrams(training_texts(setting, self.options.ngram_bytes), self.options.ngram_order)

    def _samples(self, found: Continuations, real: Continuations) -> list[dict[str, str]]:
        rows = list(zip(found.before, found.texts, real.texts, strict=True))
        n = min(self.options.samples, len(rows))
        return [
            dict(zip(("prompt", "continuation", "held-out text"), rows[i * len(rows) // n], strict=True))
            for i in range(n)
        ]


def continuations(prompts: Tensor, written: Tensor, setting: Setting) -> Continuations:
    """Decode prompts (N, P) together with their continuations (N, n_new).

    A character that is cut by the end of the prompt belongs to the continuation; a character that is cut by
    the end of the continuation becomes a replacement character.
    """
    tokenizer = setting.tokenizer
    alone = tokenizer.decode_batch(prompts.tolist(), skip_special_tokens=True)
    whole = tokenizer.decode_batch(torch.cat([prompts, written], dim=1).tolist(), skip_special_tokens=True)
    cuts = [_n_shared(before, text) for before, text in zip(alone, whole, strict=True)]
    return Continuations(
        before=[text[:cut] for text, cut in zip(whole, cuts, strict=True)],
        texts=[text[cut:] for text, cut in zip(whole, cuts, strict=True)],
        are_closed=(written == EOS).any(dim=1).tolist(),
    )


def _n_shared(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def training_texts(setting: Setting, n_bytes: int) -> Iterator[str]:
    """Yield the first training documents, up to `n_bytes` of UTF-8 and document ends; the last may be cut."""
    ids = _training_ids(setting, n_bytes)
    documents = [part.tolist() for part in np.split(ids, np.flatnonzero(ids == EOS) + 1)]
    for first in range(0, len(documents), BATCH_DOCUMENTS):
        batch = documents[first : first + BATCH_DOCUMENTS]
        for text in setting.tokenizer.decode_batch(batch, skip_special_tokens=True):
            kept = text.encode()[:n_bytes]
            if kept:
                yield kept.decode(errors="ignore")
            n_bytes -= len(kept) + 1
            if n_bytes <= 0:
                return


def token_shares(setting: Setting) -> Tensor:
    """Return the frequency of each id among the first training tokens: (V,) float64, summing to one."""
    counts = np.bincount(_training_ids(setting, COUNTED_TOKENS), minlength=setting.text.vocab_size)
    return torch.from_numpy(counts / counts.sum())


def _training_ids(setting: Setting, n: int) -> NDArray[np.integer[Any]]:
    """Return the first n training tokens. Each has at least one byte, so they hold at least n bytes."""
    train = setting.text.train()
    return train.read(0, min(n, train.n_tokens))


def _scored(found: Continuations, ngrams: ByteNGrams) -> Outcome:
    """Return all scores; they are defined for empty texts too, which count.

    The items of the perplexity are nats per byte, including the end of a text that has ended. The scores of
    repetition and self-BLEU are the means of their items. Distinct-n is defined for the whole set only.
    """
    rows = zip(found.before, found.texts, found.are_closed, strict=True)
    nll = np.array([ngrams.nll(b, text, is_closed=closed or not text).mean() for b, text, closed in rows])
    texts = words(found.texts)
    repeated, bleu = repetition(texts, REPEATED_ORDER), self_bleu(found.texts)

    def measured(metric: str, value: float, *, higher_is_better: bool = False) -> Measured:
        return Measured(metric, value, None, len(texts), higher_is_better=higher_is_better)

    scores = [measured("ngram_perplexity", perplexity(nll))]
    scores += [measured(f"distinct_{n}", distinct(texts, n), higher_is_better=True) for n in DISTINCT_ORDERS]
    scores += [measured(f"repetition_{REPEATED_ORDER}", float(repeated.mean()))]
    scores += [measured("self_bleu", float(bleu.mean()))]
    counts = {
        "continuation without a word": sum(not text for text in texts),
        "continuation too short to repeat": sum(len(text) < REPEATED_ORDER for text in texts),
    }
    items = {"ngram_perplexity": nll, f"repetition_{REPEATED_ORDER}": repeated, "self_bleu": bleu}
    return Outcome(scores, items, {reason: n for reason, n in counts.items() if n})
