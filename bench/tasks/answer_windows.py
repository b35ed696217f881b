"""Questions cut into windows that a model can read, and pointer logits turned into answers.

BERT's recipe for SQuAD (Devlin et al. 2019, arXiv:1810.04805, sec. 4.2 and 4.3), since a context is often
longer than a model's sequence. A window is

    question EOS context EOS

with as much of the context as fits; windows of a context overlap. The question stands first, so that the
context has seen it with causal attention too. The pointers to start and end choose tokens of the context, or
both the closing EOS: "not in this window". That is BERT's [CLS], moved to the end, where it has seen all
whatever the attention.

A span's score is its log-odds against "not in this window": start + end - (both at the closing EOS). By it
spans are compared across windows; one that stands in several windows has its best score.

Shapes: N questions, W windows, C candidates of a window (its context tokens, then the closing EOS), padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bench.data.tokenizer import EOS, PAD
from bench.tasks.answers import Question

N_SEPARATORS = 2
TIE_NATS = 1e-5  # scores nearer than this are equal; rounding must not choose an answer
Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows in the order of their questions, and within one from left to right."""

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
        """Of the longest window, C."""
        return int(self.length.max()) + 1

    def candidates(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Of the windows `index` (B,): columns (B, C), in range where padded; and which are real, (B, C)."""
        each = torch.arange(int(self.length[index].max()) + 1)
        is_real = each <= self.length[index, None]
        return self.column[index, None] + each.minimum(self.length[index, None]), is_real

    def token_spans(self, questions: Sequence[Question]) -> Tensor:
        """Where the answers of the windows' questions stand: (N, 2) first and last tokens, -1 for nowhere."""
        pairs = zip(self.offsets, questions, strict=True)
        return torch.tensor([token_span(offsets, question.span) for offsets, question in pairs])

    def holds(self, spans: Tensor) -> Tensor:
        """Does each window hold the whole span of its question? (N, 2) -> (W,) bool."""
        first, last = spans[self.item].T
        return (first >= self.start) & (last < self.start + self.length)

    def n_parted(self, spans: Tensor) -> int:
        """Spans (N, 2) that are whole in no window."""
        return int((spans[:, 0] >= 0).sum()) - len(self.item[self.holds(spans)].unique())

    def targets(self, spans: Tensor) -> Tensor:
        """Token spans (N, 2), first and last, -1 for none -> candidates (W, 2) to point to.

        The closing EOS where a window does not hold the whole span.
        """
        inside = spans[self.item] - self.start[:, None]
        return torch.where(self.holds(spans)[:, None], inside, self.length[:, None])


def cut(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    length: int,
    *,
    max_question_tokens: int,
    step_share: float,
) -> Windows:
    """Windows of at most `length` tokens.

    Args:
        max_question_tokens: the rest of a question is dropped; it never has more than half of a window.
        step_share: from one window to the next, as a share of the context tokens that fit. A span of up to
            1 - step_share of them is whole in some window.
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
    width = max(map(len, rows))
    item, column, first, size = torch.tensor(places).T
    return Windows(
        torch.tensor([row + [PAD] * (width - len(row)) for row in rows]),
        item,
        column,
        first,
        size,
        [np.array(c.offsets, dtype=np.int64).reshape(-1, 2) for c in contexts],
        sum(len(question.ids) > kept for question in asked),
    )


def token_span(offsets: Offsets, span: tuple[int, int] | None) -> tuple[int, int]:
    """The first and last token that hold a span of characters; (-1, -1) if none does."""
    if span is None:
        return -1, -1
    first = int(np.searchsorted(offsets[:, 1], span[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], span[1], side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


def best_spans(logits: Tensor, windows: Windows, max_tokens: int) -> Iterator[tuple[float, Offsets]]:
    """For each question the score of the best span, and the spans that have it.

    Args:
        logits: (W, C, 2) of start and end.
        max_tokens: of a span.

    Yields:
        Log-odds, and (K, 2) first and last tokens of the context: K is 1, or more where spans tie.

    Raises:
        FloatingPointError: a logit is not a number.
    """
    if logits.isnan().any():
        raise FloatingPointError("pointer logits are not numbers; the model or the fit diverged")
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
