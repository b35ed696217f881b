"""Coloured squares as a data set in Hugging Face's format, one that knows it and one that sees nothing."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from corpus_builders import pair_corpus
from PIL import Image
from torch import Tensor
from toy_data import prepare
from toy_models import CONF, SHAPES, make_strategy

from bench.config.build import build
from bench.data.corpora.base import Document, split_of
from bench.data.pairs import PairData, prepare_pairs
from bench.data.tokenizer import PAD
from bench.objectives.scratch import Scratch
from bench.tasks.base import Outcome, Setting, Task
from bench.tasks.probe import encode

COLOURS = {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220), "grey": (90, 90, 90)}
NAMES = [*COLOURS, "violet"]
WORDS = [*COLOURS, "other"]
LENGTH = 16
N_IMAGES = 240  # of the first three colours, evenly; two captions each
SKIPPED = {"image that does not decode": 2, "row without a caption": 1}
TEXTS = [Document(f"{i}: a {name} square; this one is {name}", f"g{i}") for i, name in enumerate(NAMES * 20)]
FIT = {"steps": 2, "batch_size": 8, "lr_at_64": 1e-3}


def square(colour: tuple[int, int, int], number: int) -> bytes:
    """A picture that no other number has."""
    pixels = np.full((8, 8, 3), colour, np.uint8)
    pixels[0, 0] = (*divmod(number, 256), 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def groups_in(split: str, n: int) -> list[str]:
    return [group for group in (f"{split} {i}" for i in range(500)) if split_of(group) == split][:n]


def rows() -> list[dict[str, Any]]:
    """Two captions an image; a rare class, one that is in no training image, images of none, broken rows."""
    made = [(["red", "green", "blue"][i % 3], f"g{i}") for i in range(N_IMAGES)]
    made += [("violet", group) for group in groups_in("test", 2) + groups_in("train", 3)]
    made += [("grey", group) for group in groups_in("test", 8)[2:]]
    made += [("red", group) for group in groups_in("test", 12)[8:]]
    unlabelled = range(len(made) - 4, len(made))
    found = []
    for i, (name, group) in enumerate(made):
        picture = square(COLOURS.get(name, (150, 0, 150)), i)
        label = -1 if i in unlabelled else NAMES.index(name)
        for caption in (f"a {name} square", f"this one is {name}"):
            found.append({"image": picture, "caption": caption, "colour": label, "group": group})
    for picture, caption in ((b"", "a"), (square((9, 9, 9), 900)[:60], "b"), (square((9, 9, 9), 901), None)):
        found.append({"image": picture, "caption": caption, "colour": 0, "group": "broken"})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> str:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "colour": datasets.ClassLabel(names=NAMES),
            "group": datasets.Value("string"),
        }
    )
    columns = {key: [row[key] for row in found] for key in features}
    columns["image"] = [{"bytes": data, "path": None} for data in columns["image"]]
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return str(path)


def squares(folder: Path, found: list[dict[str, Any]], name: str = "squares", **changes: Any) -> PairData:
    text = prepare(folder, TEXTS)
    path = write(folder / f"{name}.parquet", found)
    options = {"image_size": 8, "group_column": "group", "label_columns": ["colour"]} | changes
    corpus = pair_corpus("hf_image_text", name="parquet", data_files=[path], **options)
    return prepare_pairs(corpus, text.tokenizer_path, LENGTH, folder)


def make_setting(folder: Path) -> Setting:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        pairs = squares(folder, rows())
    text = prepare(folder, TEXTS)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=LENGTH,
        text=text,
        pairs=pairs,
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


class Seer(Scratch):
    """Sees colours and reads their names: it knows every answer."""

    def __init__(self, setting: Setting) -> None:
        plain = make_strategy("scratch")
        shapes = replace(SHAPES, vocab_size=setting.tokenizer.get_vocab_size(), caption_length=LENGTH)
        super().__init__(plain.options, shapes=shapes, optimizer=plain.optimizer)
        self.tokenizer = setting.tokenizer

    def seen(self, images: Tensor) -> Tensor:
        palette = torch.tensor([*COLOURS.values(), (150, 0, 150)]).float()  # (5, 3)
        return torch.cdist(images[:, 4, 4].float(), palette).argmin(dim=1)

    def embed_images(self, images: Tensor) -> Tensor:
        return F.one_hot(self.seen(images), len(WORDS)).float()

    def embed_texts(self, tokens: Tensor) -> Tensor:
        texts = [self.tokenizer.decode(row) for row in tokens.tolist()]
        read = [next((i for i, word in enumerate(COLOURS) if word in text), len(COLOURS)) for text in texts]
        return F.one_hot(torch.tensor(read), len(WORDS)).float()

    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        texts = [f"a {NAMES[i]} square" for i in self.seen(images).tolist()]
        ids = encode(texts, self.tokenizer, n_new)
        return F.pad(ids, (0, n_new - ids.shape[1]), value=PAD)


class Dazzled(Seer):
    """Sees noise, the same for the same image."""

    def __init__(self, setting: Setting, salt: int) -> None:
        super().__init__(setting)
        self.salt = salt

    def embed_images(self, images: Tensor) -> Tensor:
        seeds = [[self.salt, *image.numpy().tobytes()] for image in images]
        rows = [np.random.default_rng(seed).normal(size=8) for seed in seeds]
        return F.normalize(torch.tensor(np.array(rows)).float(), dim=1)


def make_task(name: str, **changes: Any) -> Task:
    node = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())[name]
    return build(node | changes, Task, f"task.{name}")


def by_colour(name: str, **changes: Any) -> Task:
    return make_task(name, label="colour", **changes)


def values(outcome: Outcome) -> dict[str, float]:
    return {m.metric: m.value for m in outcome.scores}


def chances(outcome: Outcome) -> dict[str, float | None]:
    return {m.metric: m.chance for m in outcome.scores}
