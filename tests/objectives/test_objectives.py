"""What each objective computes, against the plainest way to write it down."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import Tensor
from torch.testing import assert_close
from toy_models import SHAPES, generator, make_strategy, pair_rows, text_rows

from bench.data.batches import Batch, BatchModule, row_indices
from bench.data.tokenizer import EOS, MASK
from bench.errors import DivergedError
from bench.models.cross_entropy import IGNORED
from bench.objectives.base import Loss, Objective, mean_over_ranks
from bench.objectives.mlm import N_SPECIAL

BIG = text_rows(2000)  # 32,000 tokens


def hidden_by_full_width(rows: Batch, batch: Batch) -> Tensor:
    """Targets over all positions (B, T), -100 where there is none."""
    full = torch.full_like(rows["tokens"], IGNORED)
    return full.scatter(1, batch["positions"], batch["targets"])


# Masked language modelling


@pytest.mark.parametrize("rate", [0.15, 0.3, 1.0])
def test_mlm_logits_at_the_targets_alone_give_the_full_loss_and_gradient(rate: float):
    model = make_strategy("mlm", mask_rate=rate)
    rows = text_rows(8)
    batch = model.corrupt(rows, generator())
    loss = model.loss(batch)
    loss.sum.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model.head(model.backbone(batch["tokens"], causal=False))  # (B, T, V)
    targets = hidden_by_full_width(rows, batch)
    reference = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    reference.backward()
    assert_close(loss.sum, reference)
    assert int(loss.count) == int((targets != -100).sum())
    for name, parameter in model.named_parameters():
        assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rate", "n"), [(0.15, 2), (0.3, 5), (0.5, 8), (0.001, 1), (1.0, 16)])
def test_mlm_hides_the_same_exact_number_of_positions_in_every_row(rate: float, n: int):
    tokens = {"tokens": torch.full((50, 16), 7)}
    batch = make_strategy("mlm", mask_rate=rate).corrupt(tokens, generator())
    assert batch["positions"].shape == (50, n)
    assert all(len(set(row)) == n for row in batch["positions"].tolist())
    assert (batch["targets"] == 7).all()


def test_mlm_chooses_every_position_equally_often():
    batch = make_strategy("mlm", mask_rate=0.25).corrupt({"tokens": torch.full((4000, 16), 7)}, generator())
    share = torch.bincount(batch["positions"].flatten(), minlength=16) / 4000
    assert_close(share, torch.full((16,), 0.25), rtol=0, atol=5 * math.sqrt(0.25 * 0.75 / 4000))


def test_the_bert_scheme_is_80_10_10():
    model = make_strategy("mlm", mask_rate=0.5, scheme="bert")
    batch = model.corrupt(BIG, generator())
    seen = batch["tokens"].gather(1, batch["positions"])
    is_target = batch["targets"] != IGNORED
    n = int(is_target.sum())
    n_words = SHAPES.vocab_size - N_SPECIAL
    by_chance = 0.1 / n_words  # a random token may be the right one
    for found, expected in (
        (seen == MASK, 0.8),
        (seen == batch["targets"], 0.1 + by_chance),
        ((seen != MASK) & (seen != batch["targets"]), 0.1 - by_chance),
    ):
        share = float((found & is_target).sum() / n)
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / n))
    assert (seen[is_target & (seen != MASK)] >= N_SPECIAL).all()


def test_the_mask_scheme_hides_every_target():
    batch = make_strategy("mlm", scheme="mask").corrupt(BIG, generator())
    seen = batch["tokens"].gather(1, batch["positions"])
    assert (seen[batch["targets"] != IGNORED] == MASK).all()


@pytest.mark.parametrize("scheme", ["bert", "mask"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_special_tokens_are_never_hidden_nor_predicted(scheme: str, rate: float):
    batch = make_strategy("mlm", scheme=scheme, mask_rate=rate).corrupt(BIG, generator())
    assert (BIG["tokens"] == EOS).any()
    assert (batch["tokens"][BIG["tokens"] == EOS] == EOS).all()
    targets = hidden_by_full_width(BIG, batch)
    assert (targets[BIG["tokens"] == EOS] == IGNORED).all()


def test_only_chosen_positions_change_and_targets_are_what_stood_there():
    batch = make_strategy("mlm").corrupt(BIG, generator())
    targets = hidden_by_full_width(BIG, batch)
    assert torch.equal(batch["tokens"][targets == IGNORED], BIG["tokens"][targets == IGNORED])
    assert torch.equal(targets[targets != IGNORED], BIG["tokens"][targets != IGNORED])


# Causal language modelling


def test_the_clm_loss_is_the_sum_of_each_tokens_surprise_given_its_prefix():
    model = make_strategy("clm")
    rows = text_rows(3)
    total = 0.0
    with torch.no_grad():
        for row in rows["tokens"]:
            for t in range(1, len(row)):
                prefix = row[None, :t]  # the model is shown no more than this
                logits = model.head(model.backbone(prefix, causal=True))[0, -1]
                total -= float(logits.double().log_softmax(dim=0)[row[t]])
    loss = model.loss(rows)
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert loss.count == 3 * (SHAPES.sequence_length - 1)


def test_an_untrained_model_is_as_surprised_as_by_a_uniform_guess():
    for stem in ("clm", "mlm"):
        model = make_strategy(stem)
        loss = model.loss(model.corrupt(text_rows(64), generator()))
        assert float(loss.sum.detach()) / int(loss.count) == pytest.approx(
            math.log(SHAPES.vocab_size), rel=0.02
        )


# Contrastive


def test_clip_embeds_into_the_unit_sphere_and_starts_at_its_temperature():
    model, rows = make_strategy("clip", initial_temperature=0.05), pair_rows(6)
    for embedded in (model.embed_images(rows["images"]), model.embed_texts(rows["captions"])):
        assert_close(embedded.norm(dim=1), torch.ones(6))
    assert float(model.log_scale.exp().detach()) == pytest.approx(20)


def test_clips_temperature_stops_at_its_least():
    model, rows = make_strategy("clip", min_temperature=0.01), pair_rows(6)
    with torch.no_grad():
        model.log_scale.fill_(math.log(100))
        at_cap = model.loss(rows).sum
        model.log_scale.fill_(math.log(1000))
        assert_close(model.loss(rows).sum, at_cap)


# What they share


def test_the_mean_is_the_sum_by_the_count():
    mean, count, world = mean_over_ranks(Loss(torch.tensor(6.0), 4))
    assert (float(mean), count, world) == (1.5, 4.0, 1)


class FixedRows:
    """Sixteen text rows."""

    def __len__(self) -> int:
        return 16

    def read(self, indices) -> Batch:
        return {"tokens": text_rows(16)["tokens"][torch.from_numpy(indices)]}


def fit(model: Objective, steps: int, folder: Path) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    batches = BatchModule(
        train=FixedRows(), corrupt=model.corrupt_at, seed=0, rows_per_step=8, ranks=1, loader_workers=0
    )
    trainer.fit(model.train(), batches)
    return trainer


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, plain = make_strategy("clm"), type(make_strategy("clm")).loss

    def broken(self: Objective, batch: Batch) -> Loss:
        loss = plain(self, batch)
        return loss if self.global_step < 3 else Loss(loss.sum * float("nan"), loss.count)

    monkeypatch.setattr(type(model), "loss", broken)
    with pytest.raises(DivergedError) as caught:
        fit(model, 10, tmp_path)
    assert caught.value.step == 2
    assert caught.value.loss_nats == pytest.approx(math.log(SHAPES.vocab_size), rel=0.2)
    assert "\n" not in str(caught.value)


def test_a_step_without_a_single_target_changes_no_weight_and_ends_no_run(monkeypatch: pytest.MonkeyPatch):
    model, plain = make_strategy("clm"), type(make_strategy("clm")).loss
    monkeypatch.setattr(type(model), "loss", lambda self, batch: Loss(plain(self, batch).sum * 0.0, 0))
    monkeypatch.setattr(type(model), "global_step", 0)
    loss = model.training_step(text_rows(2), 0)
    assert float(loss.detach()) == 0
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    assert float(mean_over_ranks(Loss(torch.tensor([6.0, 0.0]), torch.tensor([4, 0])))[0]) == 1.5


def test_a_loss_that_never_was_finite_says_so(monkeypatch: pytest.MonkeyPatch):
    model = make_strategy("clm")
    with torch.no_grad():
        model.backbone.embedding.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="never finite"):
        model.training_step(text_rows(2), 0)


def test_an_untrained_strategy_refuses_to_be_trained():
    model = make_strategy("scratch")
    for call in (lambda: model.loss({}), lambda: model.corrupt({}, generator()), lambda: model.step_cost(1)):
        with pytest.raises(TypeError, match="not trained"):
            call()


def test_training_sees_the_rows_of_the_data_module_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_strategy("clm")
    plain, seen = type(model).loss, []

    def watched(self: Objective, batch: Batch) -> Loss:
        seen.append(batch["tokens"])
        return plain(self, batch)

    monkeypatch.setattr(type(model), "loss", watched)
    fit(model, 3, tmp_path)
    expected = [FixedRows().read(row_indices(0, step, 8, 16))["tokens"] for step in range(3)]
    assert torch.equal(torch.stack(seen), torch.stack(expected))
