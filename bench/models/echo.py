"""What a completions server answers: text, token counts, the probabilities of an echoed prompt. No torch.

Wire format: OpenAI's API reference, "The completion object". A server's spelling of tokens that are not whole
characters differs; everything else is held against the text that was asked about.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from bench.errors import DataError

Answer = dict[str, Any]
PART_OF_CHARACTER = re.compile("\ufffd|^bytes:|^$")  # how servers spell a token that is no whole UTF-8


@dataclass(frozen=True)
class Scored:
    """The tokens of a text after its first one, which no API gives a probability."""

    log_probabilities: tuple[float, ...]  # nats, each given all that is before it
    n_bytes: int  # UTF-8 bytes of these tokens

    @property
    def nll(self) -> float:
        """Their negative log-likelihood in nats."""
        return -math.fsum(self.log_probabilities)


def text_of(answer: Answer) -> str:
    """The text of the only choice."""
    (choice,) = answer["choices"]
    if not isinstance(choice["text"], str):
        raise DataError("an answer without text")
    return choice["text"]


def token_counts(answer: Answer) -> tuple[int, int]:
    """Tokens of the prompt and of the completion, as the server bills them."""
    usage = answer["usage"]
    counts = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise DataError(f"token counts that are no counts: {counts}")
    return counts


def scored(answer: Answer, prompt: str, text: str) -> Scored:
    """The scored tokens of `text` in the answer to an echo of `prompt + text`.

    Raises:
        DataError: no echo, no probabilities, or tokens that are not those of the text.
    """
    whole = prompt + text
    logprobs = answer["choices"][0].get("logprobs")
    if not text_of(answer).startswith(whole) or not logprobs:
        raise DataError("this server does not score a prompt (echo with logprobs); ask one that does")
    n_tokens = token_counts(answer)[0]
    tokens, values, offsets = (logprobs[key] for key in ("tokens", "token_logprobs", "text_offset"))
    if not len(tokens) == len(values) == len(offsets) or not 2 <= n_tokens <= len(tokens):
        raise DataError(
            f"{len(tokens)} tokens, {len(values)} log-probabilities and {len(offsets)} offsets for a text of "
            f"{n_tokens} tokens; two are the fewest"
        )
    if values[0] is not None or not all(_is_log_probability(value) for value in values[1:n_tokens]):
        raise DataError("log-probabilities that are not null for the first token and finite, at most 0, then")
    if offsets != sorted(offsets) or offsets[0] != 0:
        raise DataError("text offsets that do not begin at 0 or go back")
    spans = _spans(tokens[:n_tokens], whole)
    first = next((i for i, (_, end) in enumerate(spans) if i and end > len(prompt)), None)
    if first is None:
        raise DataError("no token after the prompt")
    return Scored(tuple(values[first:n_tokens]), len(whole[spans[first][0] :].encode()))


def _spans(tokens: list[str], text: str) -> list[tuple[int, int]]:
    """Start and end of each token in `text`; (0, 0) for the token before all texts that some models have."""
    spans = _aligned(tokens, text)
    if spans is None:
        rest = _aligned(tokens[1:], text)
        spans = None if rest is None else [(0, 0), *rest]
    if spans is None:
        raise DataError("tokens that do not spell the text")
    return spans


def _aligned(tokens: list[str], text: str) -> list[tuple[int, int]] | None:
    """Start and end of each token; tokens that are parts of characters share those of all in a row."""
    spans: list[tuple[int, int]] = []
    position, n_parts, n_most = 0, 0, 0  # parts in a row so far, and the characters that they are at most
    for token in tokens:
        if PART_OF_CHARACTER.search(token) and not (token and text.startswith(token, position)):
            n_parts, n_most = n_parts + 1, n_most + len(token)
            continue
        start = text.find(token, position + bool(n_most), position + n_most + len(token))
        if start < 0:
            return None
        end = start + len(token)
        spans += [(position, start if n_most else end)] * n_parts + [(start, end)]
        position, n_parts, n_most = end, 0, 0
    if not bool(n_most) <= len(text) - position <= n_most:
        return None
    return spans + [(position, len(text))] * n_parts


def _is_log_probability(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value <= 0
