"""Masked diffusion: what is hidden how often, and that its loss bounds the likelihood, by enumeration."""

import math
from collections.abc import Iterator
from itertools import combinations, permutations, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from toy_models import OPTIM, SHAPES, generator, make_strategy, text_rows

from bench.data.tokenizer import EOS, MASK
from bench.models.cross_entropy import IGNORED
from bench.models.transformer import states_at
from bench.objectives.masked_diffusion import MaskedDiffusion, choose_any, hidden_counts

FIRST = 4  # ids of the toy source: 4 and 5


def make_diffusion() -> MaskedDiffusion:
    model = make_strategy("masked_diffusion")
    assert isinstance(model, MaskedDiffusion)
    return model


def all_masks(length: int) -> Iterator[tuple[int, Tensor]]:
    """Every set of hidden positions but the empty one, with its size."""
    for n in range(1, length + 1):
        for chosen in combinations(range(length), n):
            mask = torch.zeros(length, dtype=torch.bool)
            mask[list(chosen)] = True
            yield n, mask


def expected_bound(model: MaskedDiffusion, text: Tensor, *, given: int) -> float:
    """The estimator's mean over sizes and sets: those of the tokens behind the first `given`."""
    rest, total = text[given:], 0.0
    for n, mask in all_masks(len(rest)):
        shown = torch.cat([text[:given], rest.masked_fill(mask, MASK)])
        targets = rest.masked_fill(~mask, IGNORED)[None]
        nats = model.weighted_nll(shown[None], targets, torch.tensor([len(rest)]))
        total += float(nats.sum()) / math.comb(len(rest), n) / len(rest)
    return total


# What is hidden


def test_a_count_is_uniform_wherever_its_row_stands():
    draws = (torch.arange(150, dtype=torch.float64) + 0.5) / 150
    for row in range(3):
        counts = hidden_counts(5, (draws + row / 3) % 1)
        assert torch.bincount(counts).tolist() == [0, 30, 30, 30, 30, 30]


@pytest.mark.parametrize("length", [3, 16, 100, 128])
def test_a_count_never_passes_the_length(length: int):
    assert hidden_counts(length, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, length]


def test_a_step_has_every_count_equally_often():
    rows = text_rows(2 * SHAPES.sequence_length)
    for seed in range(5):
        batch = make_diffusion().corrupt(rows, generator(seed))
        counts = (batch["targets"] != IGNORED).sum(dim=1)
        assert torch.bincount(counts).tolist() == [0] + [2] * SHAPES.sequence_length


def test_every_set_of_as_many_positions_is_equally_likely():
    n = 6000
    hidden = choose_any(torch.full((n,), 2), 4, generator())
    codes = torch.bincount((hidden * torch.tensor([1, 2, 4, 8])).sum(dim=1), minlength=16)
    pairs = [(1 << i) + (1 << j) for i, j in combinations(range(4), 2)]
    assert int(codes[pairs].sum()) == n
    chi_square = float(((codes[pairs] - n / 6) ** 2 / (n / 6)).sum())
    assert chi_square < 20.5  # 99.9 % of five degrees of freedom


def test_only_hidden_tokens_are_targets_and_special_tokens_are_among_them():
    rows = text_rows(200)
    batch = make_diffusion().corrupt(rows, generator())
    hidden = batch["targets"] != IGNORED
    assert torch.equal(batch["tokens"], rows["tokens"].masked_fill(hidden, MASK))
    assert torch.equal(batch["targets"][hidden], rows["tokens"][hidden])
    assert (batch["targets"] == EOS).any()


# Loss


def test_the_loss_is_each_rows_cross_entropies_times_length_by_hidden_in_value_and_gradient():
    model = make_diffusion()
    batch = model.corrupt(text_rows(8), generator())
    total = torch.zeros(())
    for shown, targets in zip(batch["tokens"], batch["targets"], strict=True):
        logits = model.head(model.backbone(shown[None], causal=False))[0]  # (T, V)
        nats = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
        total = total + SHAPES.sequence_length / (targets != IGNORED).sum() * nats
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(total, parameters), strict=True))
    loss = model.loss(batch)
    assert_close(loss.sum, total)
    assert loss.count == 8 * SHAPES.sequence_length
    for name, gradient in zip(names, torch.autograd.grad(loss.sum, parameters), strict=True):
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_half_of_the_positions_and_a_half_are_targets():
    cost = make_diffusion().step_cost(OPTIM.tokens_per_step)
    assert (cost.forward_tokens, cost.predicted_tokens) == (128, 8 * 8.5)


# A bound


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_orders_of_generation():
    model, text = make_diffusion(), torch.tensor([9, 20, 31, 42])
    for parameter in model.parameters():  # far from the start, so that orders differ
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1)))
    sums = []
    for order in permutations(range(4)):
        nats, shown = 0.0, torch.full((4,), MASK)
        for t in order:
            logits = model.head(model.backbone(shown[None], causal=False))[0, t]
            nats, shown[t] = nats - float(logits.log_softmax(dim=0)[text[t]]), text[t]
        sums.append(nats)
    assert max(sums) - min(sums) > 0.1
    assert expected_bound(model, text, given=0) == pytest.approx(sum(sums) / 24, rel=1e-5)


class Markov(nn.Module):
    """The exact conditionals of a two-state Markov chain, in the place of backbone and head."""

    def __init__(self, stay: float) -> None:
        super().__init__()
        self.stay = stay

    def joint(self, text: Tensor) -> float:
        n_stays = int((text[1:] == text[:-1]).sum())
        return 0.5 * self.stay**n_stays * (1 - self.stay) ** (len(text) - 1 - n_stays)

    def forward(self, shown: Tensor, attended: Tensor | None = None, *, at: Tensor, **how: object) -> Tensor:
        """(B, T) ids -> (N, V) log p(token | what is shown), by summing over all texts that agree."""
        texts = FIRST + torch.tensor(list(product(range(2), repeat=shown.shape[1])))
        joint = torch.tensor([self.joint(text) for text in texts], dtype=torch.float64)
        agrees = ((texts == shown[:, None]) | (shown[:, None] == MASK)).all(dim=2)  # (B, N)
        p = (agrees * joint)[:, :, None, None] * F.one_hot(texts, FIRST + 2)  # (B, N, T, V)
        summed = p.sum(dim=1)
        return states_at((summed / summed.sum(dim=2, keepdim=True)).clamp(min=1e-12).log(), at)


def diffusion_with(source: Markov) -> MaskedDiffusion:
    model = make_diffusion()
    model.backbone, model.head = source, nn.Identity()  # type: ignore[assignment]
    return model


def test_with_the_true_conditionals_the_bound_is_the_likelihood_of_every_text():
    source = Markov(stay=0.8)
    model = diffusion_with(source)
    for states in product(range(2), repeat=4):
        text = FIRST + torch.tensor(states)
        assert expected_bound(model, text, given=0) == pytest.approx(-math.log(source.joint(text)))
        given_first = -math.log(2 * source.joint(text))
        assert expected_bound(model, text, given=1) == pytest.approx(given_first)


@pytest.mark.parametrize("stay", [0.5, 0.7, 0.9])
def test_with_wrong_conditionals_it_lies_above_the_entropy(stay: float):
    source, model = Markov(stay=0.8), diffusion_with(Markov(stay=stay))
    texts = [FIRST + torch.tensor(states) for states in product(range(2), repeat=4)]
    entropy = math.log(2) - 3 * (0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    bound = sum(source.joint(text) * expected_bound(model, text, given=0) for text in texts)
    assert bound > entropy + 0.01


@pytest.mark.parametrize("samples", [1, 4])
def test_the_estimate_of_the_bound_is_unbiased(samples: int):
    model, n = diffusion_with(Markov(stay=0.8)), 4000
    text = FIRST + torch.tensor([0, 0, 1, 0])
    estimates = model.nll(text.expand(n, -1), "bound", samples, generator()).double()
    exact = -math.log(0.8 * 0.2 * 0.2)
    assert estimates.std() > 0.05
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / math.sqrt(n))


def test_an_estimate_over_strata_varies_less_than_draws_on_their_own():
    model, n = diffusion_with(Markov(stay=0.8)), 2000
    texts = (FIRST + torch.tensor([0, 0, 1, 0])).expand(n, -1)
    single = model.nll(texts, "bound", 1, generator()).double().var()
    assert model.nll(texts, "bound", 3, generator(1)).double().var() < 0.9 * single / 3


def test_the_first_token_is_always_shown_and_a_text_of_one_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    model, seen = make_diffusion(), []
    plain = model.weighted_nll
    monkeypatch.setattr(model, "weighted_nll", lambda shown, *rest: seen.append(shown) or plain(shown, *rest))
    tokens = text_rows(4)["tokens"]
    assert model.nll(tokens, "bound", 20, generator()).shape == (4,)
    assert all(torch.equal(shown[:, 0], tokens[:, 0]) for shown in seen)
    assert (torch.stack(seen)[:, :, 1:] == MASK).any(dim=0).all()
    assert model.nll(tokens[:, :1], "bound", 3, generator()).tolist() == [0.0] * 4
