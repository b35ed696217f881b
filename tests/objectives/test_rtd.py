"""Replaced token detection, against the paper's formulas written down token by token."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from toy_models import MODEL, OPTIM, SHAPES, generator, make_strategy, strategy_node, text_rows

from bench.data.batches import Batch
from bench.data.tokenizer import EOS, MASK
from bench.errors import ConfigError
from bench.models.cross_entropy import IGNORED
from bench.objectives.base import Core, Objective
from bench.objectives.rtd import ReplacedTokenDetection, narrow, sample
from bench.objectives.to_huggingface import stock_model


def make_rtd(**changes) -> ReplacedTokenDetection:
    model = make_strategy("rtd", **changes)
    assert isinstance(model, ReplacedTokenDetection)
    return model


def logits_at(model: ReplacedTokenDetection, batch: Batch) -> Tensor:
    return model.generator(model.backbone.embedding(batch["tokens"]), batch["positions"])


def gradients(model: Objective, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


# Loss


def by_the_paper(model: ReplacedTokenDetection, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """L_MLM, L_Disc (section 2), each a sum over its tokens, and the number of targets: row by row."""
    mlm, disc, n_targets = torch.zeros(()), torch.zeros(()), 0
    for x, x_masked, m, u, hidden in zip(
        *(batch[key] for key in ("originals", "tokens", "positions", "uniforms", "targets")), strict=True
    ):
        logits = model.generator(model.backbone.embedding(x_masked)[None], m[None])[0]
        x_corrupt = x.clone()
        for t, uniform, p_g, target in zip(m, u, logits.softmax(dim=-1), hidden, strict=True):
            if int(target) == IGNORED:
                continue
            mlm, n_targets = mlm - p_g[x[t]].log(), n_targets + 1
            below, token = float(p_g[0].detach()), 0
            while below <= float(uniform):  # the first id whose cumulated probability passes it
                token += 1
                below += float(p_g[token].detach())
            x_corrupt[t] = token
        for t, d in enumerate(model.head(model.backbone(x_corrupt[None], causal=False))[0].sigmoid()):
            disc = disc - (d.log() if x_corrupt[t] != x[t] else (1 - d).log())
    return mlm, disc, n_targets


def test_the_loss_is_the_papers_in_value_and_gradient():
    model = make_rtd(mask_rate=0.4, discriminator_weight=50.0)
    batch = model.corrupt(text_rows(6), generator())
    mlm, disc, n_targets = by_the_paper(model, batch)
    loss = model.loss(batch)
    assert_close(loss.sum, torch.stack([mlm, 50 * disc]))
    assert torch.as_tensor(loss.count).tolist() == [n_targets, 6 * SHAPES.sequence_length]
    expected = gradients(model, mlm / n_targets + 50 * disc / (6 * SHAPES.sequence_length))
    for name, gradient in gradients(model, (loss.sum / loss.count).sum()).items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_the_discriminators_gradient_does_not_reach_the_generator_nor_the_reverse():
    model = make_rtd()
    fills, judgements = model.loss(model.corrupt(text_rows(8), generator())).sum
    from_fills, from_judgements = gradients(model, fills), gradients(model, judgements)
    trained_by = {
        name: (bool(from_fills[name].any()), bool(from_judgements[name].any())) for name in from_fills
    }
    for name, by in trained_by.items():
        shared = name == "backbone.embedding.weight"
        assert by == (shared or name.startswith("generator."), shared or not name.startswith("generator."))


def test_an_untrained_discriminator_is_as_surprised_as_by_a_coin():
    model = make_rtd(discriminator_weight=1.0)
    loss = model.loss(model.corrupt(text_rows(64), generator()))
    fill, judgement = (loss.sum / loss.count).tolist()
    assert fill == pytest.approx(math.log(SHAPES.vocab_size), rel=0.02)
    assert judgement == pytest.approx(math.log(2), rel=0.05)


# Corruption


def test_hidden_positions_are_an_exact_share_and_never_special():
    model, rows = make_rtd(mask_rate=1.0), text_rows(8)
    batch = model.corrupt(rows, generator())
    special = rows["tokens"] == EOS
    assert special.any()
    assert torch.equal(batch["tokens"] == MASK, ~special)
    assert torch.equal(batch["targets"] == IGNORED, special)  # all positions, in order
    batch = make_rtd(mask_rate=0.25).corrupt(rows, generator())
    assert ((batch["tokens"] == MASK).sum(dim=1) == 4).all()
    assert torch.equal(batch["originals"], rows["tokens"])
    assert torch.equal(batch["targets"], rows["tokens"].gather(1, batch["positions"]))


def test_only_hidden_positions_are_filled_and_special_tokens_stay():
    model = make_rtd(mask_rate=1.0)
    rows = text_rows(8)
    batch = model.corrupt(rows, generator())
    always_9 = F.one_hot(torch.full(batch["positions"].shape, 9), SHAPES.vocab_size) * 100.0
    filled = model.fill(batch, always_9)
    assert torch.equal(filled, torch.where(rows["tokens"] == EOS, EOS, 9))
    batch = make_rtd(mask_rate=0.25).corrupt(rows, generator())
    filled = model.fill(batch, always_9[:, :4])
    hidden = batch["tokens"] == MASK
    assert torch.equal(filled, torch.where(hidden, 9, rows["tokens"]))


def test_a_fill_that_hits_the_original_counts_as_original(monkeypatch: pytest.MonkeyPatch):
    model = make_rtd(discriminator_weight=1.0)
    rows = {"tokens": torch.full((4, SHAPES.sequence_length), 9)}
    batch = model.corrupt(rows, generator())
    seen = []
    monkeypatch.setattr(
        F,
        "binary_cross_entropy_with_logits",
        lambda judged, labels, reduction: seen.append(labels) or judged.sum(),
    )
    for token in (9, 10):
        with torch.no_grad():
            model.generator.decoder.bias.zero_()[token] = 100.0  # it always samples this
        model.loss(batch)
    assert not seen[0].any()
    assert torch.equal(seen[1].bool(), batch["tokens"] == MASK)


# Sampling


def test_samples_follow_the_generators_distribution():
    n, probabilities = 40_000, torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms = torch.rand(n, generator=generator())
    drawn = torch.bincount(sample(probabilities.log().expand(n, -1), uniforms), minlength=6)
    possible = probabilities > 0
    assert (drawn[~possible] == 0).all()
    expected = n * probabilities[possible]
    chi_square = float(((drawn[possible] - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 99.9 % of three degrees of freedom


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.25, 2), (0.9999999, 2)])
def test_a_uniform_draw_chooses_the_id_whose_interval_holds_it(uniform: float, token: int):
    logits = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).log()
    assert sample(logits, torch.tensor([uniform])).tolist() == [token]


# Sizes


@pytest.mark.parametrize(
    ("width", "heads", "share", "expected"),
    [
        (256, 4, 0.25, (64, 1)),  # ELECTRA-small: heads stay 64 wide
        (768, 12, 1 / 3, (256, 4)),  # ELECTRA-base
        (128, 4, 0.5, (64, 2)),
        (32, 2, 0.25, (8, 1)),  # narrower than one head
        (96, 3, 0.25, (24, 1)),
        (96, 3, 0.4, (38, 1)),  # no multiple of 32
        (32, 2, 1.0, (32, 2)),
        (4, 1, 0.1, (2, 1)),
    ],
)
def test_the_generators_heads_are_as_wide_as_the_models_where_that_fits(width, heads, share, expected):
    small = narrow(replace(MODEL, d_model=width, n_heads=heads, d_ff=3 * width), share)
    assert (small.d_model, small.n_heads) == expected
    assert small.d_model % (2 * small.n_heads) == 0
    assert small.d_ff == max(1, round(share * 3 * width))
    assert small.n_layers == MODEL.n_layers


def test_the_embedding_is_one_for_both_and_read_and_written():
    model = make_rtd()
    assert model.generator.decoder.weight is model.backbone.embedding.weight
    n_shared = sum(p is model.backbone.embedding.weight for p in model.parameters())
    assert n_shared == 1


def test_every_position_is_supervised_once():
    cost = make_rtd().step_cost(OPTIM.tokens_per_step)
    assert (cost.rows, cost.forward_tokens, cost.predicted_tokens) == (8, 128, 128)


# In company


@torch.no_grad()
def test_the_discriminator_is_hugging_faces_token_classifier():
    model = make_rtd()
    for parameter in model.parameters():  # far from the start, so that a difference shows
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    tokens = text_rows(4)["tokens"]
    expected = stock_model(model)(input_ids=tokens).logits  # (B, T, 1)
    assert expected.std() > 0.1
    assert_close(model.head(model.backbone(tokens, causal=False)), expected[..., 0], rtol=0, atol=1e-4)


def test_a_mixture_takes_it_with_its_own_head():
    parts = {name: strategy_node(name) for name in ("mlm", "rtd")}
    model = make_strategy("mixture", parts=parts, shares={"mlm": 0.5, "rtd": 0.5})
    assert model.has_idle_weights
    rtd = model.part("rtd")
    assert rtd.backbone is model.backbone
    assert rtd.head is not model.head
    loss = model.loss(model.corrupt_as("rtd", text_rows(4), generator()))
    (loss.sum / loss.count).sum().backward()
    assert model.backbone.embedding.weight.grad.any()


def test_a_checkpoint_that_keeps_its_embedding_is_refused():
    core = make_strategy("mlm")
    core.backbone.embedding = nn.Identity()
    core.backbone.embedding.num_embeddings = SHAPES.vocab_size
    options = make_rtd().options
    with pytest.raises(ConfigError, match=r"model\.name keeps.*use a model preset"):
        ReplacedTokenDetection(options, shapes=SHAPES, optimizer=OPTIM, core=Core(core.backbone, core.head))


@pytest.mark.parametrize(
    ("key", "value"), [("mask_rate", 0.0), ("generator_share", 1.5), ("discriminator_weight", 0.0)]
)
def test_options_that_make_no_sense_are_refused(key: str, value: float):
    with pytest.raises(ConfigError, match=rf"strategy\.{key}={value}"):
        make_rtd(**{key: value})
