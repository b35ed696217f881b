"""The backbone: what it can see, how it counts positions, how it starts, and that Hugging Face agrees."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from toy_models import MODEL, SHAPES, make_strategy, ragged_tokens, text_rows

from bench.config.schema import Model
from bench.data.tokenizer import PAD
from bench.errors import ConfigError
from bench.models import flops
from bench.models.heads import PredictionHead, pool
from bench.models.transformer import INIT_STD, Rope, RotatedHeads, Transformer
from bench.models.vision import VisionTower, n_patches, to_float
from bench.objectives.to_huggingface import stock_model, stock_weights

CUT_NORMAL_STD = 0.8796  # of a standard normal cut at two standard deviations


def make_backbone(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(MODEL, SHAPES.vocab_size).eval()


def with_change_at(tokens: Tensor, position: int) -> Tensor:
    changed = tokens.clone()
    changed[:, position] = 4 + (changed[:, position] + 1) % 60
    return changed


# What it can see


@torch.no_grad()
def test_a_causal_model_cannot_see_the_future():
    backbone, tokens = make_backbone(), ragged_tokens([10, 10])
    hidden, other = backbone(tokens, causal=True), backbone(with_change_at(tokens, 6), causal=True)
    assert_close(hidden[:, :6], other[:, :6], rtol=0, atol=0)
    assert (hidden[:, 6:] - other[:, 6:]).abs().amax(dim=-1).min() > 1e-6


@torch.no_grad()
def test_a_bidirectional_model_sees_both_sides():
    backbone, tokens = make_backbone(), ragged_tokens([10, 10])
    hidden, other = backbone(tokens, causal=False), backbone(with_change_at(tokens, 6), causal=False)
    assert (hidden - other).abs().amax(dim=-1).min() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_the_right_changes_no_real_position(causal: bool):
    backbone, tokens = make_backbone(), ragged_tokens([10, 10])
    padded = F.pad(tokens, (0, 4), value=PAD)
    hidden = backbone(padded, padded != PAD, causal=causal)[:, :10]
    assert_close(hidden, backbone(tokens, causal=causal), rtol=0, atol=1e-6)
    if not causal:
        assert (backbone(padded, causal=False)[:, :10] - hidden).abs().max() > 1e-5  # the mask does it


HOW = {
    "causal": {"causal": True},
    "both ways": {"causal": False},
    "a prefix": {"causal": False, "prefix": torch.tensor([3, 1, 9])},
}


@pytest.mark.parametrize("how", HOW)
def test_states_at_some_places_and_their_gradients_are_those_of_all(how: str):
    backbone, tokens = make_backbone().double(), ragged_tokens([10, 6, 10])
    attended = None if how == "a prefix" else tokens != PAD
    at = torch.tensor([0, 4, 9, 15, 22])  # of 3 rows of 10, none at padding
    found = []
    for places in (at, None):
        hidden = backbone(tokens, attended, at=places, **HOW[how])
        wanted = hidden if places is not None else hidden.flatten(0, 1)[at]
        weights = torch.arange(wanted.numel(), dtype=torch.float64).sin().view_as(wanted)
        gradients = torch.autograd.grad((wanted * weights).sum(), list(backbone.parameters()))
        found.append((wanted, *gradients))
    assert found[0][0].shape == (5, MODEL.d_model)
    for some, whole in zip(*found, strict=True):
        assert_close(some, whole, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_order_matters():
    backbone, tokens = make_backbone(), ragged_tokens([10])
    flipped = backbone(tokens.flip(1), causal=False).flip(1)
    assert (backbone(tokens, causal=False) - flipped).abs().max() > 1e-5


# Positions


def test_attention_scores_depend_only_on_the_distance():
    length, qkv = 12, torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = rotated(qkv.expand(1, length, 3, 16))
    scores = q @ k.mT
    for distance in range(1 - length, length):
        diagonal = scores[0, 0].diagonal(distance)
        assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert scores[0, 0, 0].std() > 1e-2
    assert_close(scores[0, 0, 3, 3], qkv[0] @ qkv[1], rtol=0, atol=1e-5)
    assert_close(v[0, 0], qkv[2].expand(length, 16), rtol=0, atol=0)


def test_a_rotation_is_by_the_angle_of_its_frequency():
    q, k, _ = rotated(torch.tensor([1.0, 0.0]).expand(1, 3, 6, 2))  # one frequency: one radian a position
    expected = torch.tensor([[math.cos(p), math.sin(p)] for p in range(3)]).expand(2, 3, 2)
    assert_close(q[0], expected)
    assert_close(k[0], expected)


def rotated(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1, T, 3 H, D/H) -> three (1, H, T, D/H)."""
    _, length, n_heads, head_dim = qkv.shape
    return RotatedHeads.apply(qkv, *Rope(head_dim, n_heads // 3).tables(length))


# Pooling


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])
    attended = torch.tensor([[True, True, False], [True, True, True]])
    for how, expected in (("mean", [2.0, 5.0]), ("last", [3.0, 9.0]), ("first", [1.0, 2.0])):
        assert pool(hidden, attended, how).flatten().tolist() == expected


@pytest.mark.parametrize("how", ["mean", "last", "first"])
def test_pooling_never_looks_at_padding(how: str):
    hidden = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    assert torch.isfinite(pool(hidden, torch.tensor([[True, True, False]]), how)).all()


# How it starts


def test_the_seed_decides_the_weights():
    first, again, other = (make_backbone(seed).state_dict() for seed in (0, 0, 1))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_weights_start_as_cut_normals_scaled_where_they_write_to_the_residual():
    torch.manual_seed(0)
    wide = Model(d_model=128, n_layers=4, n_heads=4, d_ff=256, patch_size=4)
    for module in (Transformer(wide, 512), VisionTower(wide, 16)):
        for name, weight in module.state_dict().items():
            if weight.ndim == 1:
                assert torch.equal(weight, torch.ones_like(weight)), name
                continue
            std = INIT_STD / math.sqrt(2 * 4) if name.endswith("Wo.weight") else INIT_STD
            assert float(weight.std()) == pytest.approx(CUT_NORMAL_STD * std, rel=0.15), name
            assert weight.numel() < 5000 or float(weight.std()) == pytest.approx(
                CUT_NORMAL_STD * std, rel=0.03
            )
            assert float(weight.abs().max()) <= 2 * std * (1 + 1e-6) or name == "position", name


def test_the_head_shares_its_matrix_with_the_embedding():
    backbone = make_backbone()
    head = PredictionHead(backbone.embedding)
    assert head.decoder.weight is backbone.embedding.weight
    with torch.no_grad():
        backbone.embedding.weight.zero_()
    assert not head(torch.randn(2, MODEL.d_model)).any()


def test_parameters_are_those_that_the_budget_counts():
    backbone = make_backbone()
    head = PredictionHead(backbone.embedding)
    tower = VisionTower(MODEL, 8)
    counted = {id(p): p.numel() for p in [*backbone.parameters(), *head.parameters()]}
    expected = flops.text_parameters(MODEL, 64) + 32**2 + 32 + 64  # the head: a matrix, a norm, a bias
    assert sum(counted.values()) == expected
    assert sum(
        p.numel() for p in tower.parameters()
    ) == 3 * MODEL.patch_size**2 * 32 + 4 * 32 + flops.block_parameters(MODEL)
    # By hand: embedding 64 x 32; two blocks of 4 x 32^2 + 3 x 32 x 48; five norms of 32.
    assert flops.text_parameters(MODEL, 64) == 2048 + 2 * (4096 + 4608) + 5 * 32


# Vision


@torch.no_grad()
def test_the_vision_tower_knows_where_a_patch_is():
    torch.manual_seed(0)
    tower = VisionTower(MODEL, 8).eval()
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    moved = images.roll(4, dims=3)  # the same patches in other places
    assert tower(images).shape == (1, MODEL.d_model)
    assert (tower(images) - tower(moved)).abs().max() > 1e-5
    assert n_patches(MODEL, 8) == 4


def test_pixels_become_minus_one_to_one_and_channels_first():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 2, 2, 3)
    assert_close(to_float(images)[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_a_patch_size_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"model\.patch_size=4.*image_size=10"):
        VisionTower(MODEL, 10)


# Hugging Face


@torch.no_grad()
@pytest.mark.parametrize("stem", ["clm", "mlm"], ids=["decoder", "encoder"])
def test_logits_are_those_of_hugging_faces_modernbert(stem: str):
    ours = make_strategy(stem)
    for parameter in ours.parameters():  # far from the start, so that a difference shows
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = ragged_tokens([12, 7])
    attended = tokens != PAD
    logits = ours.head(ours.backbone(tokens, attended, causal=stem == "clm"))
    expected = stock_model(ours)(input_ids=tokens, attention_mask=attended.long()).logits
    assert expected[attended].std() > 0.1
    assert_close(logits[attended], expected[attended], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("stem", ["clm", "mlm"], ids=["decoder", "encoder"])
def test_every_layer_is_that_of_hugging_faces_modernbert(stem: str):
    ours, tokens = make_strategy(stem), ragged_tokens([12, 7])
    attended = tokens != PAD
    layers = ours.layer_states(tokens)
    expected = stock_model(ours)(
        input_ids=tokens, attention_mask=attended.long(), output_hidden_states=True
    ).hidden_states
    assert len(expected) == len(layers) == MODEL.n_layers + 1
    for found, wanted in zip(layers, expected, strict=True):
        assert_close(found[attended], wanted[attended], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stem", ["clm", "mlm"], ids=["decoder", "encoder"])
def test_loss_and_gradients_are_those_of_hugging_faces_modernbert(stem: str):
    ours, rows = make_strategy(stem), text_rows(4)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theirs = stock_model(ours)
    batch = ours.corrupt(rows, torch.Generator().manual_seed(0))
    labels = rows["tokens"]  # shifted by transformers
    if stem == "mlm":
        labels = torch.full_like(labels, -100).scatter(1, batch["positions"], batch["targets"])
    expected = theirs(input_ids=batch["tokens"], labels=labels).loss
    expected.backward()
    loss = ours.loss(batch)
    mean = loss.sum / loss.count
    mean.backward()
    assert_close(mean, expected, rtol=1e-5, atol=0)
    for parameter in ours.parameters():
        parameter.data = parameter.grad  # renamed as weights are
    gradients = stock_weights(ours)
    compared = {name: p.grad for name, p in theirs.named_parameters()}
    assert compared.keys() <= gradients.keys()
    for name, gradient in compared.items():
        assert gradient.abs().max() > 0, name
        assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
