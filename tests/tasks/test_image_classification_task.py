"""Images are classified by prompts and by a probe; classes of any size count alike."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_squares import (
    LENGTH,
    N_IMAGES,
    SKIPPED,
    Dazzled,
    Seer,
    by_colour,
    chances,
    make_setting,
    make_task,
    rows,
    values,
)  # fmt: skip
from corpus_builders import assert_one_line, pair_corpus
from scipy import stats
from torch import Tensor
from toy_data import prepare
from toy_models import make_strategy

from bench.data.corpora import openmoji
from bench.data.corpora.base import split_of
from bench.data.pairs import prepare_pairs
from bench.errors import ConfigError, DataError, InapplicableError
from bench.tasks.base import Setting
from bench.tasks.image_classification import Labelled
from bench.tasks.image_classification import outcome as accuracies


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("squares"))


def test_unlabelled_rare_and_unseen_images_are_counted(setting: Setting) -> None:
    zero_shot = by_colour("zero_shot_images").evaluate(Seer(setting), setting)
    both = SKIPPED | {"image without a label": 4, "class of fewer than 5 test images": 2}
    assert zero_shot.counts == both
    probed = by_colour("image_probe").evaluate(Seer(setting), setting)
    assert probed.counts == both | {"label unseen in training": 6}
    n_regular = len({row["group"] for row in rows()[: 2 * N_IMAGES] if split_of(row["group"]) == "test"})
    assert zero_shot.scores[0].n_items == n_regular + 6
    assert probed.scores[0].n_items == n_regular
    assert (chances(zero_shot)["accuracy_by_class"], chances(probed)["accuracy_by_class"]) == (1 / 4, 1 / 3)


@pytest.mark.parametrize("name", ["zero_shot_images", "image_probe"])
def test_one_that_sees_and_reads_classifies_all(name: str, setting: Setting) -> None:
    task = by_colour(name)
    found = task.evaluate(Seer(setting), setting)
    ceiling = task.ceiling(setting)
    assert ceiling is not None
    assert values(found) == values(ceiling) == {"accuracy_by_class": 1.0, "accuracy": 1.0}
    assert {row["predicted"] == row["class"] for row in found.samples} == {True}


def test_whatever_a_blind_predictor_answers_it_scores_chance_by_class(setting: Setting) -> None:
    classes = [0, 0, 0, 0, 1, 2, 2]
    test = Labelled(setting.pairs.test(), list(range(7)), classes)
    for answer in (torch.eye(3)[0], torch.eye(3)[1], torch.ones(3)):
        found = values(accuracies(answer.expand(7, 3), test, ["a", "b", "c"], {}))
        assert found["accuracy_by_class"] == pytest.approx(1 / 3, abs=1e-12)
    assert values(accuracies(torch.eye(3)[0].expand(7, 3), test, ["a", "b", "c"], {}))["accuracy"] == 4 / 7


def test_accuracy_by_class_is_the_mean_over_classes(setting: Setting) -> None:
    test = Labelled(setting.pairs.test(), list(range(5)), [0, 0, 0, 0, 1])
    scores = F.one_hot(torch.tensor([0, 0, 0, 1, 1]), 2)
    found = accuracies(scores, test, ["a", "b"], {})
    assert values(found) == {"accuracy_by_class": (3 / 4 + 1) / 2, "accuracy": 4 / 5}
    assert found.items["accuracy_by_class"].mean() == pytest.approx(values(found)["accuracy_by_class"])


def test_a_class_is_the_mean_of_the_unit_rows_of_its_prompts(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    seer = Seer(setting)
    read: list[str] = []
    plain = seer.embed_texts

    def listening(tokens: Tensor) -> Tensor:
        read.extend(seer.tokenizer.decode(row) for row in tokens.tolist())
        return plain(tokens)

    monkeypatch.setattr(seer, "embed_texts", listening)
    by_colour("zero_shot_images", templates=["a {}", "{} it is"]).evaluate(seer, setting)
    names = ["blue", "green", "grey", "red"]
    assert read == [text for name in names for text in (f"a {name}", f"{name} it is")]


def assert_chance(n_right: float, n: int, chance: float) -> None:
    low, high = stats.binom.interval(0.999, n, chance)
    assert low <= n_right <= high


@pytest.mark.slow
def test_noise_scores_chance(setting: Setting) -> None:
    task = by_colour("image_probe", train_per_class=30)
    found = [task.evaluate(Dazzled(setting, salt), setting).items["accuracy"] for salt in range(10)]
    assert_chance(np.sum(found), np.size(found), 1 / 3)


def test_permuted_labels_score_chance(setting: Setting) -> None:
    task = by_colour("image_probe", train_per_class=30)
    audits = [replace(setting, seed=seed, permutes_labels=True) for seed in range(20)]
    n_right = sum(3 * task.evaluate(Seer(setting), one).scores[0].value for one in audits)
    assert_chance(n_right, 3 * 20, 1 / 3)  # a colour is right in all its images or in none


def test_a_label_that_no_pair_has_is_answered_by_those_that_are(setting: Setting) -> None:
    for label in ("shape", "emoji_group"):
        with pytest.raises(ConfigError) as caught:
            make_task("zero_shot_images", label=label).evaluate(Seer(setting), setting)
        assert_one_line(
            caught.value, f"label='{label}'", "colour", "emoji_group", "corpus.pairs.label_columns"
        )


def test_classes_too_small_to_count_are_one_line(setting: Setting) -> None:
    with pytest.raises(DataError) as caught:
        by_colour("zero_shot_images", min_test_per_class=1000).evaluate(Seer(setting), setting)
    assert_one_line(caught.value, "1000 test images", "task.*.min_test_per_class")


def test_a_prompt_longer_than_a_caption_is_counted(setting: Setting) -> None:
    long = by_colour("zero_shot_images", templates=["{}", "a {}" + " square" * LENGTH])
    assert long.evaluate(Seer(setting), setting).counts["prompt longer than a caption"] == 4


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("zero_shot_images", {"protocol": "one_shot"}, ["zero_shot, fitted, probe"]),
        ("zero_shot_images", {"templates": ["a thing"]}, ["templates", "{} once"]),
        ("zero_shot_images", {"templates": []}, ["templates=[]", "give at least one"]),
        ("image_probe", {"train_per_class": 0}, ["train_per_class=0", "1 or more"]),
    ],
)
def test_options_that_cannot_be_are_one_line(name: str, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(name, **changes)
    assert_one_line(caught.value, *parts)


@pytest.mark.parametrize("name", ["zero_shot_images", "image_probe"])
def test_one_without_an_image_tower_is_told_so(name: str, setting: Setting) -> None:
    with pytest.raises(InapplicableError, match="image tower"):
        by_colour(name).evaluate(make_strategy("mlm"), setting)


def test_every_emoji_of_unicode_16_has_a_group_and_few_captions_name_theirs() -> None:
    import emoji

    captions = [
        entry["en"].strip(":").replace("_", " ")
        for entry in emoji.EMOJI_DATA.values()
        if entry["status"] == openmoji.FULLY_QUALIFIED and entry["E"] <= 16
    ]
    plain = [text for text in captions if openmoji.group_of(f"flag: {text}") is None]
    groups = {text: openmoji.group_of(text) for text in plain}
    assert [text for text, group in groups.items() if group is None] == []
    assert set(groups.values()) <= set(openmoji.groups())
    named = [text for text, group in groups.items() if group and names_group(text, group)]
    assert 0 < len(named) / len(groups) < 0.02


def names_group(text: str, group: str) -> bool:
    """Does a caption hold a word of its group's name, in singular or plural?"""
    parts = {word.rstrip("s") for word in group.split() if word != "and"}
    return bool(parts & {word.rstrip("s") for word in text.lower().split()})


@pytest.mark.parametrize(
    ("caption", "group"),
    [
        ("grinning face", "smileys and emotion"),
        ("woman judge dark skin tone", "people and body"),
        (
            "men wrestling light skin tone dark skin tone",
            "people and body",
        ),  # newer than the list
        ("flag: Germany", "flags"),
        ("no such emoji", None),
    ],
)
def test_a_group_is_found_by_the_caption(caption: str, group: str | None) -> None:
    assert openmoji.group_of(caption) == group


@pytest.mark.slow
def test_groups_and_subgroups_change_nothing_that_studies_were_trained_on(tmp_path: Path) -> None:
    text = prepare(tmp_path)
    records = (Path(__file__).parents[2] / "experiments" / "strategies" / "records").glob("*.json")
    trained_on = json.loads(next(records).read_text(encoding="utf-8"))["data"]["pairs"]
    pairs = prepare_pairs(pair_corpus("openmoji"), text.tokenizer_path, 16, tmp_path)
    if pairs.manifest["provenance"] != trained_on["provenance"]:
        pytest.skip("other versions of the pictures or the names than the study's")
    assert pairs.manifest["content_sha256"] == trained_on["content_sha256"]
    assert pairs.manifest["splits"] == trained_on["splits"]
