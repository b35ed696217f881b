"""A caption is predicted from its image and from what stands on its left, and from nothing else."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_models import N_SPECIAL, SHAPES, generator, make_strategy, pair_rows

from bench.data.tokenizer import PAD
from bench.models.vision import n_patches, to_float
from bench.objectives.captioning import Captioning

P = n_patches(SHAPES.model, SHAPES.image_size)
L = SHAPES.caption_length
ROWS = pair_rows(4) | {
    "captions": torch.randint(N_SPECIAL, SHAPES.vocab_size, (4, L), generator=generator(2))
}


@pytest.fixture(scope="module")
def model() -> Captioning:
    made = make_strategy("captioning")
    assert isinstance(made, Captioning)
    return made


def changed(captions: Tensor, position: int) -> Tensor:
    """Another word at one place."""
    other = captions.clone()
    other[:, position] = N_SPECIAL + (other[:, position] - N_SPECIAL + 1) % (SHAPES.vocab_size - N_SPECIAL)
    return other


@pytest.mark.parametrize("position", range(L))
@torch.no_grad()
def test_a_caption_token_influences_what_follows_it_and_nothing_else(model: Captioning, position: int):
    before = model.logits(ROWS["images"], ROWS["captions"])
    difference = (model.logits(ROWS["images"], changed(ROWS["captions"], position)) - before).abs()
    assert difference[:, : position + 1].max() < 1e-6  # its own prediction included
    if position < L - 1:
        assert (difference[:, position + 1 :].amax(dim=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize("patch", range(P))
@torch.no_grad()
def test_every_patch_influences_every_prediction(model: Captioning, patch: int):
    side, size = SHAPES.image_size // SHAPES.model.patch_size, SHAPES.model.patch_size
    row, column = divmod(patch, side)
    images = ROWS["images"].clone()
    images[:, row * size : (row + 1) * size, column * size : (column + 1) * size] ^= 255
    difference = model.logits(images, ROWS["captions"]) - model.logits(ROWS["images"], ROWS["captions"])
    assert (difference.abs().amax(dim=2) > 1e-5).all()


def test_every_position_of_the_prefix_is_read_from_the_first_word_on(
    model: Captioning, monkeypatch: pytest.MonkeyPatch
):
    hidden = model.vision.hidden(to_float(ROWS["images"])).detach().requires_grad_()
    monkeypatch.setattr(model.vision, "hidden", lambda images: hidden)
    first_word = model.logits(ROWS["images"], ROWS["captions"])[:, 0]
    (gradient,) = torch.autograd.grad(first_word.square().sum(), hidden)  # (B, P, D)
    assert (gradient.abs().amax(dim=2) > 0).all()


def test_the_loss_is_the_sum_of_each_tokens_surprise_given_image_and_prefix(model: Captioning):
    rows, total, n = pair_rows(3), 0.0, 0
    with torch.no_grad():
        patches = model.project_image(model.vision.hidden(to_float(rows["images"])))
        for patch, caption in zip(patches, rows["captions"], strict=True):
            words = caption[caption != PAD]
            n += len(words)
            for t, word in enumerate(words):
                seen = torch.cat([patch, model.backbone.embedding(words[:t])])  # no more than this
                logits = model.head(model.backbone.blocks(seen[None], causal=True))[0, -1]
                total -= float(logits.double().log_softmax(dim=0)[word])
    loss = model.loss(rows)
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert int(loss.count) == n == 3 + 4 + 3  # two or three words and an EOS


def test_padding_neither_counts_nor_matters(model: Captioning):
    rows = pair_rows(4)
    longer = rows | {"captions": torch.nn.functional.pad(rows["captions"], (0, 5), value=PAD)}
    one, other = model.loss(rows), model.loss(longer)
    assert_close(other.sum, one.sum)
    assert int(other.count) == int(one.count) == int((rows["captions"] != PAD).sum())


def test_an_untrained_model_is_as_surprised_as_by_a_uniform_guess(model: Captioning):
    loss = model.loss(pair_rows(64))
    expected = math.log(SHAPES.vocab_size)
    assert float(loss.sum.detach()) / int(loss.count) == pytest.approx(expected, rel=0.02)
