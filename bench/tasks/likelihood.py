"""Bits per byte of held-out text: how well a strategy models the corpus, whatever the tokenizer.

An exact likelihood, an upper bound and a pseudo-likelihood are three different quantities: three tasks, whose
metrics bear the kind in their name and are never compared with each other.
"""

import math
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from omegaconf import MISSING
from tokenizers import Tokenizer
from torch import Tensor

from bench.data.batches import TextRows
from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError
from bench.objectives.base import Likelihood, Objective, TextNLL
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.likelihood_ranking import NAMES, SEED, prediction_flops, require_kind, require_positive


class BitsPerByte(Task):
    """Windows of the text corpus' test split, each after its first token."""

    @dataclass(frozen=True)
    class Options:
        """Which quantity, on how much text."""

        kind: str = MISSING  # exact | bound | pseudo
        windows: int = MISSING  # at most; spread evenly over the split
        samples: int = MISSING  # draws per window, for a bound
        batch_size: int = MISSING  # windows at a time

        def __post_init__(self) -> None:
            if self.kind not in NAMES:
                raise ConfigError(f"task.*.kind={self.kind!r}: choose one of {', '.join(NAMES)}")
            require_positive(self, "windows", "samples", "batch_size")

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Bits of tokens 1..T-1 of all windows by the UTF-8 bytes that they decode to.

        A character that a window's edge cuts decodes to a mark of three bytes. Chance is a uniform guess over
        the vocabulary, on the same tokens.
        """
        kind = require_kind(model, self.options.kind)
        windows = self._windows(setting)  # (N, T)
        n_bytes = _n_bytes(windows[:, 1:], setting.tokenizer)
        if model.has_weights:
            nats = self._nats(model, windows, kind, setting)  # (N,)
            found = TextNLL(float(nats.sum()), n_bytes)
        else:
            nats, found = None, _elsewhere(model, windows, setting)
        if not math.isfinite(found.nats):
            raise FloatingPointError("the likelihood is not finite; the model diverged")
        value = found.nats / math.log(2) / found.n_bytes
        chance = math.log2(setting.text.vocab_size) * windows[:, 1:].numel() / n_bytes
        measured = Measured(f"bits_per_byte_{kind}", value, chance, len(windows), higher_is_better=False)
        return Outcome([measured], {} if nats is None else {"nats": nats.numpy()})

    def _windows(self, setting: Setting) -> Tensor:
        rows = TextRows(setting.text.test(), setting.sequence_length)
        if not len(rows):
            raise DataError(
                f"the test split holds less than sequence_length={setting.sequence_length} tokens; lower it"
            )
        n = min(self.options.windows, len(rows))
        return rows.read(np.arange(n) * len(rows) // n)["tokens"]

    @torch.no_grad()
    def _nats(self, model: Objective, windows: Tensor, kind: Likelihood, setting: Setting) -> Tensor:
        model.eval()
        generator = torch.Generator().manual_seed(SEED)
        found = []
        for tokens in windows.split(self.options.batch_size):
            setting.keep_going()
            nats = model.nll(tokens.to(model.device), kind, self.options.samples, generator)  # (B,)
            found.append(nats.double().cpu())
        lengths = [windows.shape[1] - 1] * len(windows)
        setting.meter.add(prediction_flops(model, lengths, kind, self.options.samples))
        return torch.cat(found)


def _elsewhere(model: Objective, windows: Tensor, setting: Setting) -> TextNLL:
    """By a model that takes texts and has its own tokens; a blank line stands for the EOS that it lacks."""
    total = TextNLL(0.0, 0)
    for ids in windows.tolist():
        setting.keep_going()
        documents = [list(part) for is_end, part in groupby(ids, lambda i: i == EOS) if not is_end]
        text = "\n\n".join(setting.tokenizer.decode(document) for document in documents)
        found = model.text_nll([text], setting.data_dir)
        total = TextNLL(total.nats + found.nats, total.n_bytes + found.n_bytes)
    return total


def _n_bytes(tokens: Tensor, tokenizer: Tokenizer) -> int:
    """(N, T) ids -> bytes of their texts; special tokens have none."""
    texts = tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)
