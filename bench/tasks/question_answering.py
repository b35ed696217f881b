"""Extractive question answering, where the answer is a span of a text: by frozen probe or by fine-tuning.

Linear pointers to the start and the end of the answer (Devlin et al. 2019, arXiv:1810.04805, sec. 4.2) read
the states of windows, each with the question and a part of the context (`bench.tasks.answer_spans`). The
answer is the best span over all windows, or "no answer" where that is likelier; no threshold is tuned.

Chance is the expected score of a span drawn uniformly from all possible answers, "no answer" included where
test items have none. Tied spans count their expectation, so a constant model scores exactly chance. Exact
match is the headline: the F1 of a random answer also depends on its length, and pointers that were fitted to
noise prefer short spans, which overlap less with the right answer.
Shapes: N questions, W windows, C candidates of a window.
"""

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from bench.data.corpora.base import Split
from bench.errors import DataError
from bench.objectives.base import Attention, Objective
from bench.tasks.answer_spans import (
    TIE_NATS,
    ContextWindows,
    best_spans,
    cut_windows,
    fit_pointers,
    frozen_states,
    pointer_loss,
    states_at,
)
from bench.tasks.answers import Golds, Question
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.finetune import fine_tune
from bench.tasks.label_budgets import failed_fits, fit_spread, n_labels
from bench.tasks.options import QuestionAnsweringOptions
from bench.tasks.probe import as_attention

N_SAMPLES = 5
ORACLE_NATS = 100.0  # by which the oracle's pointers prefer the right answer


@dataclass(frozen=True)
class AnswerScores:
    """Scores and texts of the answers to N questions.

    An answer is empty for "no answer", and the first of tied ones.
    """

    f1: NDArray[np.float64]  # (N,)
    em: NDArray[np.float64]  # (N,)
    answers: list[str]


@dataclass(frozen=True)
class QuestionSet:
    """Test or validation questions with their windows, the same for all strategies."""

    questions: list[Question]
    windows: ContextWindows
    max_answer_tokens: int

    @cached_property
    def golds(self) -> list[Golds]:
        """The right answers of each question."""
        return [Golds(question.answers) for question in self.questions]

    @cached_property
    def is_answerable(self) -> NDArray[np.bool_]:
        """Whether each question has an answer (N,)."""
        return np.array([bool(question.answers) for question in self.questions])

    @cached_property
    def spans(self) -> Tensor:
        """The first and last token of each right answer (N, 2); -1 where there is none."""
        return self.windows.token_spans(self.questions)

    @cached_property
    def chance(self) -> AnswerScores:
        """Expected scores of a model to which all answers are equal."""
        return self.score(torch.zeros(len(self.windows), self.windows.n_candidates, 2))

    def score(self, logits: Tensor) -> AnswerScores:
        """Score the best span of each question by logits (W, C, 2), or "no answer" where that is likelier.

        "No answer" is permitted only if some questions of the set have none.
        """
        scores_of, answers = [], []
        may_abstain = not self.is_answerable.all()
        best = best_spans(logits, self.windows, self.max_answer_tokens)
        for i, (log_odds, spans) in enumerate(best):
            offsets, context = self.windows.offsets[i], self.questions[i].context
            scores, answer = [], ""
            if not may_abstain or log_odds >= -TIE_NATS:
                places = np.stack([offsets[spans[:, 0], 0], offsets[spans[:, 1], 1]], axis=1)
                scores.append(self.golds[i].score_spans(context, places))
                answer = context[slice(*places[0])]
            if may_abstain and log_odds <= TIE_NATS:
                scores.append(np.array([self.golds[i].score("")]))
            scores_of.append(np.concatenate(scores).mean(axis=0))
            answers.append(answer)
        em, f1 = np.array(scores_of).T
        return AnswerScores(f1, em, answers)

    def at(self, start: float, length: int) -> AnswerScores:
        """Score the answers of `length` tokens that begin at a share of each context."""
        found, answers = [], []
        for golds, question, offsets in zip(self.golds, self.questions, self.windows.offsets, strict=True):
            first = min(int(start * len(offsets)), len(offsets) - 1)
            last = min(first + length, len(offsets)) - 1
            answers.append(question.context[offsets[first, 0] : offsets[last, 1]])
            found.append(golds.score(answers[-1]))
        em, f1 = np.array(found).T
        return AnswerScores(f1, em, answers)

    def oracle_logits(self) -> Tensor:
        """Return logits (W, C, 2) that point to the right answer, or to the longest part within a window."""
        windows, logits = self.windows, torch.zeros(len(self.windows), self.windows.n_candidates, 2)
        first, last = (self.spans[windows.item] - windows.start[:, None]).T
        last = last.minimum(first + self.max_answer_tokens - 1).minimum(windows.length - 1)
        is_part = (self.spans[windows.item, 0] >= 0) & (last >= first.clamp(min=0))
        each = torch.arange(len(windows))
        ends = torch.stack([first.clamp(min=0), last], dim=1)
        ends = torch.where(is_part[:, None], ends, windows.length[:, None])  # (W, 2)
        kept = torch.where(is_part, 1 + ends[:, 1] - ends[:, 0], 1) / self.max_answer_tokens  # more is better
        for pointer in (0, 1):
            logits[each, ends[:, pointer], pointer] = ORACLE_NATS * kept
        return logits

    def parts(self) -> dict[str, NDArray[np.bool_]]:
        """Return masks (N,) by suffix: all questions, and if both occur, those with and without an answer."""
        parts = {"": np.ones(len(self.questions), dtype=np.bool_)}
        if self.is_answerable.any() and not self.is_answerable.all():
            parts |= {"_answerable": self.is_answerable, "_unanswerable": ~self.is_answerable}
        return parts

    def counts(self) -> dict[str, int]:
        """Count, by reason, the questions that a model cannot answer fully."""
        n_tokens = 1 + self.spans[:, 1] - self.spans[:, 0]
        has_span = self.spans[:, 0] >= 0
        blurred = 0
        for i in np.flatnonzero(has_span):
            first, last = self.spans[i]
            left, right = self.windows.offsets[i][first, 0], self.windows.offsets[i][last, 1]
            blurred += self.golds[i].score(self.questions[i].context[left:right])[0] < 1
        return {
            "test answer not where the data says": sum(q.is_misplaced for q in self.questions),
            "test answer whole in no window": self.windows.n_split(self.spans),
            "test answer longer than max_answer_tokens": int((n_tokens > self.max_answer_tokens).sum()),
            "test answer that shares a token with other text": blurred,
        }

    def samples(self, scores: AnswerScores) -> list[dict[str, str]]:
        """Return the first questions with their answers."""
        rows = zip(self.questions[:N_SAMPLES], scores.answers, strict=False)
        return [
            {"context": q.context, "question": q.question, "right answer": " | ".join(q.answers), "answer": a}
            for q, a in rows
        ]


@dataclass(frozen=True)
class TrainingQuestions:
    """Windows of N training questions with their targets. A budget of k questions uses the first windows."""

    windows: ContextWindows
    spans: Tensor  # (N, 2) tokens; -1 where there is no answer
    targets: Tensor  # (W, 2)
    n_misplaced: int  # questions that were left out
    budgets: list[int]  # numbers of questions, the largest first
    n_budgets_beyond: int  # budgets that exceed the data

    def n_windows(self, n_questions: int) -> int:
        """Return the number of windows of the first questions."""
        return int((self.windows.item < n_questions).sum())


class QuestionAnswering(Task):
    """Base of extractive question answering; subclasses implement `questions`.

    Training and validation questions are drawn by the run's seed and shared by all strategies of one seed; a
    smaller budget uses the first questions of a larger one. Test questions are the same for all. Validation
    labels are additional to the budget, never more than it has, and used by fine-tuning only.
    """

    Options: ClassVar[type[Any]] = QuestionAnsweringOptions
    options: QuestionAnsweringOptions

    @abstractmethod
    def questions(self, split: Split, setting: Setting) -> list[Question]:
        """Return the questions of a split, in a fixed order."""

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        train = self._training(setting)
        test = self._drawn("test", self.options.test_items, 0, setting)
        run = self._probed if self.options.protocol == "probe" else self._fine_tuned
        outcome = Outcome([], {}, _counts(train, test))
        for budget, (fits, failed) in zip(train.budgets, run(model, train, test, setting), strict=True):
            outcome = _with(outcome, test, fits, failed, budget)
        return outcome

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of the median place and length of the training answers, in every context."""
        train = self._training(setting)
        test = self._drawn("test", self.options.test_items, 0, setting)
        found = Outcome([], {}, _counts(train, test))
        for budget in train.budgets:
            spans = train.spans[:budget]
            sizes = torch.tensor([len(offsets) for offsets in train.windows.offsets[:budget]])
            known = spans[:, 0] >= 0
            start = float((spans[known, 0] / sizes[known]).median()) if known.any() else 0.0
            length = int((spans[known, 1] - spans[known, 0] + 1).median()) if known.any() else 1
            found = _with(found, test, [test.at(start, length)], [], budget)
        return found

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        test = self._drawn("test", self.options.test_items, 0, setting)
        return _with(Outcome([]), test, [test.score(test.oracle_logits())], [], None)

    # Protocols: for each budget the scores of every fit, and for fine-tuning which fits failed

    def _probed(
        self, model: Objective, train: TrainingQuestions, test: QuestionSet, setting: Setting
    ) -> Iterator[tuple[list[AnswerScores], list[bool]]]:
        """Fit pointers to frozen states, which are computed once for all budgets."""
        attention = as_attention(self.options.attention)
        states = frozen_states(model, train.windows, attention)
        asked = frozen_states(model, test.windows, attention)
        for budget in train.budgets:
            setting.keep_going()
            n = train.n_windows(budget)
            pointers = fit_pointers(states[:n], train.windows, train.targets[:n], setting.meter)
            yield [test.score(pointers(asked))], []

    def _fine_tuned(
        self, model: Objective, train: TrainingQuestions, test: QuestionSet, setting: Setting
    ) -> Iterator[tuple[list[AnswerScores], list[bool]]]:
        """Fine-tune; a training item is a window."""
        attention = as_attention(self.options.attention)

        def loss(tuned: Objective, head: nn.Module, index: Tensor) -> Tensor:
            _, is_real = train.windows.candidates(index)
            logits = head(states_at(tuned, train.windows, index, attention))
            targets = train.targets[index].to(logits.device)
            return pointer_loss(logits, is_real.to(logits.device), targets) / len(index)

        for budget in train.budgets:
            n = min(self.options.validation_items, budget)
            validation = self._drawn("validation", n, setting.seed, setting)
            fits = fine_tune(
                model,
                head=lambda: _head(model.shapes.model.d_model),
                loss=loss,
                validate=partial(_f1, validation, attention),
                n_items=train.n_windows(budget),
                tuning=self.options.tuning,
                setting=setting,
                floor=float(validation.chance.f1.mean()),
                n_labels=budget,
            )
            logits = [frozen_states(fit.model, test.windows, attention, fit.head) for fit in fits]
            yield [test.score(rows) for rows in logits], [fit.failed for fit in fits]

    # Questions

    def _training(self, setting: Setting) -> TrainingQuestions:
        """Draw the training questions of the largest budget by the run's seed."""
        found = self.questions("train", setting)
        usable = [question for question in found if not question.is_misplaced]
        n = min(len(usable), max(budget or self.options.max_labels for budget in self.options.label_budgets))
        if n == 0:
            raise DataError(f"{type(self).__name__}: no training questions; use more data")
        train = random.Random(setting.seed).sample(usable, n)  # noqa: S311 - not for cryptography
        windows = self._windows(train, setting)
        spans = windows.token_spans(train)
        sizes = torch.tensor([len(offsets) for offsets in windows.offsets])
        source = setting.labels(torch.arange(n))  # the question itself, except in an audit
        targets = windows.targets(_moved(spans[source], sizes[source], sizes))
        budgets, beyond = n_labels(self.options.label_budgets, n)
        return TrainingQuestions(windows, spans, targets, len(found) - len(usable), budgets, beyond)

    def _drawn(self, split: Split, n: int, seed: int, setting: Setting) -> QuestionSet:
        """Draw at most `n` questions by `seed`; an audit permutes the labels of validation questions."""
        found = self.questions(split, setting)
        if not found:
            raise DataError(f"{type(self).__name__}: no {split} questions; use more data")
        drawn = random.Random(seed).sample(found, min(n, len(found)))  # noqa: S311 - not for cryptography
        if split != "test":
            sources = setting.labels(torch.arange(len(drawn))).tolist()
            drawn = [replace(q, answers=drawn[j].answers) for q, j in zip(drawn, sources, strict=True)]
        return QuestionSet(drawn, self._windows(drawn, setting), self.options.max_answer_tokens)

    def _windows(self, questions: Sequence[Question], setting: Setting) -> ContextWindows:
        return cut_windows(
            questions,
            setting.tokenizer,
            setting.sequence_length,
            max_question_tokens=self.options.max_question_tokens,
            step_share=self.options.step_share,
        )


def _f1(questions: QuestionSet, attention: Attention, model: Objective, head: nn.Module) -> float:
    """Return the mean F1 of a fine-tuned model and its pointers."""
    return float(questions.score(frozen_states(model, questions.windows, attention, head)).f1.mean())


def _counts(train: TrainingQuestions, test: QuestionSet) -> dict[str, int]:
    """Count, by reason, the questions that are not used or not fully, and budgets that exceed the data."""
    counts = {
        "label budget beyond the data": train.n_budgets_beyond,
        "training answer not where the data says": train.n_misplaced,
        "training answer whole in no window": train.windows.n_split(train.spans),
        "question cut to its first tokens": train.windows.n_cut_questions + test.windows.n_cut_questions,
    }
    return {reason: n for reason, n in (counts | test.counts()).items() if n}


def _with(
    found: Outcome, test: QuestionSet, fits: list[AnswerScores], failed: list[bool], n_labels: int | None
) -> Outcome:
    """Append one budget's scores, items and samples; `failed` is empty where fits cannot fail."""
    scores, items = list(found.scores), dict(found.items)
    for metric in ("em", "f1"):
        values = np.stack([getattr(fit, metric) for fit in fits])  # (fits, N)
        chance = getattr(test.chance, metric)  # (N,)
        for suffix, kept in test.parts().items():
            value, expected = float(values[:, kept].mean()), float(chance[kept].mean())
            scores.append(Measured(metric + suffix, value, expected, int(kept.sum()), n_labels=n_labels))
        scores += fit_spread(metric, values.mean(axis=1), n_labels)
        name = metric if n_labels is None else f"{metric}@{n_labels}"
        items[name] = values if len(fits) > 1 else values[0]
    if failed:
        scores.append(failed_fits(failed, n_labels))
    return Outcome(scores, items, found.counts, found.samples or test.samples(fits[0]))


def _head(d_model: int) -> nn.Module:
    """Return pointers with zero weights, to which all spans are equal."""
    head = nn.Linear(d_model, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _moved(spans: Tensor, sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Move token spans (N, 2) in contexts of `sizes` (N,) tokens to the same share of other contexts.

    Spans stay as they are where the sizes are equal, which is always so except in an audit.
    """
    first = torch.div(spans[:, 0] * new_sizes, sizes, rounding_mode="floor")
    last = (first + spans[:, 1] - spans[:, 0]).minimum(new_sizes - 1)
    return torch.where(spans >= 0, torch.stack([first, last], dim=1), spans)
