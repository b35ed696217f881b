"""How tokens are chosen and positions filled, on distributions that can be done by hand."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_models import generator

from bench.data.tokenizer import EOS, MASK, PAD
from bench.objectives.sampling import (
    Sampling,
    by_length,
    draw,
    ended,
    left_to_right,
    mask_predict,
    nucleus,
    pick,
    unigram_texts,
    unmask,
    writable,
)

GREEDY = Sampling(temperature=0.0, top_p=1.0)
SHARES = torch.tensor([0.05, 0.5, 0.15, 0.3])
ALMOST_ONE = 1 - 2**-24


# One token


def test_greedy_takes_the_likeliest_token_and_of_equals_the_first():
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.2, 0.4]]).log()
    ids, confidence = pick(logits, torch.tensor([0.9, 0.9]), GREEDY)
    assert ids.tolist() == [2, 0]
    assert_close(confidence, torch.tensor([0.7, 0.4]))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, "1"), (0.5, "1"), (0.51, "13"), (0.79, "13"), (0.81, "123"), (1.0, "0123")]
)
def test_the_nucleus_is_the_smallest_set_of_the_likeliest_with_that_probability(top_p: float, kept: str):
    assert "".join(map(str, nucleus(SHARES, top_p).nonzero()[:, 0].tolist())) == kept


def test_tokens_as_likely_as_the_last_of_the_nucleus_are_in_it():
    assert nucleus(torch.tensor([0.2, 0.4, 0.2, 0.2]), 0.5).tolist() == [True] * 4
    assert nucleus(torch.tensor([0.25, 0.4, 0.1, 0.25]), 0.5).tolist() == [True, True, False, True]


def test_sampling_never_leaves_the_nucleus_and_keeps_its_proportions():
    n = 20_000
    uniforms = torch.rand(n, generator=generator())
    uniforms[:2] = torch.tensor([0.0, ALMOST_ONE])
    ids, confidence = pick(SHARES.log().expand(n, -1), uniforms, Sampling(1.0, 0.7))
    counts = torch.bincount(ids, minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    tolerance = 5 * (0.625 * 0.375 / n) ** 0.5
    assert float(counts[1]) / n == pytest.approx(0.5 / 0.8, abs=tolerance)
    assert_close(confidence, SHARES[ids])  # the model's own probability, not that within the nucleus


def test_the_temperature_is_a_power_of_the_probabilities():
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    edges = torch.tensor([0.0, 0.66, 0.67, 0.83, 0.84])  # squares: 4/6, 1/6, 1/6
    ids, confidence = pick(logits.expand(5, -1), edges, Sampling(0.5, 1.0))
    assert ids.tolist() == [0, 0, 1, 1, 2]
    assert_close(confidence, torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))


def test_a_share_of_zero_is_never_drawn_not_even_by_rounding():
    shares = torch.zeros(4096)
    shares[1:1000] = 1e-3
    assert draw(shares.expand(2, -1), torch.tensor([0.0, ALMOST_ONE])).tolist() == [1, 999]


def test_only_words_and_the_end_can_be_written():
    kept = writable(torch.zeros(2, 9), vocab_size=7).isfinite()
    expected = [False] * 9
    for token in (EOS, 4, 5, 6):
        expected[token] = True
    assert kept.tolist() == [expected] * 2


def test_a_model_that_diverged_writes_nothing():
    with pytest.raises(FloatingPointError, match="diverged"):
        pick(torch.full((1, 4), torch.nan), torch.zeros(1), GREEDY)


def test_behind_the_first_end_there_is_padding():
    written = torch.tensor([[5, EOS, 6, EOS], [EOS, 5, 5, 5], [4, 5, 6, 7]])
    assert ended(written).tolist() == [[5, EOS, PAD, PAD], [EOS, PAD, PAD, PAD], [4, 5, 6, 7]]


def test_a_unigram_text_has_each_token_as_often_as_it_occurs():
    shares = torch.tensor([0, 0, 0, 0, 0.75, 0.25], dtype=torch.float64)
    text = unigram_texts(shares, 100, 100, generator())
    assert set(text.flatten().tolist()) == {4, 5}
    assert float((text == 4).double().mean()) == pytest.approx(0.75, abs=5 * (0.1875 / 1e4) ** 0.5)
    parts = generator()
    assert torch.equal(torch.cat([unigram_texts(shares, n, 100, parts) for n in (3, 97)]), text)


# Texts


def counting(tokens: Tensor) -> Tensor:
    """Logits (B, 10) of one that goes on counting, up to 9 and then EOS."""
    following = torch.where(tokens[:, -1] < 9, tokens[:, -1] + 1, EOS)
    return 5.0 * torch.nn.functional.one_hot(following, 10)


def test_left_to_right_reads_what_it_has_written_and_stops_when_all_have_ended():
    reads: list[int] = []

    def next_logits(tokens: Tensor) -> Tensor:
        reads.append(tokens.shape[1])
        return counting(tokens)

    written = left_to_right(next_logits, torch.tensor([[3, 7], [3, 6]]), 8, GREEDY, torch.zeros(2, 8))
    assert ended(written)[:, :5].tolist() == [[8, 9, EOS, PAD, PAD], [7, 8, 9, EOS, PAD]]
    assert reads == [2, 3, 4, 5]
    assert written.shape == (2, 8)


class Told:
    """Logits as they are told: by round, by position; keeps what it was shown."""

    def __init__(self, rounds: list[dict[int, tuple[int, float]]]) -> None:
        self.rounds, self.shown = rounds, list[list[int]]()

    def __call__(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        told = self.rounds[len(self.shown)]
        self.shown.append(tokens[0].tolist())
        assert hidden[0].nonzero()[:, 0].tolist() == sorted(told)
        logits = torch.full((len(told), 10), -torch.inf)
        for row, position in enumerate(sorted(told)):
            token, share = told[position]
            logits[row, token] = torch.tensor(share).log()
            logits[row, 9] = torch.tensor(1 - share).log()
        return logits


M = MASK


def test_mask_predict_hides_the_least_certain_again_and_fewer_in_every_round():
    fill = Told(
        [
            {0: (4, 0.9), 1: (5, 0.6), 2: (6, 0.7)},
            {1: (7, 0.95), 2: (8, 0.8)},  # the two of least confidence, both seen anew
            {2: (5, 0.6)},  # 0.8 is now the least of 0.9, 0.95, 0.8
        ]
    )
    written = mask_predict(fill, torch.tensor([[4, 4]]), 3, GREEDY, torch.zeros(1, 3, 3))
    assert fill.shown == [[4, 4, M, M, M], [4, 4, 4, M, M], [4, 4, 4, 7, M]]
    assert written.tolist() == [[4, 7, 5]]


def test_unmasking_keeps_the_most_certain_of_a_round_for_good():
    fill = Told(
        [
            {0: (4, 0.6), 1: (5, 0.7), 2: (6, 0.9)},
            {0: (7, 0.8), 1: (8, 0.55)},
            {1: (4, 0.51)},
        ]
    )
    written = unmask(fill, torch.tensor([[4, 4]]), 3, GREEDY, torch.zeros(1, 3, 3))
    assert fill.shown == [[4, 4, M, M, M], [4, 4, M, M, 6], [4, 4, 7, M, 6]]
    assert written.tolist() == [[7, 4, 6]]


def test_prompts_of_one_length_go_together_and_keep_their_own_numbers():
    seen: list[tuple[list[list[int]], Tensor]] = []

    def write(prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        seen.append((prompts.tolist(), uniforms))
        return prompts[:, -1:].expand(-1, n_new)

    prompts = torch.tensor([[4, PAD, PAD], [5, 6, PAD], [7, PAD, PAD]])
    assert by_length(write, prompts, 1, GREEDY, generator()).tolist() == [[4], [6], [7]]
    assert [rows for rows, _ in seen] == [[[4], [7]], [[5, 6]]]
    numbers = torch.rand((3, 1, 2), generator=generator())
    assert torch.equal(seen[0][1], numbers[[0, 2]])
    assert torch.equal(seen[1][1], numbers[[1]])
