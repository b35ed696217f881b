"""Test questions with their windows: pointer logits (W, C, 2) in, exact match and F1 of each question out."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.tasks.answer_windows import TIE_NATS, Windows, best_spans
from bench.tasks.answers import Golds, Question

N_SAMPLES = 5
CERTAIN = 100.0  # nats by which one who knows prefers the answer
Outcomes = NDArray[np.float64]


@dataclass(frozen=True)
class Grades:
    """Of the questions in their order; `answers` are texts, empty for "no answer", the first of tied ones."""

    f1: Outcomes  # (N,)
    em: Outcomes  # (N,)
    answers: list[str]


@dataclass(frozen=True)
class Exam:
    """Questions that are asked of all models alike."""

    questions: list[Question]
    windows: Windows
    max_answer_tokens: int

    @cached_property
    def golds(self) -> list[Golds]:
        """Of each question."""
        return [Golds(question.answers) for question in self.questions]

    @cached_property
    def is_answerable(self) -> NDArray[np.bool_]:
        """By question."""
        return np.array([bool(question.answers) for question in self.questions])

    @cached_property
    def spans(self) -> Tensor:
        """The right tokens, (N, 2), -1 where there are none."""
        return self.windows.token_spans(self.questions)

    @cached_property
    def chance(self) -> Grades:
        """Expected grades of one to whom all answers are equal."""
        return self.grade(torch.zeros(len(self.windows), self.windows.n_candidates, 2))

    def grade(self, logits: Tensor) -> Grades:
        """Each question by its best span, or by "no answer" where that is likelier and some have none.

        Args:
            logits: (W, C, 2) of start and end.
        """
        grades, answers = [], []
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
            grades.append(np.concatenate(scores).mean(axis=0))
            answers.append(answer)
        em, f1 = np.array(grades).T
        return Grades(f1, em, answers)

    def pointed(self) -> Tensor:
        """Logits (W, C, 2) of one who knows; an answer that no window holds whole is given in part."""
        windows, logits = self.windows, torch.zeros(len(self.windows), self.windows.n_candidates, 2)
        first, last = (self.spans[windows.item] - windows.start[:, None]).T
        last = last.minimum(first + self.max_answer_tokens - 1).minimum(windows.length - 1)
        is_part = (self.spans[windows.item, 0] >= 0) & (last >= first.clamp(min=0))
        each = torch.arange(len(windows))
        ends = torch.stack([first.clamp(min=0), last], dim=1)
        ends = torch.where(is_part[:, None], ends, windows.length[:, None])  # (W, 2)
        kept = torch.where(is_part, 1 + ends[:, 1] - ends[:, 0], 1) / self.max_answer_tokens  # more is better
        for pointer in (0, 1):
            logits[each, ends[:, pointer], pointer] = CERTAIN * kept
        return logits

    def parts(self) -> dict[str, NDArray[np.bool_]]:
        """All questions, and where there are both, those with and without an answer: suffix -> (N,)."""
        parts = {"": np.ones(len(self.questions), dtype=np.bool_)}
        if self.is_answerable.any() and not self.is_answerable.all():
            parts |= {"_answerable": self.is_answerable, "_unanswerable": ~self.is_answerable}
        return parts

    def counts(self) -> dict[str, int]:
        """Questions that a model cannot answer in full, by the reason."""
        n_tokens = 1 + self.spans[:, 1] - self.spans[:, 0]
        has_span = self.spans[:, 0] >= 0
        blurred = 0
        for i in np.flatnonzero(has_span):
            first, last = self.spans[i]
            left, right = self.windows.offsets[i][first, 0], self.windows.offsets[i][last, 1]
            blurred += self.golds[i].score(self.questions[i].context[left:right])[0] < 1
        return {
            "test answer not where the data says": sum(q.is_misplaced for q in self.questions),
            "test answer whole in no window": self.windows.n_parted(self.spans),
            "test answer longer than max_answer_tokens": int((n_tokens > self.max_answer_tokens).sum()),
            "test answer that shares a token with other text": blurred,
        }

    def samples(self, grades: Grades) -> list[dict[str, str]]:
        """The first questions with their answers."""
        rows = zip(self.questions[:N_SAMPLES], grades.answers, strict=False)
        return [
            {"context": q.context, "question": q.question, "right answer": " | ".join(q.answers), "answer": a}
            for q, a in rows
        ]
