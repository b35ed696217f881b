"""Generation: prompts from held-out documents, continued by each strategy in its own way, and judged as text.

The judge is an n-gram model of bytes (`bench.tasks.ngrams`), fitted to the training split: independent of
every strategy and every tokenizer. It rewards what is frequent, so that a text that goes round in circles can
please it better than a human one: read it beside distinct-n and the repetition rate, and beside what the
held-out text itself gets (`ceiling`), which is the aim for all of them rather than their best value.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.objectives.sampling import Sampling, unigram_texts
from bench.tasks import ngrams
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.diversity import distinct, repetition, self_bleu, words

DISTINCT_ORDERS = (1, 2, 3)
REPEATED_ORDER = 4  # of Welleck et al.
COUNTED_TOKENS = 2_000_000  # to know how frequent each is
BATCH_DOCUMENTS = 512  # decoded at a time


@dataclass(frozen=True)
class Continuations:
    """Texts with what stands before them."""

    before: list[str]
    texts: list[str]
    are_closed: list[bool]  # ended by the writer, not by the limit of tokens


class Generation(Task):
    """Continuation of the first tokens of held-out documents."""

    @dataclass(frozen=True)
    class Options:
        """How much is written, how tokens are chosen, and what the judge has read."""

        prompts: int = MISSING  # at most; one a document, spread evenly over the test split
        prompt_tokens: int = MISSING
        new_tokens: int = MISSING  # at most
        temperature: float = MISSING  # 0: greedy
        top_p: float = MISSING  # the nucleus' probability; 1: all tokens
        batch_size: int = MISSING  # prompts at a time
        ngram_order: int = MISSING  # bytes
        ngram_bytes: int = MISSING  # of training text that the judge reads, at most
        samples: int = MISSING  # prompts shown to readers

        def __post_init__(self) -> None:
            least = {"prompts": 2, "prompt_tokens": 1, "new_tokens": 1, "batch_size": 1, "ngram_bytes": 1}
            for key, value in least.items():
                if getattr(self, key) < value:
                    raise ConfigError(f"task.*.{key}={getattr(self, key)}: use {value} or more")
            if self.samples < 0:
                raise ConfigError(f"task.*.samples={self.samples}: use 0 or more")
            if self.temperature < 0:
                raise ConfigError(f"task.*.temperature={self.temperature}: use 0 (greedy) or more")
            if not 0 < self.top_p <= 1:
                raise ConfigError(f"task.*.top_p={self.top_p}: choose a share in (0, 1]")
            if not 1 <= self.ngram_order <= ngrams.MAX_ORDER:
                raise ConfigError(
                    f"task.*.ngram_order={self.ngram_order}: choose 1 to {ngrams.MAX_ORDER} bytes"
                )

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Perplexity under the judge, distinct-n, repetition, self-BLEU.

        Chance is what texts get whose tokens are drawn one by one by their frequency in the training split.
        """
        prompts, held_out = self._prompts(setting)  # (N, P), (N, n_new)
        written = self._written(model, prompts, setting)
        shares = token_shares(setting)
        generator = torch.Generator().manual_seed(setting.seed)
        drawn = unigram_texts(shares, len(prompts), self.options.new_tokens, generator)
        judge = self._judge(setting)
        found, real, chance = (continuations(prompts, ids, setting) for ids in (written, held_out, drawn))
        outcome, uninformed = _judged(found, judge), _judged(chance, judge)
        by_metric = {m.metric: m.value for m in uninformed.scores}
        scores = [replace(m, chance=by_metric[m.metric]) for m in outcome.scores]
        return replace(outcome, scores=scores, samples=self._samples(found, real))

    def ceiling(self, setting: Setting) -> Outcome:
        """The held-out text itself: what a human's continuation scores. A model's can lie on either side."""
        prompts, held_out = self._prompts(setting)
        return _judged(continuations(prompts, held_out, setting), self._judge(setting))

    def _prompts(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Beginnings of documents, (N, P), and how they go on, (N, n_new)."""
        options = self.options
        length = options.prompt_tokens + options.new_tokens
        if length > setting.sequence_length:
            raise ConfigError(
                f"task.*.prompt_tokens={options.prompt_tokens} and new_tokens={options.new_tokens} are more "
                f"than sequence_length={setting.sequence_length}; lower them"
            )
        test = setting.text.test()
        starts = test.offsets[:-1][np.diff(test.offsets) > length]  # the EOS is none of them
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

    def _written(self, model: Objective, prompts: Tensor, setting: Setting) -> Tensor:
        sampling = Sampling(self.options.temperature, self.options.top_p)
        generator = torch.Generator().manual_seed(setting.seed)
        model.eval()
        parts = []
        with torch.no_grad(), setting.meter.writes(model, model.shapes.model):
            for batch in prompts.split(self.options.batch_size):
                setting.keep_going()
                ids = model.generate(batch.to(model.device), self.options.new_tokens, sampling, generator)
                parts.append(ids.cpu())
        return torch.cat(parts)

    def _judge(self, setting: Setting) -> ngrams.ByteNGrams:
        return ngrams.fit(training_texts(setting, self.options.ngram_bytes), self.options.ngram_order)

    def _samples(self, found: Continuations, real: Continuations) -> list[dict[str, str]]:
        rows = list(zip(found.before, found.texts, real.texts, strict=True))
        n = min(self.options.samples, len(rows))
        return [
            dict(zip(("prompt", "continuation", "held-out text"), rows[i * len(rows) // n], strict=True))
            for i in range(n)
        ]


def continuations(prompts: Tensor, written: Tensor, setting: Setting) -> Continuations:
    """The texts of ids (N, P) and (N, n_new), each continuation read together with its prompt.

    A character that the prompt's last token cuts belongs to the continuation; one that the continuation
    leaves incomplete is a replacement mark.
    """
    tokenizer = setting.tokenizer
    alone = tokenizer.decode_batch(prompts.tolist(), skip_special_tokens=True)
    whole = tokenizer.decode_batch(torch.cat([prompts, written], dim=1).tolist(), skip_special_tokens=True)
    cuts = [_shared(before, text) for before, text in zip(alone, whole, strict=True)]
    return Continuations(
        before=[text[:cut] for text, cut in zip(whole, cuts, strict=True)],
        texts=[text[cut:] for text, cut in zip(whole, cuts, strict=True)],
        are_closed=(written == EOS).any(dim=1).tolist(),
    )


def _shared(a: str, b: str) -> int:
    """Characters that two texts begin with."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def training_texts(setting: Setting, n_bytes: int) -> Iterator[str]:
    """The first documents of the training split, up to `n_bytes` of UTF-8 and ends; the last may be cut."""
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
    """How often each id occurs among the first tokens of the training split: (V,) float64, summing to one."""
    counts = np.bincount(_training_ids(setting, COUNTED_TOKENS), minlength=setting.text.vocab_size)
    return torch.from_numpy(counts / counts.sum())


def _training_ids(setting: Setting, n: int) -> NDArray[np.integer[Any]]:
    """The first tokens; each has a byte or more, an EOS being one, so that as many hold `n` bytes."""
    train = setting.text.train()
    return train.read(0, min(n, train.n_tokens))


def _judged(found: Continuations, judge: ngrams.ByteNGrams) -> Outcome:
    """All scores; each is defined for empty texts too, which count.

    The items of the perplexity are nats a byte, the end included where a text has ended; those of repetition
    and self-BLEU have the score as their mean. Distinct-n is of the set alone.
    """
    rows = zip(found.before, found.texts, found.are_closed, strict=True)
    nats = np.array([judge.nats(b, text, is_closed=closed or not text).mean() for b, text, closed in rows])
    texts = words(found.texts)
    repeated, bleu = repetition(texts, REPEATED_ORDER), self_bleu(found.texts)

    def measured(metric: str, value: float, *, higher_is_better: bool = False) -> Measured:
        return Measured(metric, value, None, len(texts), higher_is_better=higher_is_better)

    scores = [measured("ngram_perplexity", ngrams.perplexity(nats))]
    scores += [measured(f"distinct_{n}", distinct(texts, n), higher_is_better=True) for n in DISTINCT_ORDERS]
    scores += [measured(f"repetition_{REPEATED_ORDER}", float(repeated.mean()))]
    scores += [measured("self_bleu", float(bleu.mean()))]
    counts = {
        "continuation without a word": sum(not text for text in texts),
        "continuation too short to repeat": sum(len(text) < REPEATED_ORDER for text in texts),
    }
    items = {"ngram_perplexity": nats, f"repetition_{REPEATED_ORDER}": repeated, "self_bleu": bleu}
    return Outcome(scores, items, {reason: n for reason, n in counts.items() if n})
