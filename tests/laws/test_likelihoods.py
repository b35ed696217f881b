"""What CLM and MLM say a text's likelihood is, against the sum written down token by token."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_models import generator, make_strategy, text_rows

from bench.objectives.base import Objective
from bench.vocabulary import MASK

TOKENS = text_rows(5)["tokens"]


def make_far(stem: str) -> Objective:
    """Away from the start, so that no two tokens are equally likely."""
    model = make_strategy(stem)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return model


@torch.no_grad()
def by_the_prefix(model: Objective, text: Tensor, t: int) -> float:
    logits = model.head(model.backbone(text[None, :t], causal=True))[0, -1]
    return -float(logits.log_softmax(dim=0)[text[t]])


@torch.no_grad()
def by_all_others(model: Objective, text: Tensor, t: int) -> float:
    shown = text.clone()
    shown[t] = MASK
    logits = model.head(model.backbone(shown[None], causal=False))[0, t]
    return -float(logits.log_softmax(dim=0)[text[t]])


@pytest.mark.parametrize(
    ("stem", "kind", "surprise"), [("clm", "exact", by_the_prefix), ("mlm", "pseudo", by_all_others)]
)
def test_nll_is_the_sum_of_each_tokens_surprise_after_the_first(stem: str, kind, surprise):
    model = make_far(stem)
    assert model.likelihoods == {kind}
    expected = [sum(surprise(model, text, t) for t in range(1, len(text))) for text in TOKENS]
    assert max(expected) - min(expected) > 1
    found = model.nll(TOKENS, kind, 1, generator())
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4)
    assert not found.requires_grad
    assert model.nll(TOKENS[:, :1], kind, 1, generator()).tolist() == [0.0] * 5


def test_the_exact_nll_is_the_training_loss():
    model = make_far("clm")
    assert_close(model.nll(TOKENS, "exact", 1, generator()).sum(), model.loss({"tokens": TOKENS}).sum)


def test_scoring_leaves_the_texts_alone():
    before = TOKENS.clone()
    make_far("mlm").nll(TOKENS, "pseudo", 1, generator())
    assert torch.equal(TOKENS, before)
