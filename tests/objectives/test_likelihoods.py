"""The likelihood of a text, or of its end, by each strategy, against sums written down token by token."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from toy_models import OPTIM, SHAPES, generator, make_strategy, ragged_tokens, stems, text_rows

from bench.data.tokenizer import MASK, PAD
from bench.objectives.base import Core, Likelihood, Objective
from bench.objectives.reference import Reference

TOKENS = text_rows(5)["tokens"]
LENGTHS = [9, 16, 2, 12, 7]
RAGGED = ragged_tokens(LENGTHS)


def make_far(stem: str) -> Objective:
    """Away from the start, so that no two tokens are equally likely."""
    model = decoder_reference() if stem == "reference" else make_strategy(stem)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return model


def decoder_reference() -> Objective:
    """In place of a checkpoint that reads from left to right."""
    trained = make_strategy("clm")
    trained.backbone.is_causal = trained.backbone.is_lossless = True
    options = Reference.Options(modality="none", attention="own", pooling="mean")
    return Reference(
        options, shapes=SHAPES, optimizer=OPTIM, core=Core(trained.backbone, trained.head)
    ).eval()


def scored_ends(lengths: list[int], n_given: list[int]) -> Tensor:
    """(B, T) bool: what follows the first tokens, and padding, which has no say."""
    return torch.arange(max(lengths)) >= torch.tensor(n_given)[:, None]


def nats(model: Objective, kind: Likelihood, tokens: Tensor, scored: Tensor | None = None, **changes: Any):
    asked = {"samples": 3, "generator": generator(), "scored": scored} | changes
    return model.token_nll(tokens, kind, **asked)


CAN = [
    (stem, kind)
    for stem in stems("strategy")
    for kind in sorted((decoder_reference() if stem == "reference" else make_strategy(stem)).likelihoods)
]
every_likelihood = pytest.mark.parametrize(("stem", "kind"), CAN)


@torch.no_grad()
def by_the_prefix(model: Objective, text: Tensor, t: int) -> float:
    logits = model.head(model.backbone(text[None, :t], causal=True))[0, -1]
    return -float(logits.log_softmax(dim=0)[text[t]])


@torch.no_grad()
def by_all_others(model: Objective, text: Tensor, t: int) -> float:
    shown = text.clone()
    shown[t] = MASK
    logits = model.head(model.backbone(shown[None], causal=False))[0, t - model.mask_shift]
    return -float(logits.log_softmax(dim=0)[text[t]])


PLAIN = [
    ("clm", "exact", by_the_prefix),
    ("reference", "exact", by_the_prefix),
    ("mlm", "pseudo", by_all_others),
    ("mntp", "pseudo", by_all_others),
]


def test_the_strategies_that_can_are_known():
    assert {stem for stem, _ in CAN} == {
        *("clm", "prefix_lm", "mlm", "mntp", "masked_diffusion", "reference"),
        *("mixture", "gpt_bert", "clm_then_mlm"),
    }
    assert ("gpt_bert", "pseudo") in CAN
    assert ("gpt_bert", "exact") in CAN


@pytest.mark.parametrize(("stem", "kind", "surprise"), PLAIN)
def test_nll_is_the_sum_of_each_tokens_surprise_after_the_first(stem: str, kind, surprise):
    model = make_far(stem)
    assert model.likelihoods == {kind}
    expected = [sum(surprise(model, text, t) for t in range(1, len(text))) for text in TOKENS]
    assert max(expected) - min(expected) > 1
    found = model.nll(TOKENS, kind, 1, generator())
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4)
    assert not found.requires_grad
    assert model.nll(TOKENS[:, :1], kind, 1, generator()).tolist() == [0.0] * 5


@pytest.mark.parametrize(("stem", "kind", "surprise"), PLAIN)
def test_a_scored_tokens_nats_are_its_surprise_whatever_else_is_scored(stem: str, kind, surprise):
    model, text = make_far(stem), TOKENS[0]
    scored = torch.zeros(len(text), dtype=torch.bool)
    scored[[0, 3, 10]] = True  # token 0 is given all the same
    (found,) = nats(model, kind, text[None], scored[None])
    assert found.nonzero()[:, 0].tolist() == [2, 9]
    expected = torch.tensor([surprise(model, text, 3), surprise(model, text, 10)])
    assert_close(found[[2, 9]], expected, rtol=1e-5, atol=1e-4)


def test_the_exact_nll_is_the_training_loss():
    model = make_far("clm")
    assert_close(model.nll(TOKENS, "exact", 1, generator()).sum(), model.loss({"tokens": TOKENS}).sum)


def test_a_prefix_lm_reads_what_is_given_as_in_training():
    model, n_given = make_far("prefix_lm"), torch.tensor([3, 9, 1, 15, 7])
    found = nats(model, "exact", TOKENS, scored_ends([16] * 5, n_given.tolist()))
    loss = model.loss({"tokens": TOKENS, "prefix": n_given})
    assert_close(found.sum(), loss.sum)
    assert int((found > 0).sum()) == loss.count


@torch.no_grad()
def test_a_bound_is_the_mean_over_all_that_can_be_hidden_of_what_is_scored():
    model, text = make_far("masked_diffusion"), TOKENS[0, :5]
    scored = torch.tensor([False, False, True, True, True])
    expected = 0.0
    for n in (1, 2, 3):
        sets = list(combinations((2, 3, 4), n))
        for hidden in sets:
            shown = text.clone()
            shown[list(hidden)] = MASK
            log_p = model.head(model.backbone(shown[None], causal=False))[0].log_softmax(dim=1)
            expected -= sum(float(log_p[t, text[t]]) for t in hidden) * (3 / n) / len(sets) / 3
    rows = 600
    found = nats(model, "bound", text.expand(rows, -1), scored.expand(rows, -1), samples=6).double()
    assert (found[:, 0] == 0).all()
    sums = found.sum(dim=1)
    assert sums.std() > 0.01
    assert float(sums.mean()) == pytest.approx(expected, abs=4 * float(sums.std()) / math.sqrt(rows))


@every_likelihood
def test_padding_has_no_nats_and_changes_no_other(stem: str, kind: Likelihood):
    model = make_far(stem)
    scored = scored_ends(LENGTHS, [1, 4, 1, 11, 2])
    narrow = nats(model, kind, RAGGED, scored)
    is_scored = scored[:, 1:] & (RAGGED[:, 1:] != PAD)
    assert ((narrow > 0) <= is_scored).all()  # a bound's draws may miss a token
    assert (narrow.sum(dim=1) > 0).all()
    wide_tokens = nn.functional.pad(RAGGED, (0, 5), value=PAD)
    wide = nats(model, kind, wide_tokens, nn.functional.pad(scored, (0, 5), value=True))
    assert (wide[:, narrow.shape[1] :] == 0).all()
    assert_close(wide[:, : narrow.shape[1]], narrow, rtol=1e-4, atol=1e-4)
    if kind != "bound":
        for row, text in enumerate(RAGGED):
            alone = nats(model, kind, text[None, : LENGTHS[row]], scored[row : row + 1, : LENGTHS[row]])
            assert_close(narrow[row, : LENGTHS[row] - 1], alone[0], rtol=1e-4, atol=1e-4)


@every_likelihood
def test_what_is_given_is_never_hidden_and_never_costs_a_pass(stem: str, kind: Likelihood):
    model, read = make_far(stem), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    scored = scored_ends(LENGTHS, [7, 9, 1, 11, 6])
    nats(model, kind, RAGGED, scored)
    seen = torch.cat(read)
    n_scored = int((scored & (RAGGED != PAD)).sum())
    assert len(seen) == {"exact": 5, "pseudo": n_scored, "bound": 3 * 5}[kind]
    for row in seen:
        of_texts = [(text == row) | ((row == MASK) & ends) for text, ends in zip(RAGGED, scored, strict=True)]
        assert any(bool(same.all()) for same in of_texts)


def test_two_texts_of_equal_lengths_are_hidden_alike_under_one_seed():
    model, read = make_far("masked_diffusion"), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0] == MASK))
    other = torch.where(RAGGED == PAD, PAD, 4 + (RAGGED - 3) % 60)
    for tokens in (RAGGED, other):
        nats(model, "bound", tokens)
    assert torch.equal(torch.stack(read[:3]), torch.stack(read[3:]))


@pytest.mark.parametrize(("stem", "kind"), [("mlm", "pseudo"), ("masked_diffusion", "bound")])
def test_scoring_leaves_the_texts_alone(stem: str, kind: Likelihood):
    before, scored = RAGGED.clone(), scored_ends(LENGTHS, [1, 4, 1, 11, 2])
    asked = scored.clone()
    nats(make_far(stem), kind, RAGGED, scored)
    assert torch.equal(RAGGED, before)
    assert torch.equal(scored, asked)


def test_a_strategy_without_a_likelihood_says_so():
    with pytest.raises(TypeError, match="no exact likelihood"):
        nats(make_strategy("rtd"), "exact", TOKENS)
