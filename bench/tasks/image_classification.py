"""Image classification: by prompts in a joint space of images and texts, or by a linear probe.

Protocol `zero_shot` follows CLIP (arXiv:2103.00020, sec. 3.1.4): a class is represented by the mean of the
unit rows of its prompts. `fitted` does the same with a vision tower fitted to frozen text features (LiT,
arXiv:2111.07991), which is open to every strategy. `probe` is CLIP's linear probe (sec. 3.2) of the
strategy's own vision tower.

Class sizes differ: 51 % of OpenMoji's test images show people. The headline is therefore the mean accuracy
over classes, as in CLIP: a predictor that ignores the image scores 1 / C whatever it answers.

OpenMoji's classes are Unicode's groups. Only 1.4 % of the captions name their group, so a group's own name
("travel and places") means little to a model of captions; the names of its subgroups ("animal bird",
"transport ground") are prompts too.
Shapes: N images, S pixels per side, C classes, P prompts of a class, L tokens of a prompt, D width.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from bench.config.bounds import given
from bench.data.batches import PairRows
from bench.data.corpora import openmoji
from bench.data.pairs import PairArray
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.options import ImageClassificationOptions
from bench.tasks.probe import encode, hits, probe
from bench.tasks.retrieval import JointSpace, similarities, space, through_tower

EMOJI_GROUP = "emoji_group"
N_SAMPLES = 8


@runtime_checkable
class ImageTower(Protocol):
    """A strategy with a vision tower, even if texts do not share its space."""

    def image_features(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, D)."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Distinct images of a split that have a class: N rows of the split and their classes."""

    pairs: PairArray
    index: list[int]
    classes: list[int]

    def images(self) -> Tensor:
        """(N, S, S, 3) uint8."""
        return PairRows(self.pairs).read(np.array(self.index))["images"]

    def targets(self) -> Tensor:
        """(N,)."""
        return torch.tensor(self.classes)


class ImageClassification(Task):
    """Classify test images among the classes that have enough of them."""

    Options = ImageClassificationOptions
    options: ImageClassificationOptions

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        names, test, counts = self._test(setting)
        if self.options.protocol == "probe":
            scores = self._probed(model, names, test, setting)
        else:
            joint = space(model, self.options, setting)
            prompts, n_cut = self._prompts(names, model.shapes.caption_length, setting)
            counts |= {"prompt longer than a caption": n_cut} if n_cut else {}
            rows = joint.texts(torch.cat(prompts)).double().split([len(part) for part in prompts])
            means = F.normalize(torch.stack([part.mean(dim=0) for part in rows]), dim=-1)  # (C, D)
            scores = similarities(joint.images(test.images()), means)
        return outcome(scores, test, names, counts)

    @override
    def baseline(self, setting: Setting) -> Outcome | None:
        """Return the outcome of a probe of raw pixels; None without training labels."""
        if self.options.protocol != "probe":
            return None
        names, test, counts = self._test(setting)
        train = self._drawn(names, setting)
        seen, unseen = (part.images().flatten(1).float() for part in (train, test))
        return outcome(probe(seen, setting.labels(train.targets()), unseen), test, names, counts)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        names, test, counts = self._test(setting)
        return outcome(F.one_hot(test.targets(), len(names)).double(), test, names, counts)

    def _test(self, setting: Setting) -> tuple[list[str], Labelled, dict[str, int]]:
        """Return the names of the C classes, their test images, and the number of unused images by reason."""
        test, least = setting.pairs.test(), self.options.min_test_per_class
        labels = labels_of(test, self.options.label)
        chosen = distinct_images(test)[: self.options.test_images]
        sizes = Counter(label for i in chosen if (label := labels[i]) is not None)
        counts = Counter(setting.pairs.skipped)
        counts["image without a label"] = len(chosen) - sizes.total()
        seen = set(sizes)
        if self.options.protocol == "probe":
            seen &= set(labels_of(setting.pairs.train(), self.options.label))
        names = sorted(name for name in seen if sizes[name] >= least)
        if len(names) < 2:
            raise DataError(
                f"task.*.label={self.options.label!r}: fewer than two classes have {least} test images; add "
                "data, or lower task.*.min_test_per_class"
            )
        for name, n in sizes.items():
            if name not in names:
                rare = f"class of fewer than {least} test images"
                counts[rare if name in seen else "label unseen in training"] += n
        kept = [(i, names.index(label)) for i in chosen if (label := labels[i]) in names]
        return names, Labelled(test, [i for i, _ in kept], [target for _, target in kept]), dict(+counts)

    def _prompts(self, names: Sequence[str], length: int, setting: Setting) -> tuple[list[Tensor], int]:
        """Return the ids (P, L) of each class' prompts, padded to one length, and the number that was cut."""
        parts = openmoji.groups() if self.options.label == EMOJI_GROUP else {}
        texts = [
            [text.replace("{}", phrase) for phrase in phrases for text in given(self.options.templates)]
            for phrases in ([name.replace("_", " "), *parts.get(name, [])] for name in names)
        ]
        flat = [text for part in texts for text in part]
        encodings = setting.tokenizer.encode_batch(flat, add_special_tokens=False)
        n_cut = sum(len(encoding.ids) >= length for encoding in encodings)  # one token is EOS
        return list(encode(flat, setting.tokenizer, length).split([len(part) for part in texts])), n_cut

    def _probed(self, model: Objective, names: Sequence[str], test: Labelled, setting: Setting) -> Tensor:
        tower = image_tower(model)
        train = self._drawn(names, setting)
        seen, unseen = (through_tower(tower, part.images(), model, setting) for part in (train, test))
        return probe(seen, setting.labels(train.targets()), unseen)

    def _drawn(self, names: Sequence[str], setting: Setting) -> Labelled:
        """Draw training images of each class by the run's seed."""
        train = setting.pairs.train()
        labels = labels_of(train, self.options.label)
        members: dict[str | None, list[int]] = {name: [] for name in names}
        for i in distinct_images(train):
            if labels[i] in members:
                members[labels[i]].append(i)
        rng = random.Random(setting.seed)  # noqa: S311 - not for cryptography
        limit = given(self.options.train_per_class)
        drawn = [
            (i, target)
            for target, name in enumerate(names)
            for i in rng.sample(members[name], min(limit, len(members[name])))
        ]
        rng.shuffle(drawn)
        return Labelled(train, [i for i, _ in drawn], [target for _, target in drawn])


def image_tower(model: Objective) -> Callable[[Tensor], Tensor]:
    """Return what a probe reads: the tower's own features, before their projection into a joint space."""
    model.eval()
    if isinstance(model, ImageTower):
        return model.image_features
    if isinstance(model, JointSpace):
        return model.embed_images
    raise InapplicableError("no image tower of its own")


def labels_of(pairs: PairArray, label: str) -> list[str | None]:
    """Return the class of each pair, None where it has none.

    Unicode's groups of OpenMoji's pairs are looked up by caption, since they are not in the prepared data.
    """
    if label == EMOJI_GROUP:
        found = [openmoji.group_of(caption) for caption in pairs.texts]
    else:
        found = [labels.get(label) for labels in pairs.labels]
    if not any(found):
        known = sorted({name for labels in pairs.labels for name in labels})
        raise ConfigError(
            f"task.*.label={label!r} is not a label of the {pairs.split} pairs; choose from "
            f"{', '.join([*known, EMOJI_GROUP])}, or add it to corpus.pairs.label_columns"
        )
    return found


def distinct_images(pairs: PairArray) -> list[int]:
    """Return the first pair of each image, since an image with several captions is one item."""
    first: dict[bytes, int] = {}
    for i, image in enumerate(pairs.images):
        first.setdefault(image.tobytes(), i)
    return list(first.values())


def outcome(scores: Tensor, test: Labelled, names: Sequence[str], counts: Mapping[str, int]) -> Outcome:
    """Return the accuracies of scores (N, C).

    The items of `accuracy_by_class` are weighted by N / (C * size of the class), so that their mean is the
    mean over classes.
    """
    targets = test.targets()
    correct = hits(scores, targets)
    sizes = torch.bincount(targets, minlength=len(names)).double().numpy()
    weights: NDArray[np.float64] = len(targets) / (len(names) * sizes)
    items = {"accuracy_by_class": correct * weights[targets.numpy()], "accuracy": correct}
    by_class = np.mean([correct[(targets == c).numpy()].mean() for c in range(len(names))])
    predicted = scores.argmax(dim=1).tolist()
    samples = [
        {"image of": test.pairs.texts[i], "class": names[target], "predicted": names[answer]}
        for i, target, answer in list(zip(test.index, test.classes, predicted, strict=True))[:N_SAMPLES]
    ]
    # `accuracy` has no chance level: always answering the largest class exceeds 1 / C.
    measured = [
        Measured("accuracy_by_class", float(by_class), 1 / len(names), len(targets)),
        Measured("accuracy", float(correct.mean()), None, len(targets)),
    ]
    return Outcome(measured, items, counts, samples)
