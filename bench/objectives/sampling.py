"""From what a model finds likely to a text: which token, and in which order the positions are filled.

Pure functions. Randomness comes in as uniform numbers, some for each row, so that what a row becomes does not
depend on the rows beside it. B rows, P prompt positions, N new ones, V vocabulary.
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
        temperature: logits are divided by it; 0: greedy, always the likeliest token.
        top_p: the nucleus (Holtzman et al. 2020, arXiv:1904.09751, sec. 3.1): only the likeliest tokens that
            together have this probability; 1: all.
    """

    temperature: float
    top_p: float


Next = Callable[[Tensor], Tensor]  # (B, T) ids -> logits (B, V) of the token after them
# (B, P) prompts without padding, N, how, (B, N, N or more) uniforms -> (B, N) ids, of any kind behind an EOS
Write = Callable[[Tensor, int, Sampling, Tensor], Tensor]
Fill = Callable[[Tensor, Tensor], Tensor]  # (B, P + N) ids, (B, N) bool of M positions -> their logits (M, V)


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Choose tokens.

    Args:
        logits: (..., V); minus infinity: never chosen.
        uniforms: (...) in [0, 1); of no effect where it is greedy.
        sampling: how.

    Returns:
        (...) ids, and (...) the probability that the model itself gives to each.

    Raises:
        FloatingPointError: logits that are not numbers.
    """
    shares = logits.float().softmax(dim=-1)
    if shares.isnan().any():
        raise FloatingPointError("logits are not numbers; the model diverged")
    if sampling.temperature == 0:
        confidence, ids = shares.max(dim=-1)
        return ids, confidence
    flattened = (logits.float() / sampling.temperature).softmax(dim=-1)
    ids = draw(flattened * nucleus(flattened, sampling.top_p), uniforms)
    return ids, shares.gather(-1, ids[..., None])[..., 0]


def nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Which tokens are in the smallest set of the likeliest that has `top_p`; ties with its last are in.

    Args:
        shares: (..., V) probabilities.
        top_p: in (0, 1].

    Returns:
        (..., V) bool.
    """
    if top_p == 1:
        return shares > 0
    falling = _sorted(shares).flip(-1)
    before = falling.cumsum(dim=-1) - falling  # the probability of all that are likelier
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1
    return shares >= falling.gather(-1, last)


def _sorted(shares: Tensor) -> Tensor:
    """In ascending order. On a CPU numpy sorts five times as fast as torch, which keeps indices too."""
    if shares.is_cuda:
        return shares.sort(dim=-1).values
    return torch.from_numpy(np.sort(shares.numpy(), axis=-1))


def draw(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Draw ids by the inverse of the distribution function.

    Args:
        shares: (..., V), 0 or more; they need not sum to one.
        uniforms: (...) in [0, 1).

    Returns:
        (...) ids, none of share 0.
    """
    cumulated = shares.cumsum(dim=-1)
    whole = cumulated[..., -1:]
    drawn = torch.searchsorted(cumulated, uniforms[..., None] * whole, right=True)[..., 0]
    last = (cumulated < whole).sum(dim=-1)  # rounding may carry a draw beyond it
    return drawn.minimum(last)


def writable(logits: Tensor, vocab_size: int) -> Tensor:
    """Only words and EOS can be written: logits (..., V) with all other ids at minus infinity.

    Ids from `vocab_size` on are a strategy's own (sentinels, modes).
    """
    ids = torch.arange(logits.shape[-1], device=logits.device)
    is_special = (ids < len(SPECIAL_TOKENS)) & (ids != EOS)
    return logits.masked_fill(is_special | (ids >= vocab_size), -torch.inf)


def ended(written: Tensor) -> Tensor:
    """(B, N) ids -> the same with PAD after each row's first EOS."""
    is_end = written == EOS
    return written.masked_fill(is_end.cumsum(dim=1) - is_end.long() > 0, PAD)


def unigram_texts(shares: Tensor, n_rows: int, n_new: int, generator: torch.Generator) -> Tensor:
    """Texts of one that knows only how frequent each token is: (V,) shares -> (B, N) ids."""
    uniforms = torch.rand((n_rows, n_new), generator=generator)
    columns = [draw(shares.expand(n_rows, -1), column) for column in uniforms.unbind(dim=1)]
    return ended(torch.stack(columns, dim=1))


@torch.no_grad()
def by_length(
    write: Write, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Continue prompts of any lengths, those of one length together: a row depends on no other.

    Args:
        write: continues prompts of one length.
        prompts: (B, P) ids, padded with PAD on the right.
        n_new: N.
        sampling: how tokens are chosen.
        generator: on CPU; draws as many numbers for every row.

    Returns:
        (B, N) ids, PAD behind each row's first EOS.
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
    """One token after the other, until every row has ended.

    Args:
        next_logits: of the next token; the whole text is read again for each.
        prompts: (B, P) ids without padding.
        n_new: N.
        sampling: how a token is chosen.
        uniforms: (B, N) in [0, 1).

    Returns:
        (B, N) ids; what stands behind an EOS means nothing.
    """
    tokens = prompts
    for t in range(n_new):
        ids, _ = pick(next_logits(tokens), uniforms[:, t], sampling)
        tokens = torch.cat([tokens, ids[:, None]], dim=1)
        if (tokens[:, prompts.shape[1] :] == EOS).any(dim=1).all():
            break
    written = tokens[:, prompts.shape[1] :]
    return F.pad(written, (0, n_new - written.shape[1]), value=EOS)


def causal_logits(backbone: nn.Module, head: nn.Module, vocab_size: int) -> Next:
    """Of the token after a text, by a model that reads from left to right."""

    def next_logits(tokens: Tensor) -> Tensor:
        last = backbone(tokens, causal=True)[:, -1]  # (B, D)
        return writable(head(last), vocab_size)

    return next_logits


def mask_predict(fill: Fill, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Mask-predict (Ghazvininejad et al. 2019, arXiv:1904.09324, sec. 3): fill all, hide the least certain.

    Every round predicts what is hidden, all of it first; then fewer and fewer of the least probable tokens
    are hidden again, each with the probability of its own last round. As many rounds as tokens: the paper's
    linear decay, with as many passes as from left to right.

    Args:
        fill: logits at hidden positions.
        prompts: (B, P) ids without padding.
        n_new: N.
        sampling: how a token is chosen.
        uniforms: (B, N, N or more) in [0, 1): a row, a round, a position.

    Returns:
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
    """The reverse of masking, a token a round, the most certain first; a token that is shown stays.

    LLaDA (arXiv:2502.09992, sec. 2.4 and alg. 5): all hidden tokens are chosen, and all but the most probable
    are hidden again ("low-confidence remasking"). Arguments and result as of `mask_predict`.
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
