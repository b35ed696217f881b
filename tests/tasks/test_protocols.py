"""The protocols of measurement, on cases that can be done by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close
from toy_data import prepare
from toy_models import SHAPES, generator, make_strategy, pair_rows, ragged_tokens, with_features

from bench.data.tokenizer import EOS, PAD
from bench.models.flops import blocks_flops
from bench.tasks import probe as protocol
from bench.tasks.finetune import ContrastiveFit
from bench.tasks.meter import Meter
from bench.tasks.probe import (
    Choice,
    FeatureCache,
    choose,
    encode,
    hits,
    in_batches,
    layer_features,
    probe,
    text_features,
)
from bench.tasks.retrieval import fit_vision, recalls

D = SHAPES.model.d_model


def going() -> None:
    """Never stops."""


# Scores


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([3.0, 2.0, 1.0, 0.0], 1, 1.0),
        ([2.0, 3.0, 1.0, 0.0], 1, 0.0),
        ([2.0, 3.0, 1.0, 0.0], 2, 1.0),
        ([3.0, 3.0, 1.0, 0.0], 1, 1 / 2),  # two share the first place
        ([2.0, 3.0, 2.0, 2.0], 2, 1 / 3),  # one place for three
        ([2.0, 3.0, 2.0, 2.0], 3, 2 / 3),
        ([2.0, 3.0, 2.0, 2.0], 4, 1.0),
        ([0.0, 3.0, 3.0, 3.0], 3, 0.0),
    ],
)
def test_ties_count_their_expectation(scores: list[float], k: int, expected: float):
    assert hits(torch.tensor([scores]), torch.tensor([0]), k).mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 3), (5, 7), (10, 7), (5, 1000)])
def test_a_constant_scores_k_of_n(k: int, n: int):
    assert hits(torch.zeros(n, n), torch.arange(n), k).mean() == pytest.approx(min(1, k / n), abs=1e-12)


def test_accuracy_is_the_share_of_right_first_places():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert hits(scores, torch.tensor([0, 1, 1])).mean() == pytest.approx(2 / 3)


def test_a_score_that_is_not_a_number_is_an_error_and_no_hit():
    scores = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    with pytest.raises(FloatingPointError, match="NaN"):
        hits(scores, torch.tensor([0, 0])).mean()


def test_recalls_by_hand():
    similarity = torch.eye(20)
    similarity[:, 0] += 2  # every image likes text 0 best; every text still finds its image
    measured = recalls(similarity, torch.eye(20).bool()).scores
    assert measured[0].metric == "recall_at_5"
    found = {m.metric: m.value for m in measured}
    assert found["image_to_text_recall_at_1"] == pytest.approx(1 / 20)
    assert found["image_to_text_recall_at_5"] == 1.0
    assert found["text_to_image_recall_at_1"] == 1.0
    assert [m.chance for m in measured] == [5 / 20, 1 / 20, 1 / 20, 5 / 20, 5 / 20, 10 / 20, 10 / 20]


# Texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return prepare(tmp_path_factory.mktemp("toy")).tokenizer()


def test_texts_are_cut_closed_and_padded(tokenizer):
    ids = [tokenizer.encode(text).ids for text in ("ab", "abcdefgh xyz", "")]
    rows = encode(["ab", "abcdefgh xyz", ""], tokenizer, length=5)
    assert rows.tolist() == [
        [*ids[0], EOS, *[PAD] * (4 - len(ids[0]))],
        [*ids[1][:4], EOS],
        [EOS, PAD, PAD, PAD, PAD],
    ]
    assert encode(["ab"], tokenizer, length=50).shape == (1, len(ids[0]) + 1)


def test_a_text_that_names_a_special_token_is_text(tokenizer):
    assert encode(["[PAD][MASK]"], tokenizer, length=50)[0, :-1].min() > EOS


def test_a_long_text_is_encoded_as_its_beginning(tokenizer):
    text = "document no. 7, " * 500
    assert torch.equal(encode([text], tokenizer, length=9), encode([text[:100]], tokenizer, length=9))


@pytest.mark.parametrize("stem", with_features())
def test_features_come_back_in_the_order_of_the_texts(stem: str, monkeypatch: pytest.MonkeyPatch):
    model, tokens = make_strategy(stem), ragged_tokens([5, 2, 16, 9, 2, 11, 3])
    with torch.no_grad():
        expected = torch.cat([model.features(row[None, : int((row != PAD).sum())]) for row in tokens])
    for size in (1, 3, 256):
        monkeypatch.setattr(protocol, "EVALUATION_BATCH", size)
        assert_close(text_features(model, tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stem", with_features())
@torch.no_grad()
def test_the_last_layer_has_the_states_and_features_of_the_strategy(stem: str):
    model, tokens = make_strategy(stem), ragged_tokens([5, 2, 16])
    layers = model.layer_states(tokens)
    assert layers.shape == (SHAPES.model.n_layers + 1, *tokens.shape, D)
    kept = tokens != PAD
    assert_close(layers[-1][kept], model.states(tokens)[kept], rtol=0, atol=0)
    for pooling in ("own", "mean", "last", "first"):
        features = layer_features(model, tokens, pooling=pooling)
        assert features.shape == (3, SHAPES.model.n_layers + 1, D)
        assert_close(features[:, -1], text_features(model, tokens, pooling=pooling), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_first_layer_knows_its_own_token_alone_and_each_block_adds():
    model, tokens = make_strategy("mlm"), ragged_tokens([9])
    layers = model.layer_states(tokens)
    assert_close(layers[0], model.backbone.blocks.embedding_norm(model.backbone.embedding(tokens)))
    changed = tokens.clone()
    changed[0, 4] += 1
    moved = (model.layer_states(changed) - layers).abs().amax(dim=-1)[:, 0] > 1e-6
    assert moved[0].tolist() == [i == 4 for i in range(9)]
    assert moved[1:].all()


@torch.no_grad()
def test_attention_set_by_a_protocol_reaches_every_layer():
    model, tokens = make_strategy("mlm"), ragged_tokens([9])
    assert_close(model.layer_states(tokens, "bidirectional"), model.layer_states(tokens), rtol=0, atol=0)
    changed = tokens.clone()
    changed[0, 4] += 1
    moved = model.layer_states(changed, "causal") - model.layer_states(tokens, "causal")
    assert not moved[:, 0, :4].any()
    assert moved[1:, 0, 4:].any(dim=-1).all()


def test_reading_every_layer_costs_what_reading_the_last_does():
    model, tokens = make_strategy("mlm"), ragged_tokens([9, 4])
    costs = []
    for read in (text_features, layer_features):
        meter = Meter()
        with meter.reads(model.backbone, SHAPES.model):
            read(model, tokens)
        costs.append(meter.flops)
    assert costs[0] == costs[1] == 2 * blocks_flops(SHAPES.model, 9)


# Kept features


def test_kept_features_are_the_ones_computed_and_are_not_computed_again(monkeypatch: pytest.MonkeyPatch):
    model, other, tokens, cache = (
        make_strategy("mlm"),
        make_strategy("clm"),
        ragged_tokens([5, 3]),
        FeatureCache(),
    )
    first = text_features(model, tokens, cache=cache)
    assert_close(first, text_features(model, tokens), rtol=0, atol=0)
    monkeypatch.setattr(protocol, "_by_length", lambda *_: torch.zeros(2, D))
    assert text_features(model, tokens.clone(), cache=cache) is first
    for again in (
        text_features(model, tokens),
        text_features(other, tokens, cache=cache),
        text_features(model, tokens[:1], cache=cache),
        text_features(model, tokens, pooling="last", cache=cache),
        text_features(model, tokens, "causal", cache=cache),
        layer_features(model, tokens, cache=cache),
        text_features(model, tokens, cache=FeatureCache()),
    ):
        assert not again.any()
    assert text_features(model, tokens, cache=cache) is first


def test_features_of_weights_that_have_changed_are_computed_anew():
    model, tokens, cache = make_strategy("mlm"), ragged_tokens([5, 3]), FeatureCache()
    before = text_features(model, tokens, cache=cache)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model.features(tokens)[:, 0].sum().backward()
    optimizer.step()
    after = text_features(model, tokens, cache=cache)
    assert_close(after, text_features(model, tokens), rtol=0, atol=0)
    assert (after - before).abs().max() > 1e-3


def test_in_batches_is_the_function_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "EVALUATION_BATCH", 3)
    inputs = torch.arange(10.0)[:, None]
    assert torch.equal(in_batches(lambda x: 2 * x, inputs, torch.device("cpu")), 2 * inputs)


# Probe


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_separates_what_is_separable(n_classes: int):
    labels = torch.arange(30) % n_classes
    centres = 5 * torch.eye(n_classes, D)
    noise = [torch.randn(30, D, generator=generator(seed)) * 0.1 for seed in range(2)]
    train, test = (centres[labels] + part for part in noise)
    scores = probe(train, labels, test)
    assert scores.shape == (30, n_classes)
    assert hits(scores, labels).mean() == 1.0
    assert hits(scores, (labels + 1) % n_classes).mean() == 0.0


def test_a_probe_ties_classes_that_features_cannot_tell_apart():
    labels = torch.tensor([0, 1, 2] * 7 + [3])[torch.randperm(22, generator=generator())]
    scores = probe(torch.ones(22, D), labels, torch.ones(2, D))
    assert len(scores[0, :3].unique()) == 1
    assert (scores[:, 3] < scores[:, 0]).all()


def test_a_probe_that_saw_one_class_knows_no_other():
    assert probe(torch.randn(3, D), torch.tensor([2, 2, 2]), torch.randn(4, D)).tolist() == [[0.0]] * 4


def test_a_probe_has_a_column_for_each_class_that_it_saw():
    labels = torch.tensor([1, 4, 6] * 10)
    rows = torch.eye(7, D)[labels]
    scores = probe(rows, labels, rows)
    assert scores.shape == (30, 3)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2] * 10


def test_a_probe_does_not_see_the_scale_of_a_feature():
    labels = torch.arange(40) % 2
    train, test = torch.randn(2, 40, 6, generator=generator()) + labels[:, None]
    scale = torch.tensor([1e-3, 1, 1e3, 1, 7, 1])
    plain, scaled = probe(train, labels, test), probe(train * scale, labels, test * scale)
    assert_close(plain, scaled, rtol=1e-3, atol=1e-3)


def test_a_probe_converges_within_its_iterations(monkeypatch: pytest.MonkeyPatch):
    fitted: list[LogisticRegression] = []
    plain = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, *a, **k: fitted.append(plain(self, *a, **k)) or fitted[-1]
    )
    labels = torch.arange(400) % 8
    probe(torch.randn(400, D, generator=generator()), labels, torch.zeros(1, D))
    assert int(np.max(fitted[0].n_iter_)) < fitted[0].max_iter


# Fitted vision tower


def test_a_fitted_tower_finds_the_images_of_features_and_changes_nothing_else():
    model, rows = make_strategy("scratch"), pair_rows(24)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    features = torch.randn(24, D, generator=generator())
    images, texts = fit_vision(
        features,
        rows["images"],
        model,
        fit=ContrastiveFit(steps=120, batch_size=24, lr_at_64=5e-3, temperature=0.07),
        generator=generator(),
        keep_going=going,
    )
    with torch.no_grad():
        a, b = images(rows["images"]), texts(features)
    assert_close(a.norm(dim=1), torch.ones(24))
    assert_close(b.norm(dim=1), torch.ones(24))
    assert hits(a @ b.T, torch.arange(24)).mean() > 0.9
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_probe_takes_the_layer_and_the_penalty_that_validation_items_choose():
    labels = torch.arange(60) % 3
    told, noise = torch.eye(3)[labels], torch.randn(60, 3, generator=generator())
    layers = torch.stack([noise, told, told], dim=1)  # (N, 3, D): of equal layers the first
    parts, grid = (layers[:30], labels[:30], layers[30:]), [0.01, 0.1, 1.0]
    chosen = choose(*parts, lambda found: hits(found, labels[30:]).mean(), grid)
    assert chosen.layer == 1
    scores = {0.01: 0.5, 0.1: 0.5, 1.0: 0.9}
    given = iter([0.1, 0.5, 0.2, scores[0.01], scores[1.0]])  # three layers, then the other penalties
    assert choose(*parts, lambda found: next(given), grid) == Choice(1, 1.0)
