"""Image captioning: one caption per test image, scored against all its captions by chrF, CIDEr-D and BLEU.

There are three protocols, which are never compared with each other. `generate` decodes a caption greedily.
`retrieve` takes the nearest training caption in the strategy's own joint space. `fitted` does the same in a
space fitted to frozen text features, which is open to every strategy. OpenMoji has one caption per image,
often of two words; no text of two words can reach a CIDEr-D of 10, so the ceiling is lower.

chrF (Popović 2015) is the mean over images of sacrebleu's sentence score, with the best of the references;
BLEU is sacrebleu's corpus score (case:mixed|eff:no|tok:13a|smooth:exp). Both range from 0 to 100. CIDEr-D
(Vedantam et al. 2015, arXiv:1411.5726) measures how well a caption agrees with those that people wrote. It is
implemented here since the packages that provide it bring Java and 100 MB (pycocoevalcap 1.2) or audio models
(aac-metrics 0.6.0); a test shows that it agrees with both.
Shapes: N images, M captions, S pixels per side, L tokens per caption.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from bench.config.bounds import given
from bench.data.batches import PairRows
from bench.data.pairs import PairArray
from bench.data.tokenizer import PAD
from bench.errors import DataError, InapplicableError
from bench.models.flops import blocks_flops, head_flops, vision_flops
from bench.models.vision import n_patches
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.options import CaptioningOptions
from bench.tasks.probe import in_batches
from bench.tasks.retrieval import similarities, space

N_SAMPLES = 8


@runtime_checkable
class Captions(Protocol):
    """A strategy that generates captions."""

    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        """(B, S, S, 3) uint8 -> ids (B, n_new), with PAD after the closing EOS."""
        ...


@dataclass(frozen=True)
class Described:
    """Test images with all their captions."""

    images: Tensor  # (N, S, S, 3) uint8
    references: list[list[str]]


class Captioning(Task):
    """One caption for each test image."""

    Options = CaptioningOptions
    options: CaptioningOptions
    packages = ("sacrebleu",)

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return chrF, which is the headline, CIDEr-D and BLEU.

        Chance is the score of the most frequent training caption for every image, which is what a model
        retrieves to which all captions are equally near. It is undefined for generated captions.
        """
        test = described(setting.pairs.test(), self.options.test_images)
        if self.options.protocol == "generate":
            return outcome(generated(model, test.images, setting), test, setting)
        texts, tokens = frequent_captions(setting.pairs.train(), given(self.options.train_captions))
        joint = space(model, self.options, setting)
        likeness = similarities(joint.images(test.images), joint.texts(tokens))  # (N, M)
        nearest = likeness.argmax(dim=1).tolist()  # of tied captions the first, which is the most frequent
        return outcome([texts[i] for i in nearest], test, setting, constant=texts[0])

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of the most frequent training caption for every image."""
        test = described(setting.pairs.test(), self.options.test_images)
        (text,), _ = frequent_captions(setting.pairs.train(), 1)
        is_chance = self.options.protocol != "generate"
        return outcome([text] * len(test.images), test, setting, constant=text if is_chance else None)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Score the first caption of each image against all of them."""
        test = described(setting.pairs.test(), self.options.test_images)
        return outcome([texts[0] for texts in test.references], test, setting)


def described(pairs: PairArray, limit: int) -> Described:
    """Return the first distinct images with all their captions; fewer than two images are a DataError."""
    rows: dict[bytes, list[int]] = {}
    for i, image in enumerate(pairs.images):
        rows.setdefault(image.tobytes(), []).append(i)
    chosen = list(rows.values())[:limit]
    if len(chosen) < 2:
        raise DataError("corpus.pairs: captioning needs at least two test images; add pairs")
    images = PairRows(pairs).read(np.array([index[0] for index in chosen]))["images"]
    return Described(images, [[pairs.texts[i] for i in index] for index in chosen])


def frequent_captions(pairs: PairArray, limit: int) -> tuple[list[str], Tensor]:
    """Return distinct captions, the most frequent first, and their ids (M, L).

    Among equally frequent captions the first has the most frequent words, which makes it the best uninformed
    guess.
    """
    n_of = Counter(pairs.texts)
    n_with = Counter(word for text in pairs.texts for word in set(words(text)))

    def rank(text: str) -> tuple[float, float, str]:
        found = words(text) or [""]
        return -n_of[text], -sum(n_with[word] for word in found) / len(found), text

    texts = sorted(n_of, key=rank)[:limit]
    row_of = {text: i for i, text in enumerate(pairs.texts)}
    return texts, PairRows(pairs).read(np.array([row_of[text] for text in texts]))["captions"]


def generated(model: Objective, images: Tensor, setting: Setting) -> list[str]:
    """Generate captions of images (N, S, S, 3), at most as long as those seen in training."""
    if not isinstance(model, Captions):
        raise InapplicableError("generates no captions")
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
    """Score one caption for each image; chance is the score of `constant` for all images."""
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
    """Return chrF and CIDEr-D of each text, and BLEU of the corpus."""
    from sacrebleu.metrics import BLEU, CHRF

    chrf = CHRF()
    width = max(map(len, references))
    streams = [[own[k] if k < len(own) else None for own in references] for k in range(width)]
    by_text = [
        chrf.sentence_score(text, list(own)).score for text, own in zip(texts, references, strict=True)
    ]
    consensus = cider_d(
        [words(text) for text in texts], [[words(text) for text in own] for own in references]
    )
    bleu = BLEU(force=True).corpus_score(list(texts), streams)  # force: no warning about tokenised texts
    return {"chrf": np.array(by_text), "cider_d": consensus}, float(bleu.score)


MAX_N = 4  # n-grams of one to four words
SIGMA = 6.0  # of the penalty for a difference in length
SCALE = 10.0

Text = Sequence[str]  # words
Gram = tuple[str, ...]
Vectors = list[dict[Gram, float]]  # tf-idf weights of the n-grams, for each n


def words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation, nearly as the COCO server's tokenizer does.

    >>> words("A cat's medium-light eye!")
    ['a', "cat's", 'medium-light', 'eye']
    """
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def cider_d(candidates: Sequence[Text], references: Sequence[Sequence[Text]]) -> NDArray[np.float64]:
    """Return CIDEr-D (N,) of one candidate per image, from 0 to 10; the score of a system is the mean.

    N-grams that occur with few images weigh more. A text equal to its only reference scores 10 only if it has
    four words or more: the n-grams that a shorter one lacks count as not found.
    """
    of_references = [[_grams(text) for text in texts] for texts in references]
    n_images_with = Counter(gram for texts in of_references for gram in set().union(*texts))
    log_n = math.log(len(references))

    def weighted(grams: Counter[Gram]) -> Vectors:
        vectors: Vectors = [{} for _ in range(MAX_N)]
        for gram, n in grams.items():
            vectors[len(gram) - 1][gram] = n * (log_n - math.log(max(1, n_images_with[gram])))
        return vectors

    scores = []
    for candidate, texts, grams in zip(candidates, references, of_references, strict=True):
        vectors = weighted(_grams(candidate))
        cosines = [
            _similarity(vectors, weighted(own), len(candidate) - len(text))
            for text, own in zip(texts, grams, strict=True)
        ]
        scores.append(SCALE * sum(cosines) / len(cosines))
    return np.array(scores)


def _grams(text: Text) -> Counter[Gram]:
    return Counter(tuple(text[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(text) - n + 1))


def _similarity(candidate: Vectors, reference: Vectors, difference: int) -> float:
    """Return the mean cosine over n, with the candidate's weights clipped to the reference's."""
    total = 0.0
    for a, b in zip(candidate, reference, strict=True):
        length = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
        if length:
            total += sum(min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b) / length
    return total / MAX_N * math.exp(-(difference**2) / (2 * SIGMA**2))
