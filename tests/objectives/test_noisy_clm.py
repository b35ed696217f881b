"""CLM with noise: none unless asked for, targets that stay, dropout that the batch decides."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from toy_models import generator, make_strategy, text_rows

from bench.data.tokenizer import MASK
from bench.errors import ConfigError

ROWS = text_rows(8)


def test_without_noise_nothing_is_drawn_and_the_batch_is_the_rows():
    used = generator()
    batch = make_strategy("clm").corrupt(ROWS, used)
    assert set(batch) == {"tokens"}
    assert batch["tokens"] is ROWS["tokens"]
    assert torch.equal(used.get_state(), generator().get_state())


def test_without_noise_training_is_evaluation_bit_by_bit():
    model = make_strategy("clm")
    expected = model.loss(ROWS).sum
    state = torch.random.get_rng_state()
    assert torch.equal(model.train().loss(ROWS).sum, expected)
    assert torch.equal(torch.random.get_rng_state(), state)


# Masked inputs


def test_inputs_are_masked_at_the_stated_rate_and_targets_stay():
    rows = text_rows(2000)
    batch = make_strategy("clm", input_mask_rate=0.2).corrupt(rows, generator())
    assert torch.equal(batch["targets"], rows["tokens"])
    masked = batch["tokens"] == MASK
    assert torch.equal(batch["tokens"][~masked], rows["tokens"][~masked])
    n = masked.numel()
    assert float(masked.double().mean()) == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / n))


def test_the_loss_is_that_of_the_true_tokens_given_the_masked_ones():
    model = make_strategy("clm", input_mask_rate=0.3).train()
    batch = model.corrupt(ROWS, generator())
    logits = model.head(model.backbone(batch["tokens"], causal=True))[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), ROWS["tokens"][:, 1:], reduction="sum")
    loss = model.loss(batch)
    assert_close(loss.sum, expected)
    assert loss.count == 8 * 15
    assert (batch["tokens"][:, 1:] == MASK).any()


# Dropout


def test_dropout_follows_the_batch_and_not_the_process():
    model = make_strategy("clm", dropout=0.2).train()
    batch = model.corrupt(ROWS, generator(1))
    torch.manual_seed(0)
    first = model.loss(batch).sum
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert torch.equal(model.loss(batch).sum, first)
    assert torch.equal(torch.random.get_rng_state(), state)  # nor does it disturb others
    other = model.corrupt(ROWS, generator(2))
    assert torch.equal(other["tokens"], batch["tokens"])
    assert not torch.equal(model.loss(other).sum, first)


def test_noise_is_for_training_alone():
    model, plain = make_strategy("clm", dropout=0.5, input_mask_rate=0.5), make_strategy("clm")
    batch = model.corrupt(ROWS, generator())
    assert torch.equal(model.loss(batch).sum, plain.loss(ROWS).sum)
    model.train()
    nll = model.nll(ROWS["tokens"], "exact", 1, generator())
    assert torch.equal(nll, plain.nll(ROWS["tokens"], "exact", 1, generator()))


def test_dropout_sets_the_stated_share_of_every_blocks_output_to_zero(monkeypatch: pytest.MonkeyPatch):
    model, plain, seen = make_strategy("clm", dropout=0.3).train(), F.dropout, []

    def watched(x: torch.Tensor, p: float) -> torch.Tensor:
        seen.append(plain(x, p))
        return seen[-1]

    monkeypatch.setattr(F, "dropout", watched)
    model.loss(model.corrupt(text_rows(64), generator()))
    assert len(seen) == 4  # attention and feed-forward in two layers
    for dropped in seen:
        share = float((dropped == 0).double().mean())
        assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / dropped.numel()))


def test_both_kinds_of_noise_go_together():
    batch = make_strategy("clm", dropout=0.1, input_mask_rate=0.1).corrupt(ROWS, generator())
    assert set(batch) == {"tokens", "targets", "seed"}
    assert {len(values) for values in batch.values()} == {8}


@pytest.mark.parametrize("key", ["dropout", "input_mask_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_noise_is_a_share(key: str, value: float):
    with pytest.raises(ConfigError, match=rf"strategy\.{key}={value}"):
        make_strategy("clm", **{key: value})
