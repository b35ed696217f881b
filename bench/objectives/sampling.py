"""Write text from a model's logits: how a token is chosen, and in which order tokens are filled in.

Pure functions. Random numbers are arguments, drawn for each row, so that a row's text does not depend on the
other rows. B rows, P prompt tokens, N new tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.tokenizer import EOS, MASK, PAD, SPECIAL_TOKENS


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: logits are divided by it; 0: greedy, always the most likely token.
        top_p: nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751, sec. 3.1): draw only from the most
            likely tokens that together have this probability; 1: from all.
    """

    temperature: float
    top_p: float


Next = Callable[[Tensor], Tensor]  # (B, T) ids -> logits (B, V) of the token after them
# (B, P) prompts without padding, N, sampling, (B, N, N or more) uniforms -> (B, N) ids, undefined after EOS
Write = Callable[[Tensor, int, Sampling, Tensor], Tensor]
Fill = Callable[[Tensor, Tensor], Tensor]  # (B, P + N) ids, (B, N) bool with M True -> logits (M, V)


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Choose tokens.

    Args:
        logits: (..., V); minus infinity: never chosen.
        uniforms: (...) in [0, 1); not used by greedy sampling.
        sampling: temperature and nucleus.

    Returns:
        (...) ids, and (...) their probabilities under the model, before temperature and nucleus.

    Raises:
        FloatingPointError: logits are NaN.
    """
    p = logits.float().softmax(dim=-1)
    if p.isnan().any():
        raise FloatingPointError("logits are NaN; the model diverged")
    if sampling.temperature == 0:
        confidence, ids = p.max(dim=-1)
        return ids, confidence
    flattened = (logits.float() / sampling.temperature).softmax(dim=-1)
    ids = draw(flattened * nucleus(flattened, sampling.top_p), uniforms)
    return ids, p.gather(-1, ids[..., None])[..., 0]


def nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Return which tokens are in the smallest set of the most likely ones that has `top_p`, ties included.

    shares: (..., V) probabilities; top_p: in (0, 1] -> (..., V) bool.
    """
    if top_p == 1:
        return shares > 0
    falling = _sorted(shares).flip(-1)
    before = falling.cumsum(dim=-1) - falling  # the probability of all that are more likely
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1
    return shares >= falling.gather(-1, last)


def _sorted(shares: Tensor) -> Tensor:
    """Sort in ascending order. On a CPU numpy is five times as fast as torch, which also returns indices."""
    if shares.is_cuda:
        return shares.sort(dim=-1).values
    return torch.from_numpy(np.sort(shares.numpy(), axis=-1))


def draw(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Draw ids by inverting the distribution function; ids of share 0 are never drawn.

    shares: (..., V), 0 or more, their sum need not be one; uniforms: (...) in [0, 1) -> (...) ids.
    """
    cumulated = shares.cumsum(dim=-1)
    whole = cumulated[..., -1:]
    drawn = torch.searchsorted(cumulated, uniforms[..., None] * whole, right=True)[..., 0]
    last = (cumulated < whole).sum(dim=-1)  # rounding may put a draw after it
    return drawn.minimum(last)


def writable(logits: Tensor, vocab_size: int) -> Tensor:
    """Set logits (..., V) of all ids that cannot be written to minus infinity.

    These are special tokens except EOS, and a strategy's own ids (sentinels, modes) from `vocab_size` on.
    """
    ids = torch.arange(logits.shape[-1], device=logits.device)
    is_special = (ids < len(SPECIAL_TOKENS)) & (ids != EOS)
    return logits.masked_fill(is_special | (ids >= vocab_size), -torch.inf)


def ended(written: Tensor) -> Tensor:
    """Replace everything after each row's first EOS by PAD: (B, N) ids -> (B, N) ids."""
    is_end = written == EOS
    return written.masked_fill(is_end.cumsum(dim=1) - is_end.long() > 0, PAD)


def unigram_texts(shares: Tensor, n_rows: int, n_new: int, generator: torch.Generator) -> Tensor:
    """Draw texts from token frequencies alone: (V,) shares -> (B, N) ids."""
    uniforms = torch.rand((n_rows, n_new), generator=generator)
    columns = [draw(shares.expand(n_rows, -1), column) for column in uniforms.unbind(dim=1)]
    return ended(torch.stack(columns, dim=1))


@torch.no_grad()
def by_length(
    write: Write, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Continue prompts of any lengths, those of one length together, so that no row depends on another.

    prompts: (B, P) ids, padded with PAD on the right -> (B, N) ids, PAD after each row's first EOS. The
    generator, on the CPU, draws equally many numbers for every row.
    """
    uniforms = torch.rand((len(prompts), n_new, max(2, n_new)), generator=generator).to(prompts.device)
    lengths = (prompts != PAD).sum(dim=1)
    written = prompts.new_full((len(prompts), n_new), PAD)
    for length in lengths.unique().tolist():
        rows = lengths == length
        written[rows] = write(prompts[rows, :length], n_new, sampling, uniforms[rows])
    return ended(written)


def left_to_right(
    next_logits: Next, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor
) -> Tensor:
    """Write one token after the other, until every row has ended; every token reads the whole text again.

    prompts: (B, P) ids without padding; uniforms: (B, N) in [0, 1) -> (B, N) ids, undefined after EOS.
    """
    tokens = prompts
    for t in range(n_new):
        ids, _ = pick(next_logits(tokens), uniforms[:, t], sampling)
        tokens = torch.cat([tokens, ids[:, None]], dim=1)
        if (tokens[:, prompts.shape[1] :] == EOS).any(dim=1).all():
            break
    written = tokens[:, prompts.shape[1] :]
    return F.pad(written, (0, n_new - written.shape[1]), value=EOS)


def write_causally(
    backbone: nn.Module,
    head: nn.Module,
    vocab_size: int,
    prompts: Tensor,
    n_new: int,
    sampling: Sampling,
    uniforms: Tensor,
) -> Tensor:
    """Write from left to right by a causal model, as `Write` does."""

    def next_logits(tokens: Tensor) -> Tensor:
        last = backbone(tokens, causal=True)[:, -1]  # (B, D)
        return writable(head(last), vocab_size)

    return left_to_right(next_logits, prompts, n_new, sampling, uniforms[:, :, 0])


def masked_logits(backbone: nn.Module, head: nn.Module, vocab_size: int, n_new: int, shift: int = 0) -> Fill:
    """Return the `Fill` of a bidirectional model that predicts a masked token `shift` tokens to its left."""

    def fill(tokens: Tensor, hidden: Tensor) -> Tensor:
        end = tokens.shape[1] - shift
        states = backbone(tokens, causal=False)[:, end - n_new : end]  # (B, N, D)
        return writable(head(states[hidden]), vocab_size)

    return fill


def mask_predict(fill: Fill, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Write by mask-predict (Ghazvininejad et al. 2019, arXiv:1904.09324, sec. 3).

    The first round predicts all tokens. Every further round masks the least probable ones again, by the
    probability from the round that wrote them, and predicts these; there are fewer in each round, by the
    paper's linear decay. N rounds need as many forward passes as writing from left to right.

    prompts: (B, P) ids without padding; uniforms: (B, N, N or more) in [0, 1), for rows, rounds and tokens ->
    (B, N) ids.
    """
    written = prompts.new_full((len(prompts), n_new), MASK)
    confidence = torch.zeros(written.shape, device=prompts.device)
    for t in range(n_new):
        hidden = confidence.argsort(dim=1, stable=True).argsort(dim=1) < n_new - t
        shown = torch.cat([prompts, written.masked_fill(hidden, MASK)], dim=1)
        ids, found = pick(fill(shown, hidden), uniforms[:, t, :n_new][hidden], sampling)
        written = written.masked_scatter(hidden, ids)
        confidence = confidence.masked_scatter(hidden, found)
    return written


def unmask(fill: Fill, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Write one token per round, the most probable first; a written token stays.

    LLaDA (arXiv:2502.09992, sec. 2.4 and alg. 5) chooses all masked tokens, then masks all but the most
    probable again ("low-confidence remasking"). Arguments and result are those of `mask_predict`.
    """
    written = prompts.new_full((len(prompts), n_new), MASK)
    for t in range(n_new):
        hidden = written == MASK
        logits = fill(torch.cat([prompts, written], dim=1), hidden)
        ids, found = pick(logits, uniforms[:, t, :n_new][hidden], sampling)
        chosen = written.masked_scatter(hidden, ids)
        confidence = torch.full(written.shape, -1.0, device=prompts.device).masked_scatter(hidden, found)
        best = confidence.argmax(dim=1, keepdim=True)  # (B, 1)
        written = written.scatter(1, best, chosen.gather(1, best))
    return written
