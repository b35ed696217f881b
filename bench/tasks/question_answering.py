"""Extractive question answering: the answer is a span of a text. By frozen probe or by fine-tuning.

Linear pointers to start and end (Devlin et al. 2019, arXiv:1810.04805, sec. 4.2) on the states of windows
that hold the question and a part of the context (`bench.tasks.answer_windows`); a question is answered by its
best span over all windows. "No answer" is given where it is likelier than every span; no threshold is tuned.

Chance is the expected score of a span drawn uniformly from all that a model may answer (and "no answer" where
the test items hold such). Spans that tie count their expectation, so a constant model scores chance exactly.
Exact match comes first: by luck F1 also depends on how long the spans are that a model chooses, and pointers
fitted to noise choose short ones, which overlap with less.
"""

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor, nn

from bench.data.corpora.base import Split
from bench.errors import ConfigError, DataError
from bench.objectives.base import Attention, Objective
from bench.tasks.answer_windows import Windows, cut
from bench.tasks.answers import Question
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.exam import Exam, Grades
from bench.tasks.label_budgets import check_label_budgets, n_labels
from bench.tasks.pointers import fit_pointers, frozen_states, pointer_logits, pointer_loss, states_at
from bench.tasks.probe import Tuning, as_attention, fine_tune


@dataclass(frozen=True)
class QuestionAnsweringOptions(Tuning):
    """What every extractive question answering declares."""

    protocol: str = MISSING  # probe | finetune
    attention: str = MISSING  # own | causal | bidirectional; with causal a start knows not what follows
    label_budgets: list[int | None] = MISSING  # training questions; null: max_labels, or all there are
    max_labels: int = MISSING
    validation_items: int = MISSING  # in fine-tuning, at most as many as there are labels
    test_items: int = MISSING  # at most
    max_question_tokens: int = MISSING  # and never more than half of a window
    max_answer_tokens: int = MISSING
    step_share: float = MISSING  # from window to window, of the context tokens that fit into one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("probe", "finetune"):
            raise ConfigError(f"task.*.protocol={self.protocol!r}: choose probe or finetune")
        as_attention(self.attention)
        counts = ("max_labels", "validation_items", "test_items", "max_question_tokens", "max_answer_tokens")
        for key in counts:
            if getattr(self, key) < 1:
                raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose 1 or more")
        check_label_budgets(self.label_budgets, self.max_labels)
        if not 0 < self.step_share <= 1:
            raise ConfigError(f"task.*.step_share={self.step_share}: choose more than 0 and at most 1")


@dataclass(frozen=True)
class Lessons:
    """Training windows with what to point to. A budget of k questions has the first windows."""

    windows: Windows
    spans: Tensor  # (N, 2) tokens; -1 where there is no answer
    targets: Tensor  # (W, 2)
    n_misplaced: int  # questions that could not be used

    def n_windows(self, n_questions: int) -> int:
        """Of the first questions."""
        return int((self.windows.item < n_questions).sum())


class QuestionAnswering(Task):
    """A subclass gives the questions.

    Training and validation questions are drawn by the run's seed, those of a small budget being the first of
    a large one; strategies of one seed share them. Test questions are the same for all. Validation labels
    come on top of a budget, never more than it has; fine-tuning alone uses them.
    """

    options: QuestionAnsweringOptions

    @abstractmethod
    def questions(self, split: Split, setting: Setting) -> list[Question]:
        """Questions of a split, in a fixed order."""

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Exact match and F1 by label budget, the largest first."""
        lessons = self._lessons(setting)
        test = self._exam("test", self.options.test_items, 0, setting)
        budgets, beyond = n_labels(self.options.label_budgets, len(lessons.spans))
        run = self._probed if self.options.protocol == "probe" else self._fine_tuned
        outcome = Outcome([], {}, _counts(lessons, test, beyond))
        for budget, (fits, failed) in zip(budgets, run(model, lessons, test, budgets, setting), strict=True):
            outcome = _with(outcome, test, fits, failed, budget)
        return outcome

    def ceiling(self, setting: Setting) -> Outcome:
        """One that points to each answer in the windows that hold it, or to the part that they hold."""
        test = self._exam("test", self.options.test_items, 0, setting)
        return _with(Outcome([]), test, [test.grade(test.pointed())], None, None)

    def _probed(
        self, model: Objective, lessons: Lessons, test: Exam, budgets: list[int], setting: Setting
    ) -> Iterator[tuple[list[Grades], float | None]]:
        """Pointers fitted to frozen states, which are computed once for all budgets."""
        attention = as_attention(self.options.attention)
        states = frozen_states(model, lessons.windows, attention)
        asked = frozen_states(model, test.windows, attention)
        for budget in budgets:
            setting.keep_going()
            n = lessons.n_windows(budget)
            pointers = fit_pointers(states[:n], lessons.windows, lessons.targets[:n], setting.meter)
            yield [test.grade(pointers(asked))], None

    def _fine_tuned(
        self, model: Objective, lessons: Lessons, test: Exam, budgets: list[int], setting: Setting
    ) -> Iterator[tuple[list[Grades], float | None]]:
        """Grades of every fit, and the share of fits that failed. An item of a fit is a window."""
        attention = as_attention(self.options.attention)

        def loss(tuned: Objective, head: nn.Module, index: Tensor) -> Tensor:
            _, is_real = lessons.windows.candidates(index)
            logits = head(states_at(tuned, lessons.windows, index, attention))
            targets = lessons.targets[index].to(logits.device)
            return pointer_loss(logits, is_real.to(logits.device), targets) / len(index)

        for budget in budgets:
            n = min(self.options.validation_items, budget)
            check = self._exam("validation", n, setting.seed, setting)
            fits = fine_tune(
                model,
                head=lambda: _head(model.shapes.model.d_model),
                loss=loss,
                validate=partial(_f1, check, attention),
                n_items=lessons.n_windows(budget),
                tuning=self.options,
                setting=setting,
                floor=float(check.chance.f1.mean()),
            )
            logits = [pointer_logits(fit.model, fit.head, test.windows, attention) for fit in fits]
            yield [test.grade(rows) for rows in logits], sum(fit.failed for fit in fits) / len(fits)

    def _lessons(self, setting: Setting) -> Lessons:
        """As many questions as the largest budget has, in an order drawn by the seed."""
        found = self.questions("train", setting)
        usable = [question for question in found if not question.is_misplaced]
        n = min(len(usable), max(budget or self.options.max_labels for budget in self.options.label_budgets))
        if n == 0:
            raise DataError(f"{type(self).__name__}: no training questions; use more data")
        train = random.Random(setting.seed).sample(usable, n)  # noqa: S311 - a draw, not a secret
        windows = self._cut(train, setting)
        spans = windows.token_spans(train)
        sizes = torch.tensor([len(offsets) for offsets in windows.offsets])
        source = setting.labels(torch.arange(n))  # itself, but in an audit
        targets = windows.targets(_moved(spans[source], sizes[source], sizes))
        return Lessons(windows, spans, targets, len(found) - len(usable))

    def _exam(self, split: Split, n: int, seed: int, setting: Setting) -> Exam:
        """At most `n` questions, drawn by `seed`; in an audit, those of validation have other labels too."""
        found = self.questions(split, setting)
        if not found:
            raise DataError(f"{type(self).__name__}: no {split} questions; use more data")
        drawn = random.Random(seed).sample(found, min(n, len(found)))  # noqa: S311 - a draw, not a secret
        if split != "test":
            sources = setting.labels(torch.arange(len(drawn))).tolist()
            drawn = [replace(q, answers=drawn[j].answers) for q, j in zip(drawn, sources, strict=True)]
        return Exam(drawn, self._cut(drawn, setting), self.options.max_answer_tokens)

    def _cut(self, questions: Sequence[Question], setting: Setting) -> Windows:
        return cut(
            questions,
            setting.tokenizer,
            setting.sequence_length,
            max_question_tokens=self.options.max_question_tokens,
            step_share=self.options.step_share,
        )


def _f1(exam: Exam, attention: Attention, model: Objective, head: nn.Module) -> float:
    """Of a fine-tuned model and its pointers."""
    return float(exam.grade(pointer_logits(model, head, exam.windows, attention)).f1.mean())


def _counts(lessons: Lessons, test: Exam, beyond: int) -> dict[str, int]:
    """What could not count, or not in full, and budgets beyond the data; without reasons that never occur."""
    cut_off = lessons.windows.n_cut_questions + test.windows.n_cut_questions
    counts = {
        "label budget beyond the data": beyond,
        "training answer not where the data says": lessons.n_misplaced,
        "training answer whole in no window": lessons.windows.n_parted(lessons.spans),
        "question cut to its first tokens": cut_off,
    }
    return {reason: n for reason, n in (counts | test.counts()).items() if n}


def _with(
    found: Outcome, test: Exam, fits: list[Grades], failed: float | None, n_labels: int | None
) -> Outcome:
    """An outcome with the scores, items and samples of one budget behind what it has.

    Args:
        failed: share of failed fits; None where nothing can fail.
        n_labels: the budget; None where nothing is fitted.
    """
    scores, items = list(found.scores), dict(found.items)
    for metric in ("em", "f1"):
        values = np.stack([getattr(fit, metric) for fit in fits])  # (fits, N)
        chance = getattr(test.chance, metric)  # (N,)
        for suffix, kept in test.parts().items():
            value, expected = float(values[:, kept].mean()), float(chance[kept].mean())
            scores.append(Measured(metric + suffix, value, expected, int(kept.sum()), n_labels=n_labels))
        if len(fits) > 1:
            spread = float(values.mean(axis=1).std(ddof=1))
            scores.append(Measured(f"{metric}_fit_sd", spread, None, len(fits), False, n_labels))
        name = metric if n_labels is None else f"{metric}@{n_labels}"
        items[name] = values if len(fits) > 1 else values[0]
    if failed is not None:
        scores.append(Measured("failed_fits", failed, None, len(fits), False, n_labels))
    return Outcome(scores, items, found.counts, found.samples or test.samples(fits[0]))


def _head(d_model: int) -> nn.Module:
    """Pointers from zero: at first all spans are equal."""
    head = nn.Linear(d_model, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _moved(spans: Tensor, sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Token spans (N, 2) of contexts of `sizes` (N,) tokens, at the same share of contexts of other sizes.

    Where sizes are equal, as in all but an audit, so are the spans.
    """
    first = torch.div(spans[:, 0] * new_sizes, sizes, rounding_mode="floor")
    last = (first + spans[:, 1] - spans[:, 0]).minimum(new_sizes - 1)
    return torch.where(spans >= 0, torch.stack([first, last], dim=1), spans)
