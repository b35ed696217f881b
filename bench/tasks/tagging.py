"""Tagging: one tag per word (entities, chunks, parts of speech), by frozen probe or by fine-tuning.

A linear classifier maps the state of each word to the word's tag: greedy, word by word, without learned
transitions, so that the score reflects the states. `bench.tasks.word_states` turns sentences into states,
`bench.tasks.tag_scores` turns tags into scores.
Shapes: N sentences, K words with a state, D width, C tags that occur in training.
"""

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from bench.config.bounds import given
from bench.data.corpora.base import Split
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import words_in_context
from bench.tasks.finetune import fine_tune
from bench.tasks.label_budgets import failed_fits, fit_spread, n_labels, probe_choice
from bench.tasks.options import TaggingOptions
from bench.tasks.probe import Choice, as_attention, beats_tag_frequencies, choose, probe, require_numbers
from bench.tasks.tag_scores import Counts, SpanF1, TagScore
from bench.tasks.word_states import WordWindows, all_words, read_words, windows

N_SAMPLES = 3
NO_LABEL = -100  # ignored by torch's cross-entropy


@dataclass(frozen=True)
class Sentence:
    """Words with one tag each."""

    words: Sequence[str]
    tags: Sequence[str]


@dataclass(frozen=True)
class EncodedSentences:
    """Sentences of a split and their encoding, in a fixed order."""

    sentences: list[Sentence]
    text: WordWindows

    @property
    def gold(self) -> list[Sequence[str]]:
        """The right tags, by sentence."""
        return [sentence.tags for sentence in self.sentences]

    @property
    def tags_with_state(self) -> list[str]:
        """The right tags of the words that have a state."""
        flat = (tag for tags in self.gold for tag in tags)
        return [tag for tag, has_state in zip(flat, self.text.has_state.tolist(), strict=True) if has_state]

    @property
    def n_without_state(self) -> int:
        """The number of words that the tokenizer leaves no token of."""
        return int((~self.text.has_state).sum())

    def by_sentence(self, tags: Sequence[str], untagged: str) -> list[list[str]]:
        """Group tags of the words with a state by sentence; other words get `untagged`."""
        given = iter(tags)
        flat = [next(given) if has_state else untagged for has_state in self.text.has_state.tolist()]
        starts = self.text.starts.tolist()
        return [flat[first:stop] for first, stop in pairwise(starts)]


@dataclass(frozen=True)
class LabelledWords:
    """The words with a state of the first n training sentences, and their classes.

    Classes are in order of frequency, so that a constant predictor always answers class 0.
    """

    n: int
    words: Tensor  # (K,) indices among the words of all training sentences
    labels: Tensor  # (K,) classes
    names: list[str]  # (C,) the tag of each class

    def tags(self, classes: Tensor) -> list[str]:
        """Return the tags of classes."""
        return [self.names[c] for c in classes.tolist()]


def labelled_words(train: EncodedSentences, n: int, relabel: Callable[[Tensor], Tensor]) -> LabelledWords:
    """Return the words and labels of the first n sentences; `relabel` may permute the labels (K,)."""
    words = train.text.has_state[: int(train.text.starts[n])].nonzero().flatten()
    flat = [tag for tags in train.gold[:n] for tag in tags]
    tags = [flat[word] for word in words.tolist()]
    frequency = Counter(tags)
    names = sorted(frequency, key=lambda tag: (-frequency[tag], tag))
    number = {tag: i for i, tag in enumerate(names)}
    return LabelledWords(n, words, relabel(torch.tensor([number[tag] for tag in tags])), names)


def _unusable(train: EncodedSentences, test: EncodedSentences, labelled: LabelledWords) -> dict[str, int]:
    """Count training words that cannot be fitted to, and test words that no prediction can get right."""
    n_words = int(train.text.starts[labelled.n])
    unseen = sum(tag not in labelled.names for tags in test.gold for tag in tags)
    return {
        f"training word without a token@{labelled.n}": n_words - len(labelled.words),
        f"test word with a label unseen in training@{labelled.n}": unseen,
    }


@dataclass(frozen=True)
class Predictions:
    """The classes (K,) that one fit predicts for the test words with a state."""

    classes: Tensor
    failed: bool = False  # see `bench.tasks.finetune.Tuned`
    choice: Choice | None = None  # of a probe


Predict = Callable[[LabelledWords], list[Predictions]]


class Tagging(Task):
    """Base of taggings; subclasses implement `sentences`, and set `score` if it is not the F1 of spans.

    Training sentences are drawn by the run's seed, and a smaller budget is a prefix of the draw; test
    sentences are the same for all. Words without a state count as untagged. Chance is the score of a constant
    predictor of the most frequent training tag, which is 0 for entities, where that tag is O.
    """

    Options: ClassVar[type[Any]] = TaggingOptions
    options: TaggingOptions
    packages: tuple[str, ...] = ("seqeval",)  # of the score
    score: ClassVar[TagScore] = SpanF1()

    @abstractmethod
    def sentences(self, split: Split) -> list[Sentence]:
        """Return all sentences of a split, in a fixed order, none of them empty."""

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        train, test = self._draw("train", self.options.max_labels, setting), self._test(setting)
        protocol = self._probe if self.options.protocol == "probe" else self._fine_tuning
        predict = protocol(model, train, test, setting)
        budgets, beyond = n_labels(self.options.label_budgets, len(train.sentences))
        scores: list[Measured] = []
        items: dict[str, NDArray[Any]] = {}
        counts = {"label budget beyond the data": beyond, "test word without a token": test.n_without_state}
        samples: list[dict[str, str]] = []
        for n in budgets:
            setting.keep_going()
            labelled = labelled_words(train, n, setting.labels)
            fits = predict(labelled)
            tagged = [self._tagged(test, labelled, fit.classes) for fit in fits]
            counted = [self.score.counts(test.gold, tags) for tags in tagged]
            scores += self._measured(counted, fits, self._constant(test, labelled), n)
            items |= self._items(counted, n)
            counts |= _unusable(train, test, labelled)
            samples = samples or self._samples(test, tagged[0])
        return Outcome(scores, items, {reason: n for reason, n in counts.items() if n}, samples)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of a linear classifier of each word and its neighbours."""
        train, test = self._draw("train", self.options.max_labels, setting), self._test(setting)
        scores: list[Measured] = []
        items: dict[str, NDArray[Any]] = {}
        asked = [sentence.words for sentence in test.sentences]
        for n in n_labels(self.options.label_budgets, len(train.sentences))[0]:
            setting.keep_going()
            known = [sentence.words for sentence in train.sentences[:n]]
            counted = self.score.counts(test.gold, words_in_context(known, train.gold[:n], asked))
            value, n_items = self.score.value(counted), self.score.n_items(counted)
            chance = self.score.value(self._constant(test, labelled_words(train, n, setting.labels)))
            scores.append(Measured(self.score.metric, value, chance, n_items, n_labels=n))
            items |= {f"{self.score.metric}.{name}@{n}": rows for name, rows in counted.items()}
        return Outcome(scores, items)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Return the outcome of a model that is right unless a word has no state or an unseen tag."""
        train, test = self._draw("train", self.options.max_labels, setting), self._test(setting)
        scores = []
        for n in n_labels(self.options.label_budgets, len(train.sentences))[0]:
            names = labelled_words(train, n, setting.labels).names
            known = [tag if tag in names else self.score.untagged for tag in test.tags_with_state]
            counts = self.score.counts(test.gold, test.by_sentence(known, self.score.untagged))
            value, n_items = self.score.value(counts), self.score.n_items(counts)
            scores.append(Measured(self.score.metric, value, None, n_items, n_labels=n))
        return Outcome(scores)

    # Sentences

    def _test(self, setting: Setting) -> EncodedSentences:
        return self._draw("test", self.options.test_items, setting)

    def _draw(self, split: Split, most: int, setting: Setting) -> EncodedSentences:
        """Draw training sentences by the run's seed, in the order of the draw.

        Sentences of other splits are drawn equally for all runs, and stay in the corpus' order.
        """
        found = self.sentences(split)
        if not found:
            raise DataError(f"{type(self).__name__}: no {split} sentences; check that the corpus is complete")
        rng = random.Random(setting.seed if split == "train" else 0)  # noqa: S311 - not for cryptography
        drawn = rng.sample(range(len(found)), len(found))[:most]
        sentences = [found[i] for i in (drawn if split == "train" else sorted(drawn))]
        text = windows(
            [sentence.words for sentence in sentences],
            setting.tokenizer,
            setting.sequence_length,
            first_only=self.options.word_state == "first",
            context_share=self.options.context_share,
        )
        return EncodedSentences(sentences, text)

    # Protocols: (model, train, test, setting) -> a function from labelled words to predictions

    def _probe(
        self, model: Objective, train: EncodedSentences, test: EncodedSentences, setting: Setting
    ) -> Predict:
        def states_of(part: EncodedSentences) -> Tensor:
            """Return the states of words in every layer (K, L + 1, D)."""
            attention = as_attention(self.options.attention)
            return all_words(model, part.text, attention, every_layer=True).cpu()

        known, asked = states_of(train), states_of(test)[test.text.has_state]

        def predict(labelled: LabelledWords) -> list[Predictions]:
            validation = self._draw("validation", min(self.options.validation_items, labelled.n), setting)
            held_out = states_of(validation)[validation.text.has_state]

            def score(decisions: Tensor) -> float:
                tags = self._tagged(validation, labelled, _best(decisions))
                return self.score.value(self.score.counts(validation.gold, tags))

            states = known[labelled.words]
            grid = given(self.options.inverse_penalties)
            chosen = choose(states, labelled.labels, held_out, score, grid)
            own, share = states[:, chosen.layer], self.options.held_out_share
            if share and not beats_tag_frequencies(own, labelled.labels, share):
                return [Predictions(torch.zeros(len(asked), dtype=torch.long), choice=chosen)]
            decisions = probe(own, labelled.labels, asked[:, chosen.layer], chosen.inverse_penalty)
            return [Predictions(_best(decisions), choice=chosen)]

        return predict

    def _fine_tuning(
        self, model: Objective, train: EncodedSentences, test: EncodedSentences, setting: Setting
    ) -> Predict:
        attention = as_attention(self.options.attention)

        def classes(tuned: Objective, head: nn.Module, part: EncodedSentences) -> Tensor:
            with torch.no_grad():
                return _best(head(all_words(tuned, part.text, attention)[part.text.has_state]))

        def predict(labelled: LabelledWords) -> list[Predictions]:
            validation = self._draw("validation", min(self.options.validation_items, labelled.n), setting)
            label_of = torch.full((len(train.text.has_state),), NO_LABEL)
            label_of[labelled.words] = labelled.labels

            def loss(tuned: Objective, head: nn.Module, index: Tensor) -> Tensor:
                here = torch.isin(train.text.sentence, index)
                words, states = read_words(tuned, train.text.tokens[here], train.text.owner[here], attention)
                return F.cross_entropy(head(states), label_of[words].to(states.device))

            def validate(tuned: Objective, head: nn.Module) -> float:
                tags = self._tagged(validation, labelled, classes(tuned, head, validation))
                return self.score.value(self.score.counts(validation.gold, tags))

            fits = fine_tune(
                model,
                head=lambda: _head(labelled, model.shapes.model.d_model),
                loss=loss,
                validate=validate,
                n_items=labelled.n,
                tuning=self.options.tuning,
                setting=setting,
                floor=self.score.value(self._constant(validation, labelled)),
                n_labels=labelled.n,
            )
            return [Predictions(classes(fit.model, fit.head, test), fit.failed) for fit in fits]

        return predict

    # Scores

    def _tagged(self, part: EncodedSentences, labelled: LabelledWords, classes: Tensor) -> list[list[str]]:
        return part.by_sentence(labelled.tags(classes), self.score.untagged)

    def _constant(self, part: EncodedSentences, labelled: LabelledWords) -> Counts:
        """Return the counts of a constant predictor of the most frequent training tag."""
        first = torch.zeros(int(part.text.has_state.sum()), dtype=torch.long)
        return self.score.counts(part.gold, self._tagged(part, labelled, first))

    def _measured(
        self, counted: list[Counts], fits: list[Predictions], constant: Counts, n: int
    ) -> list[Measured]:
        """Return the mean over fits, their spread, and for fine-tuning the share of failed fits."""
        values = np.array([self.score.value(counts) for counts in counted])
        n_items, metric = self.score.n_items(constant), self.score.metric
        chance = self.score.value(constant)
        found = [Measured(metric, float(values.mean()), chance, n_items, n_labels=n)]
        found += fit_spread(metric, values, n)
        if self.options.protocol == "finetune":
            found.append(failed_fits([fit.failed for fit in fits], n))
        return found + [part for fit in fits if fit.choice for part in probe_choice(fit.choice, n)]

    def _items(self, counted: list[Counts], n: int) -> dict[str, NDArray[Any]]:
        """Return the counts by sentence: (N,), or (fits, N) for fine-tuning."""
        stacked = {name: np.stack([counts[name] for counts in counted]) for name in counted[0]}
        single = self.options.protocol == "probe"
        return {
            f"{self.score.metric}.{name}@{n}": rows[0] if single else rows for name, rows in stacked.items()
        }

    def _samples(self, test: EncodedSentences, tagged: list[list[str]]) -> list[dict[str, str]]:
        """Return the first test sentences, as tagged by the first fit."""
        return [
            {
                "gold": self.score.written(sentence.words, sentence.tags),
                "predicted": self.score.written(sentence.words, tags),
            }
            for sentence, tags in zip(test.sentences[:N_SAMPLES], tagged, strict=False)
        ]


def _head(labelled: LabelledWords, d_model: int) -> nn.Linear:
    """Return a linear classifier that starts as the constant predictor of the tags' frequencies."""
    head = nn.Linear(d_model, len(labelled.names))
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(labelled.labels.bincount().log())
    return head


def _best(scores: Tensor) -> Tensor:
    """Return the best class of each word (K,), the most frequent one among ties."""
    require_numbers(scores)
    return torch.from_numpy(scores.cpu().numpy().argmax(axis=1))  # numpy guarantees the first of ties
