"""Attention within documents: in a packed row, a document has the states that it has alone."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.testing import assert_close
from toy_models import MODEL, SHAPES, generator, ragged_tokens

from bench.config.schema import Model
from bench.data.batches import document_numbers
from bench.data.tokenizer import EOS
from bench.models.transformer import EVERY, Transformer, dense_mask, rule_within

LENGTHS = (5, 1, 8)  # of the documents of a row, EOS included


def packed() -> Tensor:
    """A row of three documents, and one of a single document without an end."""
    tokens = ragged_tokens([sum(LENGTHS)] * 2)
    tokens[1] = 4 + (tokens[1] + 1) % 60
    tokens[0, [4, 5, 13]] = EOS
    return tokens


def make_backbone(model: Model = MODEL) -> Transformer:
    torch.manual_seed(0)
    return Transformer(model, SHAPES.vocab_size).eval()


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("every_layer", [True, False])
def test_a_document_has_the_states_of_the_document_alone(causal: bool, every_layer: bool):
    backbone, tokens = make_backbone(), packed()
    how = {"causal": causal, "every_layer": every_layer}
    states = backbone(tokens, documents=document_numbers(tokens), **how)
    start = 0
    for length in LENGTHS:
        alone = backbone(tokens[:1, start : start + length], **how)
        assert_close(states[..., :1, start : start + length, :], alone, rtol=0, atol=1e-5)
        start += length
    assert_close(states[..., 1:, :, :], backbone(tokens[1:], **how), rtol=0, atol=1e-5)
    across = backbone(tokens, **how)
    assert (states - across)[..., 0, 6:, :].abs().max() > 1e-3


@torch.no_grad()
def test_states_at_chosen_tokens_and_a_prefix_stay_within_their_documents():
    backbone, tokens = make_backbone(), packed()
    numbers, at = document_numbers(tokens), torch.tensor([0, 7, 13, 20])
    states = backbone(tokens, causal=False, documents=numbers)
    chosen = backbone(tokens, causal=False, documents=numbers, at=at)
    assert_close(chosen, states.flatten(0, 1)[at])
    prefix = torch.tensor([9, 3])  # three tokens into the last document
    states = backbone(tokens, causal=False, documents=numbers, prefix=prefix)
    first = backbone(tokens[:1, :5], causal=False)  # wholly in the prefix
    last = backbone(tokens[:1, 6:], causal=False, prefix=torch.tensor([3]))
    assert_close(states[:1, :5], first, rtol=0, atol=1e-5)
    assert_close(states[:1, 6:], last, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_token_of_every_document_is_seen_by_all_and_sees_none():
    numbers = torch.tensor([[EVERY, 0, 0, 1]])
    mask = dense_mask(rule_within(numbers, causal=False), 1, 4, numbers.device)
    expected = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert mask[0, 0].long().tolist() == expected


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["causal", "bidirectional", "prefix"])
def test_flex_attention_by_the_same_rule_gives_the_same_result(kind: str):
    tokens = packed()
    prefix = torch.tensor([9, 3]) if kind == "prefix" else None
    rule = rule_within(document_numbers(tokens), causal=kind == "causal", prefix=prefix)
    q, k, v = torch.randn((3, 2, 2, 14, 16), generator=generator())
    mask = dense_mask(rule, 2, 14, tokens.device)
    blocks = create_block_mask(rule, 2, None, 14, 14, device="cpu", BLOCK_SIZE=4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_close(flex_attention(q, k, v, block_mask=blocks), expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_states_and_gradients_are_those_of_the_cpu():
    model = Model(d_model=64, n_layers=2, n_heads=2, d_ff=96, patch_size=4)
    tokens = packed()
    found = []
    for device in ("cpu", "cuda"):
        backbone = make_backbone(model).to(device)
        states = backbone(tokens.to(device), causal=False, documents=document_numbers(tokens).to(device))
        states.square().sum().backward()
        gradient = backbone.embedding.weight.grad
        assert gradient is not None
        found.append((states.detach().cpu(), gradient.cpu()))
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
