"""Prefix LM and masked next-token prediction: what each position sees, and the loss written down plainly."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from toy_models import OPTIM, SHAPES, generator, make_strategy, text_rows

from bench.data.tokenizer import EOS, MASK, PAD
from bench.errors import ConfigError
from bench.objectives.base import Objective

LENGTH = SHAPES.sequence_length


def gradients(model: Objective, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same_training(model: Objective, loss: Tensor, expected: Tensor) -> None:
    assert_close(loss, expected)
    reference = gradients(model, expected)
    for name, gradient in gradients(model, loss).items():
        assert_close(gradient, reference[name], rtol=1e-3, atol=1e-5)


def make_far(stem: str) -> Objective:
    """Away from the start, so that every position tells in every other that sees it."""
    model = make_strategy(stem)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return model


# Prefix LM: what is seen


@torch.no_grad()
def test_a_prefix_sees_itself_in_full_and_what_follows_is_causal():
    model, prefix = make_far("prefix_lm"), 6
    tokens = text_rows(1)["tokens"]
    plain = model.backbone(tokens, causal=False, prefix=torch.tensor([prefix]))[0]
    for changed in range(LENGTH):
        other = tokens.clone()
        other[0, changed] = 4 + (other[0, changed] - 3) % 60
        moved = (model.backbone(other, causal=False, prefix=torch.tensor([prefix]))[0] - plain).abs()
        told = (moved.amax(dim=1) > 1e-5).tolist()
        seers = range(LENGTH) if changed < prefix else range(changed, LENGTH)
        assert told == [position in seers for position in range(LENGTH)]


def test_rows_have_prefixes_of_their_own():
    model = make_far("prefix_lm")
    tokens, prefix = text_rows(4)["tokens"], torch.tensor([1, 5, 9, 15])
    together = model.backbone(tokens, causal=False, prefix=prefix)
    for row, length, expected in zip(tokens, prefix, together, strict=True):
        alone = model.backbone(row[None], causal=False, prefix=length[None])[0]
        assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_every_prefix_length_is_equally_likely_and_half_of_a_step_is_targets():
    model, n = make_strategy("prefix_lm"), 6000
    prefix = model.corrupt(text_rows(n), generator())["prefix"]
    counts = torch.bincount(prefix, minlength=LENGTH)
    assert int(counts[0]) == 0
    assert len(counts) == LENGTH  # at most T - 1: something is left to predict
    share = 1 / (LENGTH - 1)
    # Rows come in pairs: n / 2 draws, each of which counts twice where p and T - p are the same.
    tolerance = 5 * math.sqrt(2 * share * (1 - share) / n)
    assert_close(counts[1:] / n, torch.full((LENGTH - 1,), share), rtol=0, atol=tolerance)
    assert int((LENGTH - prefix).sum()) == n * LENGTH // 2
    assert model.step_cost(OPTIM.tokens_per_step).predicted_tokens == 8 * LENGTH / 2


def test_an_odd_number_of_rows_is_no_trouble():
    batch = make_strategy("prefix_lm").corrupt(text_rows(3), generator())
    assert batch["prefix"].shape == (3,)


# Prefix LM: loss


def test_the_prefix_loss_is_the_surprise_of_what_follows_token_by_token():
    model = make_strategy("prefix_lm")
    batch = model.corrupt(text_rows(4), generator())
    total, n_targets = torch.zeros(()), 0
    for text, prefix in zip(batch["tokens"], batch["prefix"], strict=True):
        for t in range(int(prefix), LENGTH):
            shown = text[None, :t]  # the model is shown no more than this
            logits = model.head(model.backbone(shown, causal=False, prefix=prefix[None]))[0, -1]
            total = total - logits.log_softmax(dim=0)[text[t]]
            n_targets += 1
    loss = model.loss(batch)
    assert loss.count == n_targets
    assert_same_training(model, loss.sum, total)


def test_a_prefix_of_one_makes_it_a_causal_model():
    model = make_strategy("prefix_lm")
    tokens = text_rows(4)["tokens"]
    logits = model.head(model.backbone(tokens, causal=True))[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    loss = model.loss({"tokens": tokens, "prefix": torch.ones(4, dtype=torch.long)})
    assert_same_training(model, loss.sum, expected.sum())
    assert_close(model.nll(tokens, "exact", 1, generator()), expected.sum(dim=1))


@torch.no_grad()
def test_its_exact_nll_is_the_sum_of_log_probabilities_and_they_sum_to_one():
    model = make_far("prefix_lm")
    text = text_rows(1)["tokens"][0, :5]
    total = 0.0
    for t in range(1, 5):
        shown, one = text[None, :t], torch.ones(1, dtype=torch.long)
        logits = model.head(model.backbone(shown, causal=False, prefix=one))[0, -1]
        total -= float(logits.log_softmax(dim=0)[text[t]])
    assert float(model.nll(text[None], "exact", 1, generator())) == pytest.approx(total, rel=1e-5)
    second = torch.tensor([token for token in range(SHAPES.vocab_size) if token != PAD])
    pairs = torch.stack([text[0].expand(len(second)), second], dim=1)
    of_padding = float(model.head(model.backbone(text[None, :1], causal=True))[0, 0].softmax(dim=0)[PAD])
    assert float(model.nll(pairs, "exact", 1, generator()).neg().exp().sum()) + of_padding == pytest.approx(1)


# Masked next-token prediction


def test_mntp_predicts_each_hidden_token_from_the_position_before_it():
    model = make_strategy("mntp", mask_rate=0.4)
    batch = model.corrupt(text_rows(6), generator())
    logits = model.head(model.backbone(batch["tokens"], causal=False))  # (B, T, V)
    total = torch.zeros(())
    for row, positions, targets in zip(logits, batch["positions"], batch["targets"], strict=True):
        for t, target in zip(positions, targets, strict=True):
            total = total - row[t - 1].log_softmax(dim=0)[target]
    loss = model.loss(batch)
    assert loss.count == 6 * 6  # round(0.4 x 16)
    assert_same_training(model, loss.sum, total)


@torch.no_grad()
def test_the_position_before_sees_both_sides_but_not_what_is_hidden():
    model = make_far("mntp")
    rows = text_rows(1)
    batch = model.corrupt(rows, generator(1))
    plain = model.loss(batch).sum
    for t in range(LENGTH):
        other = batch["tokens"].clone()
        other[0, t] = 4 + (other[0, t] - 3) % 60
        assert abs(model.loss(batch | {"tokens": other}).sum - plain) > 1e-4
    hidden = batch["positions"][0]
    changed = rows["tokens"].clone()
    changed[0, hidden] = 4 + (changed[0, hidden] - 3) % 60
    assert torch.equal(model.corrupt({"tokens": changed}, generator(1))["tokens"], batch["tokens"])


@pytest.mark.parametrize(("rate", "n"), [(0.3, 5), (0.001, 1), (1.0, 15)])
def test_mntp_hides_an_exact_share_and_never_the_first(rate: float, n: int):
    rows = text_rows(200)
    batch = make_strategy("mntp", mask_rate=rate).corrupt(rows, generator())
    hidden = batch["tokens"] == MASK
    assert (hidden.sum(dim=1) == n).all()
    assert not hidden[:, 0].any()
    assert torch.equal(hidden.nonzero()[:, 1].view(200, n), batch["positions"])
    assert torch.equal(rows["tokens"].gather(1, batch["positions"]), batch["targets"])
    assert torch.equal(batch["tokens"][~hidden], rows["tokens"][~hidden])


def test_mntp_chooses_every_position_but_the_first_equally_often_and_eos_too():
    batch = make_strategy("mntp", mask_rate=0.25).corrupt(text_rows(4000), generator())
    share, expected = torch.bincount(batch["positions"].flatten(), minlength=LENGTH) / 4000, 4 / 15
    tolerance = 5 * math.sqrt(expected * (1 - expected) / 4000)
    assert_close(share[1:], torch.full((LENGTH - 1,), expected), rtol=0, atol=tolerance)
    assert (batch["targets"] == EOS).any()


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_mask_rate_is_a_share(rate: float):
    with pytest.raises(ConfigError, match=rf"strategy\.mask_rate={rate}"):
        make_strategy("mntp", mask_rate=rate)
