"""Dialogue: which of ten responses follows a turn? (response selection: Lowe et al. 2015, arXiv:1506.08909)

`DialogueFitted` gives every strategy the same chance: its features of context and response are frozen, and
a form that compares them is fitted on training conversations. `DialogueLikelihood` asks, without any fit,
which response is the likeliest. Recall@1 and the mean reciprocal rank; ties count their expectation.
"""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import MISSING
from tokenizers import Tokenizer
from torch import Tensor, nn

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.objectives.contrastive import info_nce
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.descent import descend, scaled
from bench.tasks.dialogues import Exchange, candidates, check_corpus, read_exchanges
from bench.tasks.likelihood_ranking import (
    Continuation,
    LikelihoodOptions,
    continuation_nats,
    normalised,
    require_positive,
)
from bench.tasks.probe import check_fit, hits, text_features

TURN_END = "\n"  # between turns, for every strategy


@dataclass(frozen=True)
class DialogueOptions:
    """Which conversations, and how they are asked about."""

    corpus: str = MISSING  # overheard (NLTK's webtext) | chatterbot (a package)
    context_turns: int = MISSING  # at most
    n_candidates: int = MISSING  # the right response included
    test_items: int = MISSING  # at most; spread evenly over the test conversations

    def __post_init__(self) -> None:
        check_corpus(self.corpus)
        require_positive(self, "context_turns", "test_items")
        if self.n_candidates < 2:
            raise ConfigError(f"task.*.n_candidates={self.n_candidates}: use 2 or more")


@dataclass(frozen=True)
class Selection:
    """Test items with their candidates, the right one first."""

    items: list[Exchange]
    candidates: list[tuple[str, ...]]
    counts: Mapping[str, int]


class Dialogue(Task):
    """What both protocols share: the conversations, the candidates, the metrics."""

    options: DialogueOptions

    def check(self, key: str) -> None:
        """One of the corpora is NLTK's."""
        if self.options.corpus == "overheard":
            corpus_reader("webtext", key)

    @abstractmethod
    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
        """(N, C), the higher the better, of each item's candidates."""

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Recall@1, then the mean reciprocal rank. Exchanges of one conversation are items of their own."""
        selection = self.selection()
        return self._outcome(self.scores(model, selection, setting), selection)

    def ceiling(self, setting: Setting) -> Outcome:
        """Only the right responses score."""
        selection = self.selection()
        scores = torch.zeros(len(selection.items), self.options.n_candidates)
        scores[:, 0] = 1.0
        return self._outcome(scores, selection)

    def selection(self) -> Selection:
        """The test items, the same for all strategies and seeds."""
        known, counts = read_exchanges(self.options.corpus, self.options.context_turns)
        test = of_split(known, "test")
        n = min(self.options.test_items, len(test))
        chosen = [i * len(test) // n for i in range(n)] if n else []
        if not chosen:
            raise DataError(f"task.*.corpus={self.options.corpus}: no test conversations in it")
        drawn = candidates(test, known, self.options.n_candidates)
        return Selection([test[i] for i in chosen], [drawn[i] for i in chosen], counts)

    def _outcome(self, scores: Tensor, selection: Selection) -> Outcome:
        n = self.options.n_candidates
        right = torch.zeros(len(scores), dtype=torch.long)
        items = {
            self._metric("recall_at_1"): hits(scores, right),
            self._metric("mrr"): reciprocal_ranks(scores),
        }
        chances = (1 / n, harmonic(n) / n)
        measured = [
            Measured(name, float(found.mean()), chance, len(found))
            for (name, found), chance in zip(items.items(), chances, strict=True)
        ]
        return Outcome(measured, items, selection.counts)

    def _metric(self, name: str) -> str:
        return name


class DialogueFitted(Dialogue):
    """A bilinear form of both texts' features, fitted by InfoNCE."""

    @dataclass(frozen=True)
    class Options(DialogueOptions):
        """The fit, the same for every strategy."""

        train_items: int = MISSING  # at most, drawn by the run's seed
        steps: int = MISSING
        batch_size: int = MISSING
        lr_at_64: float = MISSING
        temperature: float = MISSING

        def __post_init__(self) -> None:
            super().__post_init__()
            require_positive(self, "train_items")
            check_fit(self)

    options: Options

    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
        """By the fitted form."""
        train = self._drawn(setting)
        contexts, means = _standardised(self._contexts(model, train, setting))
        answers = [exchange.response for exchange in train]
        responses, response_means = _standardised(self._responses(model, answers, setting))
        responses = responses[setting.labels(torch.arange(len(train))).to(responses.device)]
        form = self._fit(contexts, responses, setting)
        asked, _ = _standardised(self._contexts(model, selection.items, setting), means)  # (N, D)
        texts = list(dict.fromkeys(text for row in selection.candidates for text in row))
        given, _ = _standardised(self._responses(model, texts, setting), response_means)  # (M, D)
        rows = {text: i for i, text in enumerate(texts)}
        index = torch.tensor([[rows[text] for text in row] for row in selection.candidates])  # (N, C)
        with torch.no_grad():
            return torch.einsum("nd,ncd->nc", form(asked), given[index.to(given.device)]).cpu()

    def _drawn(self, setting: Setting) -> list[Exchange]:
        known, _ = read_exchanges(self.options.corpus, self.options.context_turns)
        train = of_split(known, "train")
        if len(train) < 2:
            raise DataError(f"task.*.corpus={self.options.corpus}: no training conversations in it")
        rng = random.Random(setting.seed)  # noqa: S311 - a draw, not a secret
        return rng.sample(train, min(self.options.train_items, len(train)))

    def _contexts(self, model: Objective, items: Sequence[Exchange], setting: Setting) -> Tensor:
        return text_features(model, _encoded([TURN_END.join(e.context) for e in items], setting, last=True))

    def _responses(self, model: Objective, texts: Sequence[str], setting: Setting) -> Tensor:
        return text_features(model, _encoded(texts, setting, last=False))

    def _fit(self, contexts: Tensor, responses: Tensor, setting: Setting) -> nn.Module:
        """Each of a batch's contexts has its own response to find among all of the batch, and the reverse."""
        device = contexts.device
        form = Bilinear(contexts.shape[1]).to(device)
        scale = torch.tensor(1 / self.options.temperature, device=device)

        def loss(index: Tensor) -> Tensor:
            index = index.to(device)
            return info_nce(form(contexts[index]), responses[index], scale) / len(index)

        for _ in descend(
            loss,
            list(form.parameters()),
            n_items=len(contexts),
            steps=self.options.steps,
            batch_size=self.options.batch_size,
            lr_peak=scaled(self.options.lr_at_64, contexts.shape[1]),
            generator=torch.Generator().manual_seed(setting.seed),
            keep_going=setting.keep_going,
        ):
            pass
        return form


class DialogueLikelihood(Dialogue):
    """The likeliest response given the context, or the one that the context makes likelier the most."""

    @dataclass(frozen=True)
    class Options(LikelihoodOptions, DialogueOptions):
        """What "likeliest" is."""

        # Nats of the response alone are taken off, since a response common anywhere is no better an answer
        # (Holtzman et al. 2021, arXiv:2104.08315).
        pmi: bool = MISSING

        def __post_init__(self) -> None:
            LikelihoodOptions.__post_init__(self)
            DialogueOptions.__post_init__(self)

    options: Options

    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
        """Minus the nats of each response given the turns before it, normalised."""
        asked = _asked(selection, setting.tokenizer, setting.sequence_length)
        nats = continuation_nats(model, asked, self.options, setting)  # (N C)
        if self.options.pmi:
            alone = {text.scored: Continuation((), text.scored, text.n_bytes) for text in asked}
            found = continuation_nats(model, list(alone.values()), self.options, setting)
            of = dict(zip(alone, found.tolist(), strict=True))
            nats = nats - np.array([of[text.scored] for text in asked])
        scores = -normalised(nats, asked, self.options.length_normalisation)
        return torch.from_numpy(scores).view(len(selection.items), self.options.n_candidates)

    def _metric(self, name: str) -> str:
        return f"{name}_{self.options.kind}"


def of_split(exchanges: Sequence[Exchange], split: Split) -> list[Exchange]:
    """Those of a split, by conversation."""
    return [exchange for exchange in exchanges if split_of(exchange.group) == split]


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    return sum(1 / i for i in range(1, n + 1))


def reciprocal_ranks(scores: Tensor) -> NDArray[np.float64]:
    """(N, C) scores, the right candidate first -> (N,) one by its rank; among ties, the mean over all orders.

    A constant model's mean is harmonic(C) / C.
    """
    own = scores[:, :1]
    better, tied = (scores > own).sum(dim=1).tolist(), (scores == own).sum(dim=1).tolist()
    return np.array([(harmonic(b + t) - harmonic(b)) / t for b, t in zip(better, tied, strict=True)])


def _asked(selection: Selection, tokenizer: Tokenizer, length: int) -> list[Continuation]:
    """Each item's candidates after its context; what does not fit is cut, the same for all of an item.

    A response keeps its beginning, at most half of `length`; the context keeps its end.
    """
    most = (length - 2) // 2
    found = []
    for item, row in zip(selection.items, selection.candidates, strict=True):
        context = _ids(TURN_END.join((*item.context, "")), tokenizer)
        responses = [_ids(text, tokenizer)[:most] for text in row]
        room = length - 2 - max(map(len, responses))
        given = tuple(context[-room:])
        for text, ids in zip(row, responses, strict=True):
            kept = text if len(ids) < most else tokenizer.decode(ids)
            found.append(Continuation(given, tuple(ids), len(kept.encode())))
    return found


def _encoded(texts: Sequence[str], setting: Setting, *, last: bool) -> Tensor:
    """Ids (N, T) with a closing EOS, padded on the right; of long texts the first or the last are kept."""
    most = setting.sequence_length - 1
    found = [_ids(text, setting.tokenizer) for text in texts]
    rows = [[*(ids[-most:] if last else ids[:most]), EOS] for ids in found]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _standardised(
    features: Tensor, moments: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(N, D) by the mean and deviation of each feature, its own or as given, as unit rows; and these."""
    mean, std = moments or (features.mean(dim=0), features.std(dim=0).clamp(min=1e-6))
    return F.normalize((features - mean) / std, dim=-1), (mean, std)


class Bilinear(nn.Module):
    """x -> (diag(d) + m M) x. It begins at zero: a form that begins as the cosine knows an answer untaught.

    Words that both texts share show in the diagonal, which learns faster than all other pairs of features.
    """

    MIX = 0.2  # m

    def __init__(self, width: int) -> None:
        super().__init__()
        self.diagonal = nn.Parameter(torch.zeros(width))
        self.mix = nn.Parameter(torch.zeros(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.diagonal * features + self.MIX * features @ self.mix
