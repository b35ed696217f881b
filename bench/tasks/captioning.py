"""Captions of test images, against those that they have: chrF, CIDEr-D and BLEU.

Three protocols, never in one column: `generate` writes, greedily; `retrieve` takes the training caption that
is nearest in the strategy's own space; `fitted` the same in a space fitted to frozen text features, which
every strategy has. The references of an image are all its captions. OpenMoji has one, often of two words: no
text of two words can reach CIDEr-D 10, and the ceiling says how far one can get.

chrF (Popović 2015) is the mean over images of sacrebleu's sentence score, with the best of the references;
BLEU is sacrebleu's score of the corpus (case:mixed|eff:no|tok:13a|smooth:exp). Both run from 0 to 100.
CIDEr-D is `bench.tasks.cider`'s.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import PairRows
from bench.data.pairs import PairArray
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, DataError, InapplicableError
from bench.models.flops import blocks_flops, head_flops, vision_flops
from bench.models.vision import n_patches
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.cider import cider_d, words
from bench.tasks.probe import check_fit, in_batches
from bench.tasks.retrieval_space import similarities, space

N_SAMPLES = 8


@runtime_checkable
class Captions(Protocol):
    """A strategy that writes captions."""

    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        """(B, S, S, 3) uint8 -> ids (B, n_new), PAD behind the closing EOS."""
        ...


@dataclass(frozen=True)
class Described:
    """Test images with all their captions."""

    images: Tensor  # (N, S, S, 3) uint8
    references: list[list[str]]


class Captioning(Task):
    """One caption for each test image."""

    @dataclass(frozen=True)
    class Options:
        """The protocol, how many items; for `fitted`, the fit of the vision tower."""

        protocol: str = MISSING  # generate | retrieve | fitted
        test_images: int = MISSING  # at most
        train_captions: int = MISSING  # to retrieve from, at most: the most frequent ones
        steps: int = MISSING
        batch_size: int = MISSING
        lr_at_64: float = MISSING
        temperature: float = MISSING

        def __post_init__(self) -> None:
            if self.protocol not in ("generate", "retrieve", "fitted"):
                raise ConfigError(f"task.*.protocol={self.protocol!r}: choose generate, retrieve or fitted")
            if self.test_images < 2 or self.train_captions < 1:
                raise ConfigError("task.*.test_images: choose 2 or more; task.*.train_captions: 1 or more")
            if self.protocol == "fitted":
                check_fit(self)

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """chrF first, then CIDEr-D and BLEU.

        Chance is what the most frequent training caption scores, given to every image: so retrieves a model
        to which all captions are equally near. What one that knows nothing would write is not defined.
        """
        test = described(setting.pairs.test(), self.options.test_images)
        if self.options.protocol == "generate":
            return outcome(written(model, test.images, setting), test, setting)
        texts, tokens = frequent_captions(setting.pairs.train(), self.options.train_captions)
        joint = space(model, self.options, setting)
        likeness = similarities(joint.images(test.images), joint.texts(tokens))  # (N, M)
        nearest = likeness.argmax(dim=1).tolist()  # the first of ties: the most frequent
        return outcome([texts[i] for i in nearest], test, setting, constant=texts[0])

    def ceiling(self, setting: Setting) -> Outcome:
        """The first caption of each image, held against all of them."""
        test = described(setting.pairs.test(), self.options.test_images)
        return outcome([texts[0] for texts in test.references], test, setting)


def described(pairs: PairArray, limit: int) -> Described:
    """The first images, each once.

    Raises:
        DataError: fewer than two images; how rare a word is cannot be told then.
    """
    rows: dict[bytes, list[int]] = {}
    for i, image in enumerate(pairs.images):
        rows.setdefault(image.tobytes(), []).append(i)
    chosen = list(rows.values())[:limit]
    if len(chosen) < 2:
        raise DataError("corpus.pairs: captioning needs two test images or more; add pairs")
    images = PairRows(pairs).read(np.array([index[0] for index in chosen]))["images"]
    return Described(images, [[pairs.texts[i] for i in index] for index in chosen])


def frequent_captions(pairs: PairArray, limit: int) -> tuple[list[str], Tensor]:
    """Distinct captions, the most frequent first, with their ids (M, L).

    Of equally frequent ones, the first is that of the most frequent words: nobody who guesses blindly knows a
    better one.
    """
    n_of = Counter(pairs.texts)
    n_with = Counter(word for text in pairs.texts for word in set(words(text)))

    def rank(text: str) -> tuple[float, float, str]:
        found = words(text) or [""]
        return -n_of[text], -sum(n_with[word] for word in found) / len(found), text

    texts = sorted(n_of, key=rank)[:limit]
    row_of = {text: i for i, text in enumerate(pairs.texts)}
    return texts, PairRows(pairs).read(np.array([row_of[text] for text in texts]))["captions"]


def written(model: Objective, images: Tensor, setting: Setting) -> list[str]:
    """What a strategy writes to images (N, S, S, 3), at most as long as it saw captions."""
    if not isinstance(model, Captions):
        raise InapplicableError("writes no captions")
    model.eval()
    size = model.shapes

    def caption(batch: Tensor) -> Tensor:
        setting.keep_going()
        ids = model.caption_images(batch, size.caption_length)
        patches = n_patches(size.model, size.image_size)
        n_steps = int((ids != PAD).sum(dim=1).max())
        steps = sum(
            blocks_flops(size.model, patches + t) + head_flops(size.model, size.vocab_size, 1)
            for t in range(n_steps)
        )
        setting.meter.add(len(batch) * (vision_flops(size.model, size.image_size) + steps))
        return ids

    ids = in_batches(caption, images, model.device)
    return [setting.tokenizer.decode(row).strip() for row in ids.tolist()]


def outcome(texts: Sequence[str], test: Described, setting: Setting, constant: str | None = None) -> Outcome:
    """Scores of one caption for each image; chance is that of `constant` for all."""
    items, bleu = scored(texts, test.references)
    values = {name: float(found.mean()) for name, found in items.items()} | {"bleu": bleu}
    chance: Mapping[str, float | None] = dict.fromkeys(values)
    if constant is not None:
        found, bleu = scored([constant] * len(texts), test.references)
        chance = {name: float(array.mean()) for name, array in found.items()} | {"bleu": bleu}
    shown = list(zip(test.references, texts, strict=True))[:N_SAMPLES]
    samples = [{"caption": own[0], "answer": text} for own, text in shown]
    measured = [Measured(name, value, chance[name], len(texts)) for name, value in values.items()]
    return Outcome(measured, items, setting.pairs.skipped, samples)


def scored(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """chrF and CIDEr-D of each text, and BLEU of all together."""
    from sacrebleu.metrics import BLEU, CHRF

    chrf = CHRF()
    width = max(map(len, references))
    streams = [[own[k] if k < len(own) else None for own in references] for k in range(width)]
    likeness = [
        chrf.sentence_score(text, list(own)).score for text, own in zip(texts, references, strict=True)
    ]
    consensus = cider_d(
        [words(text) for text in texts], [[words(text) for text in own] for own in references]
    )
    bleu = BLEU(force=True).corpus_score(list(texts), streams)  # force: a full stop in a text is no mistake
    return {"chrf": np.array(likeness), "cider_d": consensus}, float(bleu.score)
