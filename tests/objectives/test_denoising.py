"""Span corruption: T5's own example, exact counts, masks equally likely, a text that can be read back."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from toy_models import OPTIM, SHAPES, generator, make_strategy, strategy_node, text_rows

from bench.data.tokenizer import BOS, EOS
from bench.errors import ConfigError
from bench.models import flops
from bench.objectives.corruption import noise_mask, span_counts, split_at_spans
from bench.objectives.denoising import Denoiser, Denoising

UL2 = [Denoiser(**denoiser) for denoiser in strategy_node("ul2")["denoisers"]]
LONG = replace(SHAPES, sequence_length=128)
FIRST = SHAPES.vocab_size  # the first sentinel


def read_back(inputs: list[int], targets: list[int], first_sentinel: int) -> list[int]:
    """The text: each sentinel of the inputs replaced by what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:  # all but the closing token
        if token >= first_sentinel:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [t for token in inputs for t in (spans[token] if token >= first_sentinel else [token])]


# The example of T5's figure 2


def test_thank_you_for_inviting_me():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    tokens = torch.arange(10)[None]
    mask = torch.tensor([[word in ("for", "inviting", "last") for word in words]])
    inputs, targets = split_at_spans(tokens, mask, first_sentinel=10, closing=12)
    names = [*words, "<X>", "<Y>", "<Z>"]
    assert " ".join(names[i] for i in inputs[0]) == "Thank you <X> me to your party <Y> week"
    assert " ".join(names[i] for i in targets[0]) == "<X> for inviting <Y> last <Z>"


# Masks


@pytest.mark.parametrize(
    ("length", "rate", "mean_span", "counts"),
    [
        (512, 0.15, 3.0, (77, 26)),  # T5's own setting
        (128, 0.15, 3.0, (19, 6)),
        (128, 0.5, 3.0, (64, 21)),
        (128, 0.5, 64.0, (64, 1)),
        (128, 0.25, None, (32, 1)),
        (16, 0.15, 64.0, (2, 1)),  # spans longer than all the noise
        (16, 0.01, 3.0, (1, 1)),
        (16, 0.99, 1.0, (15, 1)),  # no more spans than tokens between them
        (2, 0.5, None, (1, 1)),
    ],
)
def test_counts_are_rounded_and_at_least_one(length, rate, mean_span, counts):
    assert span_counts(length, rate, mean_span) == counts


@pytest.mark.parametrize("denoiser", UL2)
@pytest.mark.parametrize("length", [2, 16, 100])
def test_every_row_has_the_exact_counts_and_starts_with_text(denoiser: Denoiser, length: int):
    n_noise, n_spans = span_counts(length, denoiser.rate, denoiser.mean_span)
    mask = noise_mask(500, length, n_noise=n_noise, n_spans=n_spans, generator=generator())
    assert (mask.sum(dim=1) == n_noise).all()
    starts = mask & ~F.pad(mask[:, :-1], (1, 0))
    assert (starts.sum(dim=1) == n_spans).all()
    assert not mask[:, 0].any()


def test_all_masks_of_the_same_counts_are_equally_likely():
    # Three noise tokens in two spans: 1+2, 2+1; four others in two: 1+3, 2+2, 3+1. Six masks.
    n = 6000
    mask = noise_mask(n, 7, n_noise=3, n_spans=2, generator=generator())
    seen = Counter("".join(str(int(bit)) for bit in row) for row in mask)
    expected = {"0100011", "0110001", "0010011", "0011001", "0001011", "0001101"}
    assert set(seen) == expected
    chi_square = sum((count - n / 6) ** 2 / (n / 6) for count in seen.values())
    assert chi_square < 20.5  # 99.9 % of five degrees of freedom


def test_span_lengths_have_the_stated_mean_and_vary_as_uniform_cuts_do():
    n_noise, n_spans = span_counts(128, 0.15, 3.0)
    mask = noise_mask(4000, 128, n_noise=n_noise, n_spans=n_spans, generator=generator())
    starts = mask & ~F.pad(mask[:, :-1], (1, 0))
    number = starts.cumsum(dim=1)[mask] - 1
    rows = torch.arange(4000)[:, None].expand(-1, 128)[mask]
    lengths = torch.bincount(rows * n_spans + number)
    assert float(lengths.double().mean()) == pytest.approx(19 / 6)
    # A span is longer than one where the cut behind its first token is missing: 1 - 5/18.
    for span in range(n_spans):
        longer = float((lengths[span::n_spans] > 1).double().mean())
        assert longer == pytest.approx(13 / 18, abs=5 * math.sqrt(13 / 18 * 5 / 18 / 4000))


def test_far_from_the_ends_every_position_is_masked_equally_often():
    n_noise, n_spans = span_counts(512, 0.15, 3.0)
    mask = noise_mask(4000, 512, n_noise=n_noise, n_spans=n_spans, generator=generator())
    share = mask.double().mean(dim=0)[64:-64]
    rate = n_noise / 512
    assert_close(share, torch.full_like(share, rate), rtol=0, atol=5 * math.sqrt(rate * (1 - rate) / 4000))


def test_a_sequential_denoiser_hides_the_end_of_every_row():
    n_noise, n_spans = span_counts(16, 0.25, None)
    mask = noise_mask(10, 16, n_noise=n_noise, n_spans=n_spans, generator=generator())
    assert torch.equal(mask, (torch.arange(16) >= 12).expand(10, -1))


# Batches


@pytest.mark.parametrize("denoiser", UL2)
def test_inputs_and_targets_together_give_back_the_text(denoiser: Denoiser):
    model = make_strategy("ul2", shapes=LONG, denoisers=[vars(denoiser)])
    rows = text_rows(8, shapes=LONG)
    batch = model.corrupt(rows, generator(1))
    assert (batch["tokens"][:, 0] == model.mode_ids[denoiser.mode]).all()
    assert (batch["targets"][:, -1] == EOS).all()
    for text, inputs, targets in zip(rows["tokens"], batch["tokens"], batch["targets"], strict=True):
        assert read_back(inputs[1:].tolist(), targets.tolist(), FIRST) == text.tolist()


def test_rows_of_a_step_are_corrupted_each_in_its_own_way():
    model = make_strategy("span_corruption", shapes=LONG)
    rows = {"tokens": torch.full((8, 128), 7)}
    assert len({tuple(row.tolist()) for row in model.corrupt(rows, generator())["tokens"]}) == 8


def test_every_denoiser_has_the_same_share_of_the_steps():
    denoisers = [{"mode": mode, "rate": 0.25, "mean_span": None} for mode in "RSX"]
    model = make_strategy("ul2", denoisers=denoisers)
    assert isinstance(model, Denoising)
    n = 1500
    drawn = Counter(int(model.corrupt(text_rows(2), generator(i))["tokens"][0, 0]) for i in range(n))
    assert set(drawn) == set(model.mode_ids.values())
    for count in drawn.values():
        assert count / n == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / n))


def test_extra_ids_are_as_many_as_the_neediest_denoiser_uses():
    for stem, n in (("span_corruption", 6), ("ul2", 21 + 3)):  # modes R, S, X
        model = make_strategy(stem, shapes=LONG)
        assert model.n_extra_tokens(model.options, LONG) == n
        assert model.backbone.embedding.num_embeddings == LONG.vocab_size + n
        rows, seen = text_rows(4, shapes=LONG), set()
        for i in range(100):
            batch = model.corrupt(rows, generator(i))
            seen |= {t for values in batch.values() for t in values.flatten().tolist() if t >= FIRST}
        assert seen == set(range(FIRST, FIRST + n))


# Loss


def test_the_loss_is_the_sum_of_each_targets_surprise_given_those_before_it():
    model = make_strategy("ul2")
    batch = model.corrupt(text_rows(3), generator())
    total = torch.zeros(())
    for inputs, targets in zip(batch["tokens"], batch["targets"], strict=True):
        context = model.backbone(inputs[None], causal=False)
        for i, target in enumerate(targets):
            written = torch.cat([torch.tensor([BOS]), targets[:i]])  # the decoder is shown no more than this
            hidden = model.decoder(model.backbone.embedding(written)[None], context)
            total = total - model.head(hidden[0, -1]).log_softmax(dim=0)[target]
    reference = gradients(model, total)
    loss = model.loss(batch)
    assert_close(loss.sum, total)
    assert loss.count == batch["targets"].numel()
    for name, gradient in gradients(model, loss.sum).items():
        assert_close(gradient, reference[name], rtol=1e-4, atol=1e-5)


def gradients(model: Denoising, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_features_are_the_encoders():
    model = make_strategy("span_corruption")
    tokens = text_rows(4)["tokens"]
    expected = model.backbone(tokens, causal=False).mean(dim=1)
    assert_close(model.features(tokens), expected)


def test_a_mixture_takes_it_and_its_ids_stay_behind_the_vocabulary():
    parts = {name: strategy_node(name) for name in ("clm", "span_corruption", "ul2")}
    shares = {"clm": 0.5, "span_corruption": 0.25, "ul2": 0.25}
    model = make_strategy("mixture", shapes=LONG, parts=parts, shares=shares)
    assert model.backbone.embedding.num_embeddings == LONG.vocab_size + 24
    batch = model.part("span_corruption").corrupt(text_rows(2, shapes=LONG), generator())
    sentinels = sorted(set(batch["targets"][batch["targets"] >= FIRST].tolist()))
    assert sentinels == list(range(FIRST, FIRST + 6))
    assert model.part("ul2").mode_ids == {"R": FIRST + 21, "S": FIRST + 22, "X": FIRST + 23}


# Cost and bad input


def test_the_decoder_has_the_parameters_that_the_budget_counts():
    decoder, model = make_strategy("span_corruption").decoder, SHAPES.model
    cross = model.n_layers * (4 * model.d_model**2 + model.d_model)  # attention and a norm in each layer
    assert sum(p.numel() for p in decoder.parameters()) == flops.block_parameters(model) + cross


def test_tokens_are_positions_read_and_written_and_those_written_are_supervised():
    # 16 tokens, 2 of them in one span: 14 + 1 read, 2 + 1 + 1 written.
    cost = make_strategy("span_corruption").step_cost(OPTIM.tokens_per_step)
    assert (cost.rows, cost.forward_tokens, cost.predicted_tokens) == (6, 6 * 19, 6 * 4)


@pytest.mark.parametrize(
    ("denoisers", "message"),
    [
        ([], r"strategy\.denoisers=\[\]: give at least one"),
        ([{"mode": None, "rate": 1.0, "mean_span": 3}], r"strategy\.denoisers\[0\]\.rate=1\.0"),
        ([{"mode": None, "rate": 0.15, "mean_span": 0.5}], r"strategy\.denoisers\[0\]\.mean_span=0\.5"),
        ([{"rate": 0.15, "mean_span": 3}], r"strategy\.denoisers\[0\]\.mode"),
        ([{"mode": None, "rate": 0.15, "mean_span": 3, "extra": 1}], r"'extra' not in 'Denoiser'"),
    ],
)
def test_denoisers_that_make_no_sense_are_refused(denoisers, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_strategy("ul2", denoisers=denoisers)
    assert "\n" not in str(caught.value)
