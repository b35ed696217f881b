"""Captions are scored as sacrebleu scores them, written greedily, and retrieved."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_squares import COLOURS, NAMES, SKIPPED, Seer, chances, make_setting, make_task, values
from corpus_builders import assert_one_line
from toy_models import make_strategy

from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError, InapplicableError
from bench.models.flops import vision_flops
from bench.objectives.captioning import NEVER_WRITTEN, Captioning
from bench.tasks.base import Setting
from bench.tasks.captioning import described, frequent_captions, scored
from bench.tasks.meter import Meter


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("squares"))


def test_one_that_knows_every_caption_reaches_the_ceiling(setting: Setting) -> None:
    task = make_task("image_captioning")
    found, ceiling = task.evaluate(Seer(setting), setting), task.ceiling(setting)
    assert ceiling is not None
    assert values(found)["chrf"] == values(ceiling)["chrf"] == 100
    assert values(ceiling)["bleu"] == pytest.approx(100)
    assert 3 < values(ceiling)["cider_d"] < 10
    assert found.counts == SKIPPED
    assert found.samples[0]["answer"] in {f"a {name} square" for name in NAMES}


def test_the_right_caption_is_retrieved_wherever_the_training_captions_hold_it(setting: Setting) -> None:
    found = make_task("image_captioning_retrieve").evaluate(Seer(setting), setting)
    references = described(setting.pairs.test(), 10_000).references
    is_grey = np.array(["a grey square" in own for own in references])  # in no training caption
    assert 0 < is_grey.sum() < len(is_grey) == len(found.items["chrf"])
    assert (found.items["chrf"][~is_grey] == 100).all()
    assert (found.items["chrf"][is_grey] < 100).all()


def test_an_image_counts_once_and_has_all_its_captions(setting: Setting) -> None:
    test = described(setting.pairs.test(), 10_000)
    n_groups = len(set(setting.pairs.test().groups))
    assert len(test.images) == len(test.references) == n_groups
    for image, references in zip(test.images, test.references, strict=True):
        (name,) = (n for n in NAMES if f"a {n} square" in references)
        assert set(references) == {f"a {name} square", f"this one is {name}"}
        assert tuple(image[4, 4].tolist()) == COLOURS.get(name, (150, 0, 150))


def test_one_to_which_all_is_equal_retrieves_the_most_frequent_caption_which_is_chance(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = Seer(setting)
    monkeypatch.setattr(blind, "embed_images", lambda images: torch.full((len(images), 7), 7**-0.5))
    monkeypatch.setattr(blind, "embed_texts", lambda tokens: torch.full((len(tokens), 7), 7**-0.5))
    found = make_task("image_captioning_retrieve").evaluate(blind, setting)
    assert chances(found) == values(found)
    texts, tokens = frequent_captions(setting.pairs.train(), 3)
    assert {row["answer"] for row in found.samples} == {texts[0]}
    counts = [setting.pairs.train().texts.count(text) for text in texts]
    assert counts == sorted(counts, reverse=True)
    assert [setting.tokenizer.decode(row) for row in tokens.tolist()] == texts


def test_chrf_and_bleu_are_sacrebleus_with_any_number_of_references() -> None:
    import sacrebleu

    texts = ["a red square.", "this is blue", "Grey"]
    references = [["a red square", "this one is red"], ["this one is blue"], ["grey", "a grey square", "a"]]
    items, bleu = scored(texts, references)
    expected = [sacrebleu.sentence_chrf(t, own).score for t, own in zip(texts, references, strict=True)]
    assert items["chrf"].tolist() == expected
    streams = [["a red square", "this one is blue", "grey"], ["this one is red", None, "a grey square"],
               [None, None, "a"]]  # fmt: skip
    assert bleu == sacrebleu.corpus_bleu(texts, streams).score > 0


@pytest.fixture
def captioner(setting: Setting) -> Captioning:
    made = make_strategy("captioning", shapes=Seer(setting).shapes)
    assert isinstance(made, Captioning)
    return made


def test_greedy_captions_take_the_likeliest_token_given_what_was_written(captioner: Captioning) -> None:
    images = torch.randint(256, (6, 8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    captions = captioner.caption_images(images, 9)
    with torch.no_grad():
        logits = captioner.logits(images, captions)  # (B, L, V)
    logits[..., NEVER_WRITTEN] = -torch.inf
    assert captions.shape == (6, 9)
    assert torch.equal(captions, logits.argmax(dim=-1))  # this one never ends: see below


def test_a_caption_ends_at_its_eos_and_the_others_go_on(
    captioner: Captioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = torch.tensor([[5, EOS, 6, 7], [5, 6, 7, 8], [EOS, 9, 9, 9]])  # what would be likeliest
    steps = iter(F.one_hot(script, captioner.shapes.vocab_size).float().unbind(dim=1))
    monkeypatch.setattr(captioner.head, "forward", lambda hidden: next(steps))
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    assert captioner.caption_images(images, 4).tolist() == [
        [5, EOS, PAD, PAD],
        [5, 6, 7, 8],
        [EOS, *[PAD] * 3],
    ]


def test_writing_is_asked_of_those_alone_that_write(setting: Setting) -> None:
    for name, reason in (("image_captioning", "captions"), ("image_captioning_retrieve", "image tower")):
        with pytest.raises(InapplicableError, match=reason):
            make_task(name).evaluate(make_strategy("mlm"), setting)


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"protocol": "beam"}, "generate, retrieve, fitted"), ({"test_images": 1}, "2 or more")],
)
def test_options_that_cannot_be_are_one_line(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task("image_captioning", **changes)
    assert_one_line(caught.value, next(iter(changes)), part)


def test_writing_costs_more_than_the_tower_and_more_for_longer_captions(
    captioner: Captioning, setting: Setting
) -> None:
    metered = replace(setting, meter=Meter())
    make_task("image_captioning", test_images=5).evaluate(captioner, metered)
    least = 5 * vision_flops(captioner.shapes.model, 8)
    assert metered.meter.flops > least
    brief = Seer(setting)  # writes captions of a few tokens: fewer steps
    other = replace(setting, meter=Meter())
    make_task("image_captioning", test_images=5).evaluate(brief, other)
    assert least < other.meter.flops < metered.meter.flops
