"""Zero-shot scoring by likelihood: of whole texts in bits per byte, or of a text's end given its beginning.

An exact likelihood, an upper bound and a pseudo-likelihood are three different quantities. A task asks for
one of them, the names of its metrics include the kind, and kinds are never compared with each other.

Every continuation is scored as a document of its own, between the EOS of the previous document and its own,
as in pretraining; both EOS are given and never scored, like [CLS] and [SEP] in Salazar et al. (2020,
arXiv:1910.14659).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from typing_extensions import override

from bench.data.batches import TextRows
from bench.data.tokenizer import EOS
from bench.errors import DataError, InapplicableError
from bench.models.flops import head_flops
from bench.objectives.base import Likelihood, Objective, TextNLL
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.options import BitsPerByteOptions, LikelihoodOptions
from bench.tasks.probe import padded

SEED = 0  # of a bound's random draws, which are the same for every strategy and every run
NAMES = {"exact": "an exact likelihood", "bound": "a bound", "pseudo": "a pseudo-likelihood"}
NORMALISATIONS = ("none", "tokens", "bytes")
DECIMALS = 5  # of log-likelihoods in nats: differences below the precision of float32 are ties


@dataclass(frozen=True)
class Continuation:
    """The ids of a text, split into a given beginning and a scored end."""

    given: tuple[int, ...]
    scored: tuple[int, ...]
    n_bytes: int  # UTF-8 bytes of the scored end

    @property
    def ids(self) -> list[int]:
        """The ids that a model reads."""
        return [EOS, *self.given, *self.scored, EOS]

    def __len__(self) -> int:
        return len(self.given) + len(self.scored) + 2


def whole_text(text: str, tokenizer: Tokenizer) -> Continuation:
    """Encode a text of which everything is scored."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return Continuation((), tuple(ids), len(text.encode()))


def require_kind(model: Objective, kind: str) -> Likelihood:
    """Return the kind of likelihood; raise InapplicableError if the strategy does not define it."""
    given = model.likelihoods if model.has_weights else frozenset({"exact"})
    if kind not in given:
        names = [NAMES[name] for name in NAMES if name in given]
        raise InapplicableError(" and ".join(names) + " only" if names else "no likelihood of a text")
    return cast(Likelihood, kind)


@torch.no_grad()
def continuation_nll(
    model: Objective,
    texts: Sequence[Continuation],
    options: LikelihoodOptions,
    setting: Setting,
    *,
    order: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Return the negative log-likelihood (N,) of each text's end given its beginning, in nats.

    Texts must not be longer than the model reads. Under one `order` of reading, texts of equal length share
    random draws; by default texts are read by length, to save padding.

    Raises:
        InapplicableError: the strategy has no such likelihood, or accepts whole texts only.
        FloatingPointError: a likelihood is not finite.
    """
    kind = require_kind(model, options.kind)
    if not model.has_weights:
        raise InapplicableError("a remote model, which accepts whole texts only")
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if order is None else order
    generator = torch.Generator().manual_seed(SEED)
    nll = np.zeros(len(texts))
    for start in range(0, len(order), options.batch_size):
        setting.keep_going()
        chosen = list(order[start : start + options.batch_size])
        tokens, scored = (part.to(model.device) for part in _batch([texts[i] for i in chosen]))
        found = model.token_nll(
            tokens, kind, samples=options.n_draws, generator=generator, scored=scored
        )  # (B, T - 1)
        nll[chosen] = found.double().sum(dim=1).cpu().numpy()
    setting.meter.add(prediction_flops(model, [len(text.scored) for text in texts], kind, options.n_draws))
    if not np.isfinite(nll).all():
        raise FloatingPointError("the likelihood is not finite; the model diverged")
    return nll


def normalised(
    nll: NDArray[np.float64], texts: Sequence[Continuation], length_normalisation: str
) -> NDArray[np.float64]:
    """Divide (N,) by the number of scored tokens, of scored bytes, or by one; round to DECIMALS."""
    lengths = {
        "none": [1] * len(texts),
        "tokens": [len(text.scored) for text in texts],
        "bytes": [text.n_bytes for text in texts],
    }[length_normalisation]
    return (nll / np.maximum(lengths, 1)).round(DECIMALS)


def _batch(texts: Sequence[Continuation]) -> tuple[Tensor, Tensor]:
    """Return ids (B, T), padded on the right, and which of them are scored (B, T) bool."""
    tokens = padded([text.ids for text in texts])
    first = torch.tensor([1 + len(text.given) for text in texts])[:, None]
    past = first + torch.tensor([len(text.scored) for text in texts])[:, None]
    place = torch.arange(tokens.shape[1])
    return tokens, (place >= first) & (place < past)


def prediction_flops(model: Objective, lengths: Sequence[int], kind: Likelihood, samples: int) -> float:
    """Return the FLOPs of the prediction head, which the meter does not see, for texts of scored tokens.

    A bound predicts (L + 1) / 2 of L tokens per draw on average.
    """
    targets = samples * sum((n + 1) / 2 for n in lengths) if kind == "bound" else sum(lengths)
    return head_flops(model.shapes.model, model.backbone.embedding.num_embeddings, targets)


class BitsPerByte(Task):
    """Bits per byte of the text corpus' test split, which do not depend on the tokenizer."""

    Options = BitsPerByteOptions
    options: BitsPerByteOptions

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Divide the bits of tokens 1..T-1 of all windows by the UTF-8 bytes that these decode to.

        A character that is cut by a window's edge decodes to a replacement character of three bytes. Chance
        is a uniform guess over the vocabulary, on the same tokens.
        """
        kind = require_kind(model, self.options.kind)
        windows = self._windows(setting)  # (N, T)
        n_bytes = _n_bytes(windows[:, 1:], setting.tokenizer)
        if model.has_weights:
            nll = self._nll(model, windows, kind, setting)  # (N,)
            found = TextNLL(float(nll.sum()), n_bytes)
        else:
            nll, found = None, _remote_nll(model, windows, setting)
        if not math.isfinite(found.nll_nats):
            raise FloatingPointError("the likelihood is not finite; the model diverged")
        measured = self._measured(found, windows, n_bytes, setting)
        return Outcome([measured], {} if nll is None else {"nats": nll.numpy()})

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of an n-gram model of bytes of the training text."""
        from bench.tasks.baselines import byte_ngrams, text_nats  # late: it reads tasks that need this one

        windows = self._windows(setting)
        texts = setting.tokenizer.decode_batch(windows[:, 1:].tolist(), skip_special_tokens=True)
        before = setting.tokenizer.decode_batch(windows[:, :1].tolist(), skip_special_tokens=True)
        nats = text_nats(byte_ngrams(setting), list(zip(before, texts, strict=True)))
        n_bytes = _n_bytes(windows[:, 1:], setting.tokenizer)
        found = TextNLL(float(nats.sum()), n_bytes)
        return Outcome([self._measured(found, windows, n_bytes, setting)])

    def _measured(self, found: TextNLL, windows: Tensor, n_bytes: int, setting: Setting) -> Measured:
        """Return bits per byte; chance is over the windows' own tokens and `n_bytes` bytes."""
        value = found.nll_nats / math.log(2) / found.n_bytes
        chance = math.log2(setting.text.vocab_size) * windows[:, 1:].numel() / n_bytes
        name = f"bits_per_byte_{self.options.kind}"
        return Measured(name, value, chance, len(windows), higher_is_better=False)

    def _windows(self, setting: Setting) -> Tensor:
        rows = TextRows(setting.text.test(), setting.sequence_length)
        if not len(rows):
            raise DataError(
                f"the test split holds less than sequence_length={setting.sequence_length} tokens; lower it"
            )
        n = min(self.options.windows, len(rows))
        return rows.read(np.arange(n) * len(rows) // n)["tokens"]

    @torch.no_grad()
    def _nll(self, model: Objective, windows: Tensor, kind: Likelihood, setting: Setting) -> Tensor:
        model.eval()
        generator = torch.Generator().manual_seed(SEED)
        found = []
        for tokens in windows.split(self.options.batch_size):
            setting.keep_going()
            nll = model.nll(tokens.to(model.device), kind, self.options.n_draws, generator)  # (B,)
            found.append(nll.double().cpu())
        lengths = [windows.shape[1] - 1] * len(windows)
        setting.meter.add(prediction_flops(model, lengths, kind, self.options.n_draws))
        return torch.cat(found)


def _remote_nll(model: Objective, windows: Tensor, setting: Setting) -> TextNLL:
    """Query a remote model, which has its own tokens and no EOS: documents are joined by an empty line."""
    total = TextNLL(0.0, 0)
    for ids in windows.tolist():
        setting.keep_going()
        documents = [list(part) for is_end, part in groupby(ids, lambda i: i == EOS) if not is_end]
        text = "\n\n".join(setting.tokenizer.decode(document) for document in documents)
        found = model.text_nll([text], setting.data_dir)
        total = TextNLL(total.nll_nats + found.nll_nats, total.n_bytes + found.n_bytes)
    return total


def _n_bytes(tokens: Tensor, tokenizer: Tokenizer) -> int:
    """Count the bytes of the texts of ids (N, T); special tokens have none."""
    texts = tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)
