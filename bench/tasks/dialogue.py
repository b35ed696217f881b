"""Dialogue: choose the response that follows a turn (response selection: Lowe et al. 2015, arXiv:1506.08909).

`DialogueFitted` is open to every strategy: its features of context and response are frozen, and a bilinear
form that compares them is fitted on training conversations. `DialogueLikelihood` is zero-shot: it chooses the
likeliest response. Metrics are recall at 1 and the mean reciprocal rank; ties count their expectation.

Corpora of exchanges (a response and the turns before it):
`overheard` is Overheard in New York, from NLTK's webtext: thousands of short conversations, real and often
coarse. `chatterbot` is the English part of the package chatterbot-corpus (BSD licence): some hundreds of
questions to a chatbot with one answer each, and few longer conversations.
Shapes: N test items, C candidates, D width.
"""

import random
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from typing_extensions import override

from bench.config.installation import check_installed
from bench.data.corpora.base import Split, package_folder, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.data.tokenizer import EOS
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.objectives.contrastive import info_nce
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import likeness
from bench.tasks.finetune import minimise
from bench.tasks.likelihood import Continuation, continuation_nll, normalised
from bench.tasks.options import DialogueFittedOptions, DialogueLikelihoodOptions, DialogueOptions
from bench.tasks.probe import hits, padded, text_features

TURN_END = "\n"  # between turns, for every strategy
SPOKEN = re.compile(r"[^:]{1,60}: (.*)")  # "Guy #1: So this ..."
SEED = 0  # of the drawn distractors, which are the same for every strategy and every run
# Files of chatterbot without dialogues: code, and ten sentences that are repeated a hundred times each.
NO_DIALOGUES = ("coding", "tech_support")
# Files of chatterbot whose lists are conversations. In other files a question is followed by alternative
# answers, of which the first is used.
OF_TURNS = ("conversations", "health")


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation, with the turns before it. A `group` lies in one split."""

    context: tuple[str, ...]  # in order of time
    response: str
    group: str

    def key(self) -> tuple[str, str]:
        """Return what identifies an exchange: the words of its context and response."""
        return normal(" ".join(self.context)), normal(self.response)


def normal(text: str) -> str:
    """Return the words of a text in lower case; texts with equal words count as equal.

    >>> normal("Oh, YEAH...")
    'oh yeah'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def read_exchanges(corpus: str, context_turns: int) -> tuple[list[Exchange], Counter[str]]:
    """Return the distinct exchanges of a corpus, in a fixed order, and the number of unused ones by reason.

    An exchange has at most `context_turns` turns before the response.
    """
    found: dict[tuple[str, str], Exchange] = {}
    left_out: Counter[str] = Counter()
    for turns in CORPORA[corpus]():
        if len(turns) < 2:
            left_out["conversation of less than two turns, or not one turn a line"] += 1
        for i in range(1, len(turns)):
            exchange = Exchange(tuple(turns[max(0, i - context_turns) : i]), turns[i], normal(turns[0]))
            if not all(exchange.key()):
                left_out["turn without words"] += 1
            elif exchange.key() in found:
                left_out["exchange that is there already"] += 1
            else:
                found[exchange.key()] = exchange
    return list(found.values()), left_out


def of_split(exchanges: Sequence[Exchange], split: Split) -> list[Exchange]:
    """Return the exchanges of a split; a conversation lies in one split."""
    return [exchange for exchange in exchanges if split_of(exchange.group) == split]


def candidates(
    items: Sequence[Exchange], known: Sequence[Exchange], n_candidates: int
) -> list[tuple[str, ...]]:
    """Return for each item of a split its own response, which comes first, and distractors.

    Distractors are responses of other items, drawn as often as they occur. None of them has the same words
    as the response, as another distractor, or as any response of a known exchange with the same last turn;
    none comes from the same conversation.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for exchange in known:
        answers[normal(exchange.context[-1])].add(normal(exchange.response))
    rng = random.Random(SEED)  # noqa: S311 - not for cryptography
    found = []
    for item in items:
        right = answers[normal(item.context[-1])] | {normal(item.response)}
        drawn: dict[str, str] = {}
        for other in rng.sample(items, len(items)):
            words = normal(other.response)
            if other.group != item.group and words not in right and words not in drawn:
                drawn[words] = other.response
            if len(drawn) == n_candidates - 1:
                break
        else:
            raise DataError(f"task.*.n_candidates={n_candidates}: too few different responses; lower it")
        found.append((item.response, *drawn.values()))
    return found


def _overheard() -> Iterator[list[str]]:
    text = str(corpus_reader("webtext", "task.*.corpus").raw("overheard.txt"))
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        spoken = [SPOKEN.fullmatch(line) for line in lines]
        if lines:
            yield [turn[1].strip() for turn in spoken if turn] if all(spoken) else []


def _chatterbot() -> Iterator[list[str]]:
    import yaml

    folder = package_folder("chatterbot_corpus")
    assert folder is not None, "Dialogue.check comes first"
    for path in sorted((folder / "data" / "english").glob("*.yml")):
        if path.stem not in NO_DIALOGUES:
            # The base loader keeps `Yes` and `1963` as texts.
            read = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
            for turns in read["conversations"]:
                yield turns if path.stem in OF_TURNS else turns[:2]


CORPORA: dict[str, Callable[[], Iterator[list[str]]]] = {"overheard": _overheard, "chatterbot": _chatterbot}


@dataclass(frozen=True)
class Selection:
    """Test items with their candidates, the right one first, and the number of unused exchanges by reason."""

    items: list[Exchange]
    candidates: list[tuple[str, ...]]
    counts: Mapping[str, int]


class Dialogue(Task):
    """Base of both protocols: conversations, candidates and metrics."""

    options: DialogueOptions

    @override
    def check(self, key: str) -> None:
        if self.options.corpus == "overheard":
            corpus_reader("webtext", key)
        else:
            check_installed("chatterbot_corpus", f"{key}.corpus=chatterbot")

    @abstractmethod
    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
        """Return the scores (N, C) of each item's candidates; higher is better."""

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        selection = self.selection()
        return self._outcome(self.scores(model, selection, setting), selection)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of the words that context and response share, weighted by TF-IDF."""
        selection = self.selection()
        texts = list(dict.fromkeys(text for row in selection.candidates for text in row))
        cosine = likeness([TURN_END.join(item.context) for item in selection.items], texts)
        place = {text: i for i, text in enumerate(texts)}
        chosen = [
            row[[place[text] for text in own]] for row, own in zip(cosine, selection.candidates, strict=True)
        ]
        return self._outcome(torch.from_numpy(np.stack(chosen)), selection)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        selection = self.selection()
        scores = torch.zeros(len(selection.items), self.options.n_candidates)
        scores[:, 0] = 1.0
        return self._outcome(scores, selection)

    def selection(self) -> Selection:
        """Return the test items, the same for all strategies and seeds."""
        known, counts = read_exchanges(self.options.corpus, self.options.context_turns)
        test = of_split(known, "test")
        n = min(self.options.test_items, len(test))
        chosen = [i * len(test) // n for i in range(n)] if n else []
        if not chosen:
            raise DataError(f"task.*.corpus={self.options.corpus} has no test conversations; choose another")
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
    """Score responses by a bilinear form of both texts' features, fitted by InfoNCE."""

    Options = DialogueFittedOptions
    options: DialogueFittedOptions

    @override
    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
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
            raise DataError(
                f"task.*.corpus={self.options.corpus} has no training conversations; choose another"
            )
        rng = random.Random(setting.seed)  # noqa: S311 - not for cryptography
        return rng.sample(train, min(self.options.train_items, len(train)))

    def _contexts(self, model: Objective, items: Sequence[Exchange], setting: Setting) -> Tensor:
        return text_features(model, _encoded([TURN_END.join(e.context) for e in items], setting, last=True))

    def _responses(self, model: Objective, texts: Sequence[str], setting: Setting) -> Tensor:
        return text_features(model, _encoded(texts, setting, last=False))

    def _fit(self, contexts: Tensor, responses: Tensor, setting: Setting) -> nn.Module:
        """Fit the form so that contexts find their own responses within a batch, and the reverse."""
        device = contexts.device
        form = Bilinear(contexts.shape[1]).to(device)
        scale = torch.tensor(1 / self.options.temperature, device=device)

        def loss(index: Tensor) -> Tensor:
            index = index.to(device)
            return info_nce(form(contexts[index]), responses[index], scale) / len(index)

        minimise(
            self.options,
            loss,
            list(form.parameters()),
            n_items=len(contexts),
            d_model=contexts.shape[1],
            generator=torch.Generator().manual_seed(setting.seed),
            keep_going=setting.keep_going,
        )
        return form


class Bilinear(nn.Module):
    """x -> (diag(d) + m M) x, where d and M start at zero, so that nothing is known before the fit.

    Words that both texts share act on the diagonal, which learns faster than the other pairs of features.
    """

    MIX = 0.2  # m

    def __init__(self, width: int) -> None:
        super().__init__()
        self.diagonal = nn.Parameter(torch.zeros(width))
        self.mix = nn.Parameter(torch.zeros(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.diagonal * features + self.MIX * features @ self.mix


class DialogueLikelihood(Dialogue):
    """Choose the likeliest response, or the one whose likelihood the context increases most."""

    Options = DialogueLikelihoodOptions
    options: DialogueLikelihoodOptions

    @override
    def scores(self, model: Objective, selection: Selection, setting: Setting) -> Tensor:
        asked = _asked(selection, setting.tokenizer, setting.sequence_length)
        nll = continuation_nll(model, asked, self.options, setting)  # (N C)
        if self.options.pmi:
            alone = {text.scored: Continuation((), text.scored, text.n_bytes) for text in asked}
            found = continuation_nll(model, list(alone.values()), self.options, setting)
            of = dict(zip(alone, found.tolist(), strict=True))
            nll = nll - np.array([of[text.scored] for text in asked])
        scores = -normalised(nll, asked, self.options.length_normalisation)
        return torch.from_numpy(scores).view(len(selection.items), self.options.n_candidates)

    @override
    def _metric(self, name: str) -> str:
        return f"{name}_{self.options.kind}"


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    return sum(1 / i for i in range(1, n + 1))


def reciprocal_ranks(scores: Tensor) -> NDArray[np.float64]:
    """Return the reciprocal rank (N,) of the first column of scores (N, C); ties count their expectation.

    The mean of a constant model is harmonic(C) / C.
    """
    own = scores[:, :1]
    better, tied = (scores > own).sum(dim=1).tolist(), (scores == own).sum(dim=1).tolist()
    return np.array([(harmonic(b + t) - harmonic(b)) / t for b, t in zip(better, tied, strict=True)])


def _asked(selection: Selection, tokenizer: Tokenizer, length: int) -> list[Continuation]:
    """Encode each item's candidates after its context; all candidates of an item have the same context.

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
    """Encode texts as padded ids (N, T) with a closing EOS; long texts keep their first or last tokens."""
    most = setting.sequence_length - 1
    found = [_ids(text, setting.tokenizer) for text in texts]
    return padded([[*(ids[-most:] if last else ids[:most]), EOS] for ids in found])


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _standardised(
    features: Tensor, moments: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Standardise features (N, D) by their own or given moments, as unit rows; return the moments too."""
    mean, std = moments or (features.mean(dim=0), features.std(dim=0).clamp(min=1e-6))
    return F.normalize((features - mean) / std, dim=-1), (mean, std)
