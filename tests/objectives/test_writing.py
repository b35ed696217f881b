"""Each strategy's own way to continue a text: against loops by hand, and on a source that it has learnt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_models import N_SPECIAL, OPTIM, SHAPES, generator, make_strategy, ragged_tokens, stems, text_rows

from bench.data.tokenizer import BOS, EOS, PAD
from bench.errors import InapplicableError
from bench.models.heads import PredictionHead
from bench.models.transformer import Transformer
from bench.objectives.base import Core, Objective
from bench.objectives.combined import Combined
from bench.objectives.reference import Reference
from bench.objectives.sampling import Sampling
from bench.tasks.meter import Meter

GREEDY = Sampling(temperature=0.0, top_p=1.0)
NUCLEUS = Sampling(temperature=1.0, top_p=0.9)
N = 5
PROMPTS = text_rows(6)["tokens"][:, :5]  # the EOS of some rows lies behind
WAYS = {
    "clm": "left to right",
    "prefix_lm": "left to right",
    "gpt_bert": "left to right",
    "mixture": "left to right",
    "mlm": "mask-predict",
    "mntp": "mask-predict",
    "clm_then_mlm": "mask-predict",
    "masked_diffusion": "reverse diffusion",
    "span_corruption": "span by span",
    "ul2": "span by span",
}
every_writer = pytest.mark.parametrize("stem", WAYS)
both_ways = pytest.mark.parametrize("sampling", [GREEDY, NUCLEUS], ids=["greedy", "nucleus"])


def make_far(stem: str) -> Objective:
    """Away from the start, so that no two tokens are equally likely."""
    model = make_strategy(stem)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    return model


def write(model: Objective, prompts: Tensor = PROMPTS, sampling: Sampling = GREEDY, seed: int = 0) -> Tensor:
    return model.generate(prompts, N, sampling, generator(seed))


def test_strategies_say_whether_and_how_they_write():
    for stem in stems("strategy"):
        model = make_strategy(stem)
        assert model.writes == WAYS.get(stem)
        if model.writes is None:
            with pytest.raises(InapplicableError, match="writes no text"):
                write(model)


# The same as by hand


def by_hand(prompts: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Greedy, a row at a time: (T,) ids -> logits (V,) of the next."""
    rows = []
    for prompt in prompts:
        text = prompt.tolist()
        while len(text) < len(prompt) + N and EOS not in text[len(prompt) :]:
            logits = logits_of(torch.tensor(text))
            logits[[0, 2, 3]] = -torch.inf  # PAD, MASK, BOS
            text.append(int(logits[: SHAPES.vocab_size].argmax()))
        rows.append(text[len(prompt) :] + [PAD] * (len(prompt) + N - len(text)))
    return torch.tensor(rows)


@torch.no_grad()
@pytest.mark.parametrize("stem", ["clm", "gpt_bert", "mixture"])
def test_greedy_text_of_a_causal_model_is_its_argmax_rolled_out(stem: str):
    model = make_far(stem)
    expected = by_hand(PROMPTS, lambda text: model.head(model.backbone(text[None], causal=True))[0, -1])
    assert torch.equal(write(model), expected)
    assert len(set(expected.flatten().tolist())) > 3


@torch.no_grad()
def test_a_prefix_lm_reads_the_prompt_as_its_prefix():
    model, prefix = make_far("prefix_lm"), torch.tensor([PROMPTS.shape[1]])
    expected = by_hand(
        PROMPTS, lambda text: model.head(model.backbone(text[None], causal=False, prefix=prefix))[0, -1]
    )
    assert torch.equal(write(model), expected)


@torch.no_grad()
def test_a_causal_reference_writes_as_the_same_weights_do_here():
    model = make_far("clm")
    backbone = Transformer(SHAPES.model, SHAPES.vocab_size)
    backbone.load_state_dict(model.backbone.state_dict())
    backbone.is_causal, backbone.is_lossless = True, True
    head = PredictionHead(backbone.embedding)
    head.load_state_dict(model.head.state_dict())
    options = Reference.Options(modality="none", attention="own", pooling="mean")
    reference = Reference(options, shapes=SHAPES, optimizer=OPTIM, core=Core(backbone, head))
    assert torch.equal(write(reference.eval(), sampling=NUCLEUS), write(model, sampling=NUCLEUS))


@torch.no_grad()
@pytest.mark.parametrize("stem", ["span_corruption", "ul2"])
def test_a_closed_span_joins_the_prompt_and_the_next_one_begins(stem: str):
    model: Any = make_far(stem)
    model.head.decoder.bias[EOS] += 1.5  # spans close here and there, some at once
    mode = [model.mode_ids["S"]] if stem == "ul2" else []
    first = SHAPES.vocab_size

    def span(text: list[int], room: int) -> list[int]:
        context = model.backbone(torch.tensor([[*mode, *text, first]]), causal=False)
        decoded = [BOS, first]
        while len(decoded) < 2 + room:
            states = model.decoder(model.backbone.embedding(torch.tensor([decoded])), context)
            logits = model.head(states)[0, -1]
            logits[[0, 2, 3]] = -torch.inf
            decoded.append(int(logits[:first].argmax()))
            if decoded[-1] == EOS:
                break
        return decoded[2:]

    spans = []
    for prompt, found in zip(PROMPTS.tolist(), write(model).tolist(), strict=True):
        text = list(prompt)
        while len(text) < len(prompt) + N:
            written = span(text, len(prompt) + N - len(text))
            spans.append(len(written))
            words = [token for token in written if token != EOS]
            text += words or [EOS]
            if not words:
                break
        rest = text[len(prompt) :]
        assert found == rest + [PAD] * (N - len(rest))
    assert max(spans) > 1
    assert len(spans) > len(PROMPTS)  # some text has more spans than one


# What holds for every way


@every_writer
@both_ways
def test_the_same_seed_gives_the_same_text_and_another_another(stem: str, sampling: Sampling):
    model = make_far(stem)
    first = write(model, sampling=sampling)
    torch.manual_seed(99)  # the global state has no say
    assert torch.equal(write(model, sampling=sampling), first)
    assert torch.equal(write(model, sampling=sampling, seed=1), first) == (sampling is GREEDY)


@every_writer
@both_ways
def test_texts_do_not_depend_on_padding_or_company(stem: str, sampling: Sampling):
    model = make_far(stem)
    lengths = [2, 5, 2, 3]
    prompts = ragged_tokens(lengths)
    together = write(model, prompts, sampling)
    assert torch.equal(write(model, torch.nn.functional.pad(prompts, (0, 3)), sampling), together)
    numbers = generator()  # as for all rows, in their order
    alone = [
        model.generate(row[None, :length], N, sampling, numbers)
        for row, length in zip(prompts, lengths, strict=True)
    ]
    assert torch.equal(torch.cat(alone), together)


@every_writer
@both_ways
def test_nothing_is_written_but_words_and_one_end(stem: str, sampling: Sampling):
    model: Any = make_far(stem)
    model.head.decoder.bias.data[[PAD, 2, BOS]] += 100.0  # what must not be written is what it wants most
    model.head.decoder.bias.data[SHAPES.vocab_size :] += 100.0  # sentinels and modes
    prompts = torch.randint(N_SPECIAL, SHAPES.vocab_size, (40, 4), generator=generator(3))
    written = write(model, prompts, sampling)
    assert written.shape == (40, N)
    ended = (written == EOS).cumsum(dim=1) > 0
    assert (written[~ended] >= N_SPECIAL).all()
    assert (written < SHAPES.vocab_size).all()
    assert set(written[ended].tolist()) <= {EOS, PAD}
    assert ((written == EOS).sum(dim=1) <= 1).all()


@every_writer
def test_an_end_ends_the_text(stem: str):
    model: Any = make_far(stem)
    model.head.decoder.bias.data[EOS] += 1000.0
    assert write(model).tolist() == [[EOS] + [PAD] * (N - 1)] * len(PROMPTS)


@every_writer
def test_flops_are_those_that_torch_counts(stem: str):
    model, meter = make_far(stem), Meter()
    with (
        meter.reads(model.backbone, SHAPES.model),
        meter.writes(model, SHAPES.model),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        write(model)
    assert meter.flops == counter.get_total_flops()
    counted = meter.flops
    write(model)  # behind the meter
    assert meter.flops == counted


# A source that can be continued right

PERIOD = 7
STEPS = {"clm": 150, "prefix_lm": 150, "mlm": 300, "mntp": 300, "masked_diffusion": 300}
STEPS |= {"span_corruption": 500, "ul2": 500}


def cycle(n: int, seed: int) -> Tensor:
    """(n, T) rows of one cycle of tokens, begun anywhere."""
    start = torch.randint(PERIOD, (n, 1), generator=generator(seed))
    return N_SPECIAL + (start + torch.arange(SHAPES.sequence_length)) % PERIOD


def fitted(stem: str, steps: int) -> Objective:
    model = make_strategy(stem).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    # Linear to zero, so that where it ends does not hang on the processor's rounding.
    decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps)
    for step in range(steps):
        length = SHAPES.sequence_length - step % 8  # so that no place in a row tells what stands there
        batch = model.corrupt_at({"tokens": cycle(32, step)[:, :length]}, generator(step), step / steps)
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.sum / torch.as_tensor(loss.count)).sum().backward()
        optimizer.step()
        decay.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEPS)
@both_ways
def test_a_model_that_learnt_a_cycle_goes_on_with_it(stem: str, sampling: Sampling, cycled: Any):
    rows = cycle(12, seed=1000)
    start = SHAPES.sequence_length - N
    written = cycled(stem).generate(rows[:, :start], N, sampling, generator())
    right = (written == rows[:, start:]).double().mean()
    assert float(right) >= (1.0 if sampling is GREEDY else 0.8)  # a rare draw may be off


@pytest.fixture(scope="module")
def cycled() -> Callable[[str], Objective]:
    """Models that learnt the cycle, each once."""
    made: dict[str, Objective] = {}
    return lambda stem: made.get(stem) or made.setdefault(stem, fitted(stem, STEPS[stem]))


def test_a_mixture_writes_by_a_part_that_has_a_likelihood_and_phases_by_their_last():
    mixture, phases = make_strategy("mixture"), make_strategy("clm_then_mlm")
    assert isinstance(mixture, Combined)
    assert isinstance(phases, Combined)
    assert mixture.writer() is mixture.part("clm")
    assert phases.writer() is phases.part("mlm")
