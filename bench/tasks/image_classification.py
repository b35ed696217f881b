"""Classes of images: by prompts in a space that images share with texts, or by a linear probe.

`zero_shot` as in CLIP (arXiv:2103.00020, sec. 3.1.4): a class is the mean of the unit rows of its prompts.
`fitted` does the same through a vision tower fitted to frozen text features (LiT, arXiv:2111.07991), so that
every strategy can. `probe` is CLIP's linear probe (sec. 3.2) of the strategy's own vision tower.

Classes are seldom of one size: of OpenMoji's test images 51 % are people. The headline is therefore accuracy
by class, CLIP's "mean per class": whatever a predictor that sees nothing answers, it scores 1 / C.

OpenMoji's classes are Unicode's groups. Few captions name theirs (1.4 %), so that a group's own name
("travel and places") says little to a model of captions; the names of its subgroups ("animal bird",
"transport ground") are prompts too.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import PairRows
from bench.data.corpora import openmoji
from bench.data.pairs import PairArray
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.probe import check_fit, encode, hits, probe
from bench.tasks.retrieval_space import JointSpace, similarities, space, through_tower

EMOJI_GROUP = "emoji_group"
N_SAMPLES = 8


@runtime_checkable
class ImageTower(Protocol):
    """A strategy that reads images, if only into a space of their own."""

    def image_features(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, D)."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Distinct images of a split that are of a class: N rows of the split, with their class."""

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
    """Test images among the classes that have enough of them."""

    @dataclass(frozen=True)
    class Options:
        """Which label, how classes are put into words, how many items; for `fitted`, the fit."""

        protocol: str = MISSING  # zero_shot | fitted | probe
        label: str = MISSING  # emoji_group, or one of corpus.pairs.label_columns
        templates: list[str] = field(default_factory=lambda: MISSING)  # of prompts; {} is the class
        train_per_class: int = MISSING  # of a probe, at most
        test_images: int = MISSING  # at most
        min_test_per_class: int = MISSING  # a class with fewer does not count
        steps: int = MISSING
        batch_size: int = MISSING
        lr_at_64: float = MISSING
        temperature: float = MISSING

        def __post_init__(self) -> None:
            if self.protocol not in ("zero_shot", "fitted", "probe"):
                raise ConfigError(f"task.*.protocol={self.protocol!r}: choose zero_shot, fitted or probe")
            if not self.templates or any(text.count("{}") != 1 for text in self.templates):
                raise ConfigError(f"task.*.templates={list(self.templates)}: write {{}} once in each")
            for key in ("train_per_class", "test_images", "min_test_per_class"):
                if getattr(self, key) < 1:
                    raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose 1 or more")
            if self.protocol == "fitted":
                check_fit(self)

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Accuracy by class, then the share of images that are classified right."""
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

    def ceiling(self, setting: Setting) -> Outcome:
        """Every image is most like its own class."""
        names, test, counts = self._test(setting)
        return outcome(F.one_hot(test.targets(), len(names)).double(), test, names, counts)

    def _test(self, setting: Setting) -> tuple[list[str], Labelled, dict[str, int]]:
        """Names of the C classes, the test images that are of them, and what does not count."""
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
        """Ids (P, L) of the P prompts of each class, padded to one length; how many were cut to it."""
        parts = openmoji.groups() if self.options.label == EMOJI_GROUP else {}
        texts = [
            [text.replace("{}", phrase) for phrase in phrases for text in self.options.templates]
            for phrases in ([name.replace("_", " "), *parts.get(name, [])] for name in names)
        ]
        flat = [text for part in texts for text in part]
        encodings = setting.tokenizer.encode_batch(flat, add_special_tokens=False)
        n_cut = sum(len(encoding.ids) >= length for encoding in encodings)  # EOS needs a place
        return list(encode(flat, setting.tokenizer, length).split([len(part) for part in texts])), n_cut

    def _probed(self, model: Objective, names: Sequence[str], test: Labelled, setting: Setting) -> Tensor:
        tower = image_tower(model)
        train = self._drawn(names, setting)
        seen, unseen = (through_tower(tower, part.images(), model, setting) for part in (train, test))
        return probe(seen, setting.labels(train.targets()), unseen)

    def _drawn(self, names: Sequence[str], setting: Setting) -> Labelled:
        """Training images of each class, drawn by the run's seed."""
        train = setting.pairs.train()
        labels = labels_of(train, self.options.label)
        members: dict[str | None, list[int]] = {name: [] for name in names}
        for i in distinct_images(train):
            if labels[i] in members:
                members[labels[i]].append(i)
        rng = random.Random(setting.seed)  # noqa: S311 - a draw, not a secret
        drawn = [
            (i, target)
            for target, name in enumerate(names)
            for i in rng.sample(members[name], min(self.options.train_per_class, len(members[name])))
        ]
        rng.shuffle(drawn)
        return Labelled(train, [i for i, _ in drawn], [target for _, target in drawn])


def image_tower(model: Objective) -> Callable[[Tensor], Tensor]:
    """What a probe reads of images: the tower's own features, before they are projected into a space."""
    model.eval()
    if isinstance(model, ImageTower):
        return model.image_features
    if isinstance(model, JointSpace):
        return model.embed_images
    raise InapplicableError("no image tower of its own")


def labels_of(pairs: PairArray, label: str) -> list[str | None]:
    """The class of each pair, None where it has none.

    Unicode's groups of OpenMoji's pairs are looked up by caption: they are no part of the prepared data.

    Raises:
        ConfigError: no pair has such a label.
    """
    if label == EMOJI_GROUP:
        found = [openmoji.group_of(caption) for caption in pairs.texts]
    else:
        found = [labels.get(label) for labels in pairs.labels]
    if not any(found):
        known = sorted({name for labels in pairs.labels for name in labels})
        raise ConfigError(
            f"task.*.label={label!r} is no label of the {pairs.split} pairs; choose from "
            f"{', '.join([*known, EMOJI_GROUP])}, or add it to corpus.pairs.label_columns"
        )
    return found


def distinct_images(pairs: PairArray) -> list[int]:
    """The first pair of each image: one with several captions is one item."""
    first: dict[bytes, int] = {}
    for i, image in enumerate(pairs.images):
        first.setdefault(image.tobytes(), i)
    return list(first.values())


def outcome(scores: Tensor, test: Labelled, names: Sequence[str], counts: Mapping[str, int]) -> Outcome:
    """Accuracies of scores (N, C).

    An item's outcome under `accuracy_by_class` is weighted by N / (C * size of its class), so that the mean
    over items is the mean over classes.
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
    # One that always answers the largest class is right more often than 1 / C of the time.
    measured = [
        Measured("accuracy_by_class", float(by_class), 1 / len(names), len(targets)),
        Measured("accuracy", float(correct.mean()), None, len(targets)),
    ]
    return Outcome(measured, items, counts, samples)
