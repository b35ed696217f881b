"""Questions in SQuAD's format, their task on a small scale, and models that know the answer or its place."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from toy_data import prepare
from toy_models import CONF, MODEL, OPTIM

from bench.config.build import build
from bench.data.tokenizer import EOS, PAD
from bench.objectives.base import Attention, Objective, Shapes
from bench.objectives.scratch import Scratch
from bench.tasks.audit import OPTIONS
from bench.tasks.base import Outcome, Setting, Task

SHAPES = Shapes(model=MODEL, vocab_size=300, sequence_length=24, caption_length=6, image_size=8)
Entry = dict[str, Any]


def entry(context: str, *qas: tuple[str, str | None]) -> Entry:
    asked = []
    for text, answer in qas:
        answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
        asked.append({"id": text, "question": text, "answers": answers, "is_impossible": answer is None})
    return {"context": context, "qas": asked}


def write(path: Path, paragraphs: list[Entry]) -> Path:
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def paragraphs(split: str, n: int, *, with_impossible: bool = False) -> list[Entry]:
    """The answer is the one capital letter among small ones."""
    rng = random.Random(split)  # noqa: S311
    found = []
    for i in range(n):
        letters = rng.choices("abcdefgh", k=24)
        place = rng.randrange(24)
        is_impossible = with_impossible and i % 3 == 0
        if not is_impossible:
            letters[place] = "Z"
        found.append(entry(f"{' '.join(letters)} {i}", (f"q{i}?", None if is_impossible else "Z")))
    return found


def toy_setting(folder: Path) -> Setting:
    text = prepare(folder)
    pairs: Any = None
    return Setting(text.tokenizer(), SHAPES.sequence_length, text, pairs, folder, 0, lambda: None)


def make_task(name: str, **changes: Any) -> Task:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{name}.yaml"))[name]  # type: ignore[index,call-overload]
    quick = {"max_labels": 60, "label_budgets": [60], "test_items": 100, "max_answer_tokens": 4}
    return build(node | quick | changes, Task, f"task.{name}")  # type: ignore[type-abstract]


def squad_task(folder: Path, train: list[Entry], test: list[Entry], **changes: Any) -> Task:
    files = {"train_path": train, "test_path": test}
    paths = {key: str(write(folder / f"{key}.json", part)) for key, part in files.items()}
    return make_task("squad_probe", **paths, **changes)


class Spelling(Scratch):
    """To it a state is which token stands there."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        return torch.eye(300)[tokens]


class Place(Scratch):
    """To it a state is where it stands: from the question, and from the end."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        columns = torch.arange(tokens.shape[1])
        after = (columns - (tokens == EOS).int().argmax(dim=1)[:, None]).clamp(min=0)
        before = ((tokens != PAD).sum(dim=1)[:, None] - columns).clamp(min=0)
        return torch.cat([torch.eye(64)[after], torch.eye(64)[before]], dim=2)


def model(cls: type[Objective], width: int = MODEL.d_model) -> Objective:
    """With states of this width; the backbone is of no use."""
    made = cls(OPTIONS, shapes=SHAPES, optimizer=OPTIM).eval()
    made.shapes = replace(SHAPES, model=replace(MODEL, d_model=width))
    return made


def values(outcome: Outcome) -> dict[str, float]:
    return {score.metric: score.value for score in outcome.scores}


def chances(outcome: Outcome) -> dict[str, float | None]:
    return {score.metric: score.chance for score in outcome.scores}


def within_binomial(value: float, chance: float, n: int) -> bool:
    return abs(value - chance) <= 4 * (max(chance * (1 - chance), 0.5 / n) / n) ** 0.5
