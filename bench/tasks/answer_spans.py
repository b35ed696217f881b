"""Answer spans: questions -> windows -> pointer logits -> spans of the context.

BERT's recipe for SQuAD (Devlin et al. 2019, arXiv:1810.04805, sec. 4.2 and 4.3), since a context is often
longer than a model's sequence. A window is

    question EOS context EOS

with as much of the context as fits; windows of one context overlap. The question comes first, so that the
context has seen it under causal attention too. The pointers to start and end choose context tokens, or both
choose the closing EOS, which means "not in this window". That is BERT's [CLS], moved to the end, where it has
seen the whole window under any attention.

The score of a span is its log-odds against "not in this window": start + end - (both at the closing EOS).
It is comparable across windows; a span that occurs in several windows has its best score.

Shapes: N questions, W windows, B of them in a batch, C candidates of a window (its context tokens, then the
closing EOS), padded, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from bench.data.tokenizer import EOS
from bench.objectives.base import Attention, Objective
from bench.tasks import probe
from bench.tasks.answers import Question
from bench.tasks.meter import Meter

N_SEPARATORS = 2
TIE_NATS = 1e-5  # scores closer than this are tied, so that rounding never decides an answer
PENALTY = 1 / (2 * 0.1)  # of squared weights, against the summed loss: as in `bench.tasks.probe`
MAX_STEPS = 100
TOLERANCE = 1e-3  # gradient in nats per weight, on a sum over windows
Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class ContextWindows:
    """Windows in the order of their questions, and within a question from left to right."""

    tokens: Tensor  # (W, T) ids, padded on the right
    item: Tensor  # (W,) the question
    column: Tensor  # (W,) where the context starts in the window
    start: Tensor  # (W,) which token of the context stands there
    length: Tensor  # (W,) context tokens
    offsets: list[Offsets]  # N x (tokens of the context, 2): characters of each token
    n_cut_questions: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_candidates(self) -> int:
        """The number of candidates in the longest window, C."""
        return int(self.length.max()) + 1

    def candidates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates' columns (B, C) in windows `index` (B,), and which are real (B, C)."""
        each = torch.arange(int(self.length[index].max()) + 1)
        is_real = each <= self.length[index, None]
        return self.column[index, None] + each.minimum(self.length[index, None]), is_real

    def token_spans(self, questions: Sequence[Question]) -> Tensor:
        """Return the first and last token (N, 2) of the windows' answers; -1 where there is none."""
        pairs = zip(self.offsets, questions, strict=True)
        return torch.tensor([token_span(offsets, question.span) for offsets, question in pairs])

    def holds(self, spans: Tensor) -> Tensor:
        """Return whether each window holds the whole span of its question: (N, 2) -> (W,) bool."""
        first, last = spans[self.item].T
        return (first >= self.start) & (last < self.start + self.length)

    def n_split(self, spans: Tensor) -> int:
        """Count the spans (N, 2) that no window holds whole."""
        return int((spans[:, 0] >= 0).sum()) - len(self.item[self.holds(spans)].unique())

    def targets(self, spans: Tensor) -> Tensor:
        """Convert token spans (N, 2) to target candidates (W, 2).

        The target is the closing EOS where a window does not hold the whole span.
        """
        inside = spans[self.item] - self.start[:, None]
        return torch.where(self.holds(spans)[:, None], inside, self.length[:, None])


def cut_windows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    length: int,
    *,
    max_question_tokens: int,
    step_share: float,
) -> ContextWindows:
    """Encode questions as windows of at most `length` tokens.

    A question is cut to `max_question_tokens`, and never fills more than half of a window. Windows are
    `step_share` of the context tokens that fit apart, so a span of up to 1 - step_share of them is whole in
    some window.
    """
    asked = tokenizer.encode_batch([q.question for q in questions], add_special_tokens=False)
    contexts = tokenizer.encode_batch([q.context for q in questions], add_special_tokens=False)
    kept = min(max_question_tokens, (length - N_SEPARATORS) // 2)
    rows, places = [], []
    for item, (question, context) in enumerate(zip(asked, contexts, strict=True)):
        head = [*question.ids[:kept], EOS]
        room = length - len(head) - 1
        n = len(context.ids)
        step = max(1, int(room * step_share))
        for start in [*range(0, max(0, n - room), step), max(0, n - room)]:
            inside = context.ids[start : start + room]
            rows.append([*head, *inside, EOS])
            places.append((item, len(head), start, len(inside)))
    item, column, first, size = torch.tensor(places).T
    return ContextWindows(
        probe.padded(rows),
        item,
        column,
        first,
        size,
        [np.array(c.offsets, dtype=np.int64).reshape(-1, 2) for c in contexts],
        sum(len(question.ids) > kept for question in asked),
    )


def token_span(offsets: Offsets, span: tuple[int, int] | None) -> tuple[int, int]:
    """Return the first and last token of a span of characters; (-1, -1) if no token overlaps it."""
    if span is None:
        return -1, -1
    first = int(np.searchsorted(offsets[:, 1], span[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], span[1], side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


# States and pointers


def states_at(model: Objective, windows: ContextWindows, index: Tensor, attention: Attention) -> Tensor:
    """Return the states (B, C, D) of the candidates of windows `index` (B,), on the model's device."""
    states = model.states(probe.trimmed(windows.tokens[index]).to(model.device), attention)  # (B, T, D)
    columns, _ = windows.candidates(index)
    return states[torch.arange(len(index))[:, None], columns]


@torch.no_grad()
def frozen_states(
    model: Objective, windows: ContextWindows, attention: Attention, head: nn.Module | None = None
) -> Tensor:
    """Return the states (W, C, D) of all candidates on CPU, or their logits (W, C, 2) under a `head`.

    They are computed in batches of similar length, and zero where padded.
    """
    model.eval()
    width = 2 if head else model.shapes.model.d_model
    found = torch.zeros(len(windows), windows.n_candidates, width)
    for index in windows.length.argsort(stable=True).split(probe.EVALUATION_BATCH):
        states = states_at(model, windows, index, attention)
        rows = (head(states) if head else states).cpu()
        _, is_real = windows.candidates(index)
        found[index, : rows.shape[1]] = rows * is_real[:, :, None]
    return found


def pointer_loss(logits: Tensor, is_real: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of logits (B, C, 2) with real candidates (B, C) and targets (B, 2)."""
    masked = logits.masked_fill(~is_real[:, :, None], -torch.inf)
    return F.cross_entropy(masked, targets, reduction="sum")


@dataclass(frozen=True)
class Pointers:
    """Pointers fitted to frozen states: standardisation, then one weight vector each for start and end."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (D, 2)

    def __call__(self, states: Tensor) -> Tensor:
        """(W, C, D) -> (W, C, 2)."""
        return ((states - self.mean) / self.std) @ self.weight


def fit_pointers(states: Tensor, windows: ContextWindows, targets: Tensor, meter: Meter) -> Pointers:
    """Fit pointers to states (W', C, D) of the first W' windows with targets (W', 2).

    The penalised loss is convex and the fit starts at zero weights, so the result is deterministic.
    """
    _, is_real = windows.candidates(torch.arange(len(states)))
    states = states[:, : is_real.shape[1]]
    real = states[is_real]  # (P, D)
    mean, std = real.mean(dim=0), real.std(dim=0)
    std = torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std))  # for constant features
    standard = (states - mean) / std
    weight = torch.zeros(states.shape[2], 2, requires_grad=True)
    fit = torch.optim.LBFGS(
        [weight], max_iter=MAX_STEPS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        fit.zero_grad()
        value = pointer_loss(standard @ weight, is_real, targets) + PENALTY * weight.square().sum()
        value.backward()
        meter.add(2 * real.numel() * 2)  # a multiply-add for each feature and pointer
        return value

    with torch.enable_grad():
        fit.step(loss)
    return Pointers(mean, std, weight.detach())


def best_spans(logits: Tensor, windows: ContextWindows, max_tokens: int) -> Iterator[tuple[float, Offsets]]:
    """Yield the best log-odds of each question, and the spans that have it: first and last tokens (K, 2).

    `logits` (W, C, 2) are those of start and end. Spans have at most `max_tokens`; K > 1 where spans tie.
    """
    probe.require_numbers(logits)
    rows = logits.double().cpu().numpy()
    bounds = np.searchsorted(windows.item.numpy(), np.arange(len(windows.offsets) + 1))
    starts, lengths = windows.start.numpy(), windows.length.numpy()
    for item, offsets in enumerate(windows.offsets):
        scores = np.full((max_tokens, len(offsets)), -np.inf)  # row k: spans of k + 1 tokens, by first token
        for w in range(bounds[item], bounds[item + 1]):
            n, at = lengths[w], starts[w]
            first, last = (rows[w, :n] - rows[w, n]).T
            for k in range(min(max_tokens, n)):
                there = scores[k, at : at + n - k]
                np.maximum(there, first[: n - k] + last[k:], out=there)
        best = scores.max()
        more, first_token = np.nonzero(scores >= best - TIE_NATS)
        yield float(best), np.stack([first_token, first_token + more], axis=1)
