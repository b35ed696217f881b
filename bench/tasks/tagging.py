"""Tagging: a tag per word (entities, chunks, parts of speech), by frozen probe or by fine-tuning.

The state of each word goes into a linear classifier, whose best class is the word's tag: greedy, a word at a
time, with no transitions learnt, so that the score speaks of the states. How sentences become states is in
`bench.tasks.word_states`, how tags become scores in `bench.tasks.tag_scores`.
Shapes: K words with a state, D width, C tags that occur in training.
"""

import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor, nn

from bench.data.corpora.base import Split
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.label_budgets import check_label_budgets, n_labels
from bench.tasks.probe import Tuning, as_attention, fine_tune, probe
from bench.tasks.tag_scores import Counts, SpanF1, TagScore
from bench.tasks.tagged import Lesson, Part, Sentence, lesson_of, uncounted
from bench.tasks.word_probe import says_something
from bench.tasks.word_states import all_words, read_words, windows

N_SAMPLES = 3
NO_LABEL = -100  # ignored by torch's cross-entropy


@dataclass(frozen=True)
class TaggingOptions(Tuning):
    """What every tagging declares."""

    protocol: str = MISSING  # probe | finetune
    label_budgets: list[int | None] = MISSING  # training sentences; null: max_labels, or all there are
    max_labels: int = MISSING
    validation_items: int = MISSING  # sentences, of fine-tuning; at most as many as it has labels
    test_items: int = MISSING  # sentences, at most
    held_out_share: float = MISSING  # of training words, see `bench.tasks.word_probe`; 0: no check
    word_state: str = MISSING  # first | mean: of the word's tokens
    context_share: float = MISSING  # of a window of a long sentence, read again from the window before it
    attention: str = MISSING  # own | causal | bidirectional

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("probe", "finetune"):
            raise ConfigError(f"task.*.protocol={self.protocol!r}: choose probe or finetune")
        for key in ("max_labels", "validation_items", "test_items"):
            if getattr(self, key) < 1:
                raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose 1 or more")
        check_label_budgets(self.label_budgets, self.max_labels, "sentences")
        for key in ("held_out_share", "context_share"):
            if not 0 <= getattr(self, key) <= 0.5:
                raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose from 0 to 0.5")
        if self.word_state not in ("first", "mean"):
            raise ConfigError(f"task.*.word_state={self.word_state!r}: choose first or mean")
        as_attention(self.attention)


@dataclass(frozen=True)
class Fitted:
    """Classes (K,) that one fit gives to the test words with a state; `failed` only where a fit can fail."""

    classes: Tensor
    failed: bool = False


Learn = Callable[[Lesson], list[Fitted]]


class Tagging(Task):
    """A subclass gives the sentences, and the score if it is not the F1 of spans.

    Training sentences are drawn by the run's seed, a budget being a prefix of the draw; test sentences are
    the same for all. Words without a state count as untagged. Chance is what a constant predictor of the
    most frequent training tag scores: 0 for entities, since that tag is O.
    """

    options: TaggingOptions
    score: ClassVar[TagScore] = SpanF1()

    @abstractmethod
    def sentences(self, split: Split) -> list[Sentence]:
        """All sentences of a split, in a fixed order, none empty.

        Raises:
            DataError: they are missing or malformed.
        """

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """The score on test sentences at each label budget, the largest first."""
        train, test = self._part("train", self.options.max_labels, setting), self._test(setting)
        learner = self._probe if self.options.protocol == "probe" else self._fine_tuning
        learn = learner(model, train, test, setting)
        budgets, beyond = n_labels(self.options.label_budgets, len(train.sentences))
        scores: list[Measured] = []
        items: dict[str, NDArray[Any]] = {}
        counts = {"label budget beyond the data": beyond, "test word without a token": test.n_without_state}
        samples: list[dict[str, str]] = []
        for n in budgets:
            setting.keep_going()
            lesson = lesson_of(train, n, setting.labels)
            fits = learn(lesson)
            tagged = [self._tagged(test, lesson, fit.classes) for fit in fits]
            tallies = [self.score.counts(test.gold, tags) for tags in tagged]
            scores += self._measured(tallies, fits, self._constant(test, lesson), n)
            items |= self._items(tallies, n)
            counts |= uncounted(train, test, lesson)
            samples = samples or self._samples(test, tagged[0])
        return Outcome(scores, items, {reason: n for reason, n in counts.items() if n}, samples)

    def ceiling(self, setting: Setting) -> Outcome:
        """Right wherever a word has a state, and a tag that was seen in training."""
        train, test = self._part("train", self.options.max_labels, setting), self._test(setting)
        scores = []
        for n in n_labels(self.options.label_budgets, len(train.sentences))[0]:
            lesson = lesson_of(train, n, setting.labels)
            known = [tag if tag in lesson.names else self.score.untagged for tag in test.tags_with_state]
            tally = self.score.counts(test.gold, test.by_sentence(known, self.score.untagged))
            value, n_items = self.score.value(tally), self.score.n_items(tally)
            scores.append(Measured(self.score.metric, value, None, n_items, n_labels=n))
        return Outcome(scores)

    # Sentences

    def _test(self, setting: Setting) -> Part:
        return self._part("test", self.options.test_items, setting)

    def _part(self, split: Split, most: int, setting: Setting) -> Part:
        """Training sentences in the run's own order, others by one draw for all, in the corpus' order."""
        found = self.sentences(split)
        if not found:
            raise DataError(f"{type(self).__name__}: no {split} sentences; is the corpus whole?")
        rng = random.Random(setting.seed if split == "train" else 0)  # noqa: S311 - a draw, not a secret
        drawn = rng.sample(range(len(found)), len(found))[:most]
        sentences = [found[i] for i in (drawn if split == "train" else sorted(drawn))]
        text = windows(
            [sentence.words for sentence in sentences],
            setting.tokenizer,
            setting.sequence_length,
            first_only=self.options.word_state == "first",
            context_share=self.options.context_share,
        )
        return Part(sentences, text)

    # Protocols: (model, train, test, setting) -> what learns a lesson

    def _probe(self, model: Objective, train: Part, test: Part, setting: Setting) -> Learn:
        attention = as_attention(self.options.attention)
        known, asked = (all_words(model, part.text, attention).cpu() for part in (train, test))
        asked = asked[test.text.has_state]

        def learn(lesson: Lesson) -> list[Fitted]:
            states, share = known[lesson.words], self.options.held_out_share
            if share and not says_something(states, lesson.labels, share):
                return [Fitted(torch.zeros(len(asked), dtype=torch.long))]
            return [Fitted(_best(probe(states, lesson.labels, asked)))]

        return learn

    def _fine_tuning(self, model: Objective, train: Part, test: Part, setting: Setting) -> Learn:
        attention = as_attention(self.options.attention)

        def classes(tuned: Objective, head: nn.Module, part: Part) -> Tensor:
            with torch.no_grad():
                return _best(head(all_words(tuned, part.text, attention)[part.text.has_state]))

        def learn(lesson: Lesson) -> list[Fitted]:
            validation = self._part("validation", min(self.options.validation_items, lesson.n), setting)
            label_of = torch.full((len(train.text.has_state),), NO_LABEL)
            label_of[lesson.words] = lesson.labels

            def loss(tuned: Objective, head: nn.Module, index: Tensor) -> Tensor:
                here = torch.isin(train.text.sentence, index)
                words, states = read_words(tuned, train.text.tokens[here], train.text.owner[here], attention)
                return F.cross_entropy(head(states), label_of[words].to(states.device))

            def validate(tuned: Objective, head: nn.Module) -> float:
                tags = self._tagged(validation, lesson, classes(tuned, head, validation))
                return self.score.value(self.score.counts(validation.gold, tags))

            fits = fine_tune(
                model,
                head=lambda: _head(lesson, model.shapes.model.d_model),
                loss=loss,
                validate=validate,
                n_items=lesson.n,
                tuning=self.options,
                setting=setting,
                floor=self.score.value(self._constant(validation, lesson)),
            )
            return [Fitted(classes(fit.model, fit.head, test), fit.failed) for fit in fits]

        return learn

    # Scores

    def _tagged(self, part: Part, lesson: Lesson, classes: Tensor) -> list[list[str]]:
        return part.by_sentence(lesson.tags(classes), self.score.untagged)

    def _constant(self, part: Part, lesson: Lesson) -> Counts:
        """What a constant predictor gets: one that says the most frequent training tag of every word."""
        first = torch.zeros(int(part.text.has_state.sum()), dtype=torch.long)
        return self.score.counts(part.gold, self._tagged(part, lesson, first))

    def _measured(
        self, tallies: list[Counts], fits: list[Fitted], constant: Counts, n: int
    ) -> list[Measured]:
        """The mean over fits; of several fits their spread, and of fine-tuning the share that failed."""
        values = np.array([self.score.value(tally) for tally in tallies])
        n_items, metric = self.score.n_items(constant), self.score.metric
        chance = self.score.value(constant)
        found = [Measured(metric, float(values.mean()), chance, n_items, n_labels=n)]
        if len(values) > 1:
            spread = float(values.std(ddof=1))
            found.append(Measured(f"{metric}_fit_sd", spread, None, len(values), False, n))
        if self.options.protocol == "finetune":
            failed = sum(fit.failed for fit in fits) / len(fits)
            found.append(Measured("failed_fits", failed, None, len(fits), False, n))
        return found

    def _items(self, tallies: list[Counts], n: int) -> dict[str, NDArray[Any]]:
        """What the score is made of by sentence: (N,), or (fits, N) in fine-tuning."""
        stacked = {name: np.stack([tally[name] for tally in tallies]) for name in tallies[0]}
        single = self.options.protocol == "probe"
        return {
            f"{self.score.metric}.{name}@{n}": rows[0] if single else rows for name, rows in stacked.items()
        }

    def _samples(self, test: Part, tagged: list[list[str]]) -> list[dict[str, str]]:
        """The first test sentences, by the first fit."""
        return [
            {
                "gold": self.score.written(sentence.words, sentence.tags),
                "predicted": self.score.written(sentence.words, tags),
            }
            for sentence, tags in zip(test.sentences[:N_SAMPLES], tagged, strict=False)
        ]


def _head(lesson: Lesson, d_model: int) -> nn.Linear:
    """A linear classifier that starts as the constant predictor of the labels' frequencies."""
    head = nn.Linear(d_model, len(lesson.names))
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(lesson.labels.bincount().log())
    return head


def _best(scores: Tensor) -> Tensor:
    """The best class of each word (K,); of equal ones the most frequent in training."""
    if scores.isnan().any():
        raise FloatingPointError("scores are not numbers; the model or the fit diverged")
    return torch.from_numpy(scores.cpu().numpy().argmax(axis=1))  # numpy promises the first of equals
