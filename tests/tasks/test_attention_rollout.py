"""Attention rollout by hand, and weights that are those by which the layers mix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close
from toy_checkpoints import MAKERS, write_checkpoint
from toy_data import ToyPairs, assert_one_line, prepare, toy_pairs
from toy_models import OPTIM, SHAPES, make_strategy, ragged_tokens, strategy_node

from bench.config.build import build
from bench.data.pairs import prepare_pairs
from bench.data.pretrained_files import open_checkpoint
from bench.data.tokenizer import PAD, load_tokenizer
from bench.errors import ConfigError, InapplicableError
from bench.models.from_huggingface import load
from bench.models.transformer import Attention, Transformer
from bench.objectives.base import Core, Objective, Shapes
from bench.tasks.attention_rollout import BEFORE, END, AttentionRollout, rollout
from bench.tasks.base import Outcome, Setting
from bench.tasks.probe import encode

TEXT = "document no. 1"
LENGTH = 24


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("rollout")
    text = prepare(folder)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=16,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


def evaluate(model: Objective, setting: Setting, text: str = TEXT) -> Outcome:
    return AttentionRollout(AttentionRollout.Options(text=text)).evaluate(model, setting)


def strategy(stem: str) -> Objective:
    return make_strategy(stem, shapes=replace(SHAPES, vocab_size=300))


# The rollout


def test_two_layers_by_hand():
    first, second = torch.tensor([[1.0, 0], [0.5, 0.5]]), torch.tensor([[0.0, 1], [1, 0]])
    # with half of the identity: [[1, 0], [1/4, 3/4]], then [[1/2, 1/2], [1/2, 1/2]]
    assert_close(rollout([first, second]), torch.tensor([[0.625, 0.375], [0.625, 0.375]]))
    assert_close(rollout([second, first]), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    assert_close(rollout([second]), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))


def test_uniform_attention_leaves_half_where_it_was_and_none_but_to_itself_all():
    assert_close(rollout([torch.full((4, 4), 0.25)]), 0.5 * torch.eye(4) + 0.125)
    assert_close(rollout([torch.eye(4)] * 3), torch.eye(4))


# The layers' weights


@torch.no_grad()
@pytest.mark.parametrize("how", ["bidirectional", "causal", "padded", "prefix"])
def test_weights_mix_values_to_what_the_layer_gives(how: str):
    torch.manual_seed(0)
    backbone = Transformer(SHAPES.model, SHAPES.vocab_size).eval()
    for weight in backbone.parameters():
        weight.mul_(8)  # far from uniform attention
    tokens = ragged_tokens([10, 7] if how == "padded" else [10, 10])
    seen: list[tuple[tuple[Any, ...], Tensor]] = []
    layers = [module for module in backbone.modules() if isinstance(module, Attention)]
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    prefix = torch.tensor([3, 6]) if how == "prefix" else None
    with backbone.recorded_attention() as recorded:
        backbone(tokens, tokens != PAD, causal=how == "causal", prefix=prefix)
    assert len(recorded) == len(seen) == 2
    for layer, weights, (inputs, output) in zip(layers, recorded, seen, strict=True):
        values = layer.Wqkv(inputs[0]).chunk(3, dim=-1)[2].unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
        mixed = layer.Wo((weights @ values).transpose(1, 2).flatten(2))
        assert_close(mixed, output, atol=1e-5, rtol=1e-4)
        assert weights.std() > 0.02
        assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        future = weights.triu(1)
        if how == "causal":
            assert not future.any()
        if how == "padded":
            assert not weights[1, :, :, 7:].any()
        if how == "prefix":
            assert not future[0, :, :, 3:].any()
            assert future[0, :, :3, :3].any()


@torch.no_grad()
def test_recording_ends_with_its_block():
    backbone, tokens = Transformer(SHAPES.model, SHAPES.vocab_size), ragged_tokens([5])
    with backbone.recorded_attention() as recorded:
        backbone(tokens, causal=True)
    backbone(tokens, causal=True)
    assert len(recorded) == SHAPES.model.n_layers


# The task


@pytest.mark.parametrize("stem", ["clm", "mlm", "prefix_lm", "span_corruption", "clip"])
def test_rows_sum_to_one_and_a_causal_models_draw_on_nothing_later(stem: str, setting: Setting):
    outcome = evaluate(strategy(stem), setting)
    mixed = outcome.items["rollout"]
    n = len(outcome.samples)
    assert mixed.shape == (n, n)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    assert (np.triu(mixed, 1).max() == 0) == (stem == "clm")


def test_scores_are_means_over_tokens(setting: Setting):
    outcome = evaluate(strategy("mlm"), setting)
    mixed = outcome.items["rollout"]
    entropy = [-sum(p * np.log2(p) for p in row if p) for row in mixed]
    assert {m.metric: m.value for m in outcome.scores} == pytest.approx(
        {
            "entropy_bits": np.mean(entropy),
            "share_from_first": mixed[:, 0].mean(),
            "share_from_self": np.trace(mixed) / len(mixed),
        }
    )
    assert {(m.chance, m.n_items) for m in outcome.scores} == {(None, len(mixed))}
    names = [row["token"] for row in outcome.samples]
    assert ("".join(names[:-1]), names[-1]) == (TEXT, END)
    assert not outcome.counts


def test_what_is_left_out_of_a_long_text_is_counted(setting: Setting):
    whole = evaluate(strategy("mlm"), replace(setting, sequence_length=100), TEXT * 9)
    short = evaluate(strategy("mlm"), setting, TEXT * 9)
    assert len(short.samples) == 16
    assert short.counts == {"token past sequence_length": len(whole.samples) - 16}


def test_no_text_names_its_key_and_no_backbone_does_not_apply(setting: Setting):
    with pytest.raises(ConfigError) as caught:
        AttentionRollout.Options(text=" ")
    assert_one_line(caught.value, "task.*.text")
    model = strategy("mlm")
    model.backbone = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(InapplicableError, match="no attention"):
        evaluate(model, setting)


# Checkpoints of Hugging Face


def checkpoint_setting(kind: str, folder: Path, setting: Setting) -> tuple[Objective, Setting]:
    checkpoint = open_checkpoint(str(write_checkpoint(kind, folder)))
    loaded = load(checkpoint, patch_size=8, length=LENGTH, pretrained=True, predicts=None)
    shapes = Shapes(loaded.model, checkpoint.vocab_size, LENGTH, SHAPES.caption_length, SHAPES.image_size)
    core = Core(loaded.backbone, loaded.head)  # type: ignore[arg-type]
    model = build(
        strategy_node("reference"), Objective, "strategy", shapes=shapes, optimizer=OPTIM, core=core
    )  # type: ignore[type-abstract]
    (folder / "ours.json").write_text(checkpoint.tokenizer)
    return model, replace(setting, tokenizer=load_tokenizer(folder / "ours.json"), sequence_length=LENGTH)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checkpoint_shows_its_attention_and_stays_as_it_was(kind: str, setting: Setting, tmp_path: Path):
    model, theirs = checkpoint_setting(kind, tmp_path, setting)
    backbone: Any = model.backbone
    text = "the lazy dog judge my vow"
    before = backbone.text.config._attn_implementation
    outcome = evaluate(model, theirs, text)
    assert backbone.text.config._attn_implementation == before
    assert not backbone.text._forward_hooks
    assert not backbone.text._forward_pre_hooks
    mixed, names = outcome.items["rollout"], [row["token"] for row in outcome.samples]
    assert mixed.shape == (len(names), len(names))
    assert names.count(BEFORE) == backbone.n_before
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    assert (np.triu(mixed, 1).max() == 0) == bool(backbone.is_causal)
    ids, mask = backbone.read(encode([text], theirs.tokenizer, LENGTH), None)
    whole: Any = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    if isinstance(whole, transformers.CLIPModel):
        whole = whole.text_model
    reader = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    with torch.no_grad():
        shown = reader(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    expected = rollout([weights[0].mean(dim=0) for weights in shown])
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
