"""Generation: each strategy continues prompts from held-out documents, and the texts are scored.

The score looks both ways, so that text in circles cannot win. Forward: how likely are the texts under an
n-gram model of human text, which likes repetition too well? Reverse: how likely is human text under an
n-gram model of the texts, which only diverse text teaches (Zhao et al. 2018, arXiv:1706.04223, sec. 4;
Cífka et al. 2018, arXiv:1804.07972)? The score is the geometric mean of both perplexities per byte. The
n-gram models (`bench.tasks.text_metrics`) are independent of every strategy and tokenizer. The scores of
the held-out text itself (`ceiling`) are a reference; all other metrics only describe.
Shapes: N prompts of P tokens.
"""

from collections.abc import Iterator, Sequence
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
BLEU_TEXTS = 64  # of which self-BLEU is taken: its time grows with the square of their number
REVERSE_ORDER = 3  # bytes, of the n-gram model of the generated texts, which are few
HEADLINE = "forward_reverse_perplexity"
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
        """Return the forward and reverse perplexity, and what describes the texts.

        Chance is the score of texts whose tokens are drawn independently by their frequency in training.
        """
        prompts, held_out = self._prompts(setting)  # (N, P), (N, n_new)
        generated = self._generated(model, prompts, setting)
        shares = token_shares(setting)
        generator = torch.Generator().manual_seed(setting.seed)
        drawn = unigram_texts(shares, len(prompts), self.options.new_tokens, generator)
        ngrams, others = self._ngrams(setting), self._other_texts(setting)
        found, real, chance = (continuations(prompts, ids, setting) for ids in (generated, held_out, drawn))
        outcome, uninformed = _scored(found, ngrams, others), _scored(chance, ngrams, others)
        by_metric = {m.metric: m.value for m in uninformed.scores}
        scores = [replace(m, chance=by_metric[m.metric]) for m in outcome.scores]
        return replace(outcome, scores=scores, samples=self._samples(found, real))

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Score the held-out text itself, which people wrote. A model can score higher or lower."""
        prompts, held_out = self._prompts(setting)
        texts = continuations(prompts, held_out, setting)
        return _scored(texts, self._ngrams(setting), self._other_texts(setting))

    def _prompts(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Return the beginnings of documents (N, P) and their continuations (N, n_new)."""
        options = self.options
        length = options.prompt_tokens + options.new_tokens
        options.check_length(setting.sequence_length)
        starts = self._starts(setting)
        if len(starts) < 2:
            raise DataError(
                f"the test split has {len(starts)} documents of more than {length} tokens; lower "
                "task.*.prompt_tokens or task.*.new_tokens, so that it has 2 or more"
            )
        tokens = self._beginnings(starts[self._chosen(len(starts))], setting)
        return tokens[:, : options.prompt_tokens], tokens[:, options.prompt_tokens :]

    def _starts(self, setting: Setting) -> NDArray[np.integer[Any]]:
        """Return where the test documents begin that are longer than a prompt with its continuation."""
        test = setting.text.test()
        length = self.options.prompt_tokens + self.options.new_tokens
        return test.offsets[:-1][np.diff(test.offsets) > length]  # the EOS is not counted

    def _chosen(self, n_documents: int) -> NDArray[np.integer[Any]]:
        """Return which documents give a prompt: half of them at most, since the others are held out again."""
        n = min(self.options.prompts, max(1, n_documents // 2))
        return np.arange(n) * n_documents // n

    def _beginnings(self, starts: NDArray[np.integer[Any]], setting: Setting) -> Tensor:
        length = self.options.prompt_tokens + self.options.new_tokens
        rows = np.stack([setting.text.test().read(start, start + length) for start in starts.tolist()])
        return torch.from_numpy(rows.astype(np.int64))

    def _other_texts(self, setting: Setting) -> list[str]:
        """Return human texts as long as the continuations, of documents that give no prompt."""
        starts = self._starts(setting)
        others = np.setdiff1d(np.arange(len(starts)), self._chosen(len(starts)))
        n = min(self.options.prompts, len(others))
        tokens = self._beginnings(starts[others[np.arange(n) * len(others) // n]], setting)
        prompt = self.options.prompt_tokens
        return continuations(tokens[:, :prompt], tokens[:, prompt:], setting).texts

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


def _scored(found: Continuations, ngrams: ByteNGrams, others: Sequence[str]) -> Outcome:
    """Return all scores; they are defined for empty texts too, which count.

    The items of a perplexity are nats per byte, including the end of a text that has ended; those of the
    headline are means of a text's and of a human text's. The scores of repetition and self-BLEU are the means
    of their items. Distinct-n is defined for the whole set only.

    Args:
        found: the texts.
        ngrams: an n-gram model of human text.
        others: human texts, to be predicted from the texts that were found.
    """
    rows = zip(found.before, found.texts, found.are_closed, strict=True)
    nll = np.array([ngrams.nll(b, text, is_closed=closed or not text).mean() for b, text, closed in rows])
    of_texts = fit_byte_ngrams(found.texts, REVERSE_ORDER)
    reverse = np.array([of_texts.nll("", text, is_closed=False).mean() for text in others if text])
    both = (nll + reverse[np.arange(len(nll)) * len(reverse) // len(nll)]) / 2
    texts = words(found.texts)
    repeated, bleu = repetition(texts, REPEATED_ORDER), self_bleu(found.texts[:BLEU_TEXTS])

    def measured(metric: str, value: float, *, higher_is_better: bool | None = None) -> Measured:
        return Measured(metric, value, None, len(texts), higher_is_better=higher_is_better)

    scores = [measured(HEADLINE, perplexity(both), higher_is_better=False)]
    scores += [measured("ngram_perplexity", perplexity(nll))]
    scores += [measured("reverse_perplexity", perplexity(reverse))]
    scores += [measured(f"distinct_{n}", distinct(texts, n)) for n in DISTINCT_ORDERS]
    scores += [measured(f"repetition_{REPEATED_ORDER}", float(repeated.mean()))]
    scores += [measured("self_bleu", float(bleu.mean()))]
    counts = {
        "continuation without a word": sum(not text for text in texts),
        "continuation too short to repeat": sum(len(text) < REPEATED_ORDER for text in texts),
    }
    items = {
        HEADLINE: both,
        "ngram_perplexity": nll,
        f"repetition_{REPEATED_ORDER}": repeated,
        "self_bleu": bleu,
    }
    return Outcome(scores, items, {reason: n for reason, n in counts.items() if n})
