"""Tagged sentences, and what is learnt from them. sentences -> words with a state -> classes.

Shapes: N sentences, K words with a state, C tags that occur in training.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bench.tasks.word_states import Windows


@dataclass(frozen=True)
class Sentence:
    """Words and a tag for each."""

    words: Sequence[str]
    tags: Sequence[str]


@dataclass(frozen=True)
class Part:
    """Sentences of a split as they are read, in a fixed order."""

    sentences: list[Sentence]
    text: Windows

    @property
    def gold(self) -> list[Sequence[str]]:
        """The tags, by sentence."""
        return [sentence.tags for sentence in self.sentences]

    @property
    def tags_with_state(self) -> list[str]:
        """The tags of the words that have a state."""
        flat = (tag for tags in self.gold for tag in tags)
        return [tag for tag, has_state in zip(flat, self.text.has_state.tolist(), strict=True) if has_state]

    @property
    def n_without_state(self) -> int:
        """Words of which the tokenizer leaves nothing."""
        return int((~self.text.has_state).sum())

    def by_sentence(self, tags: Sequence[str], untagged: str) -> list[list[str]]:
        """Tags of the words with a state, by sentence; `untagged` for the other words."""
        given = iter(tags)
        flat = [next(given) if has_state else untagged for has_state in self.text.has_state.tolist()]
        starts = self.text.starts.tolist()
        return [flat[first:stop] for first, stop in pairwise(starts)]


@dataclass(frozen=True)
class Lesson:
    """What is learnt from the first n training sentences: words with a state, and their classes.

    Classes are in order of frequency: a constant predictor says the first.
    """

    n: int
    words: Tensor  # (K,) counted over all training sentences
    labels: Tensor  # (K,) classes
    names: list[str]  # (C,) the tags that the classes are

    def tags(self, classes: Tensor) -> list[str]:
        """The names of some classes."""
        return [self.names[c] for c in classes.tolist()]


def lesson_of(train: Part, n: int, relabel: Callable[[Tensor], Tensor]) -> Lesson:
    """Words and labels of the first n sentences; `relabel` has the last word on the labels (K,)."""
    words = train.text.has_state[: int(train.text.starts[n])].nonzero().flatten()
    flat = [tag for tags in train.gold[:n] for tag in tags]
    tags = [flat[word] for word in words.tolist()]
    frequency = Counter(tags)
    names = sorted(frequency, key=lambda tag: (-frequency[tag], tag))
    number = {tag: i for i, tag in enumerate(names)}
    return Lesson(n, words, relabel(torch.tensor([number[tag] for tag in tags])), names)


def uncounted(train: Part, test: Part, lesson: Lesson) -> dict[str, int]:
    """Words that nothing could be learnt from, and test words that could not be right."""
    n_words = int(train.text.starts[lesson.n])
    unseen = sum(tag not in lesson.names for tags in test.gold for tag in tags)
    return {
        f"training word without a token@{lesson.n}": n_words - len(lesson.words),
        f"test word with a label unseen in training@{lesson.n}": unseen,
    }
