"""Client of an OpenAI-compatible completions server: cached answers, a cost limit. No torch.

Wire format: OpenAI's API reference, "Create a completion" (POST <base_url>/completions) and "The completion
object". Log-likelihoods use `echo` with `logprobs`, which vLLM and llama-cpp-python support as well. Servers
differ in how they spell tokens that are not whole characters; all else is checked against the requested text.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from annotated_types import Interval
from omegaconf import MISSING

from bench.config.bounds import Checked, NonNegative, OptionError, Text
from bench.config.checks import refuse_secrets
from bench.config.installation import check_installed
from bench.data.json_text import JsonError, parse_json
from bench.errors import ConfigError, DataError
from bench.records import write_atomically

if TYPE_CHECKING:
    from openai import APIError, OpenAI

T = TypeVar("T")
Answer = dict[str, Any]
PRICES = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
NO_KEY = "no-key"  # the client requires a key
PART_OF_CHARACTER = re.compile("\ufffd|^bytes:|^$")  # how servers spell a token that is not whole UTF-8
# Raised when an answer does not have the expected shape.
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass  # not frozen: OmegaConf cannot merge into a frozen dataclass inside another
class Access:
    """How to reach a server and what it may cost, in any one currency. No answer depends on it."""

    key_variable: Text | None = MISSING  # environment variable that holds the key; null: no key
    # null: free, for a server on this machine only.
    price_per_million_prompt_tokens: NonNegative | None = MISSING
    price_per_million_completion_tokens: NonNegative | None = MISSING
    max_cost: NonNegative = MISSING  # of a run, over all its processes; what could exceed it is not sent
    timeout_s: Annotated[float, Interval(ge=1e-3, le=10**7)] = MISSING  # of one attempt, to the last byte
    # After a failed connection, a timeout, HTTP 408, 409, 429 or 5xx.
    max_retries: Annotated[int, Interval(ge=0, le=1000)] = MISSING

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of these tokens."""
        prompt, completion = (getattr(self, name) or 0.0 for name in PRICES)
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


@dataclass(frozen=True)
class Served(Checked):
    """A model and the server that provides it."""

    usual_key: ClassVar[str] = "strategy"

    base_url: Text = MISSING  # without /completions
    model: Text = MISSING  # the server's name of the model
    access: Access = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_secrets("strategy", asdict(self))
        url = urlsplit(self.base_url)
        is_address = url.scheme in ("http", "https") and bool(url.hostname)
        self.require(is_address, "base_url", "use an address such as https://HOST/v1")
        unpriced = [name for name in PRICES if getattr(self.access, name) is None]
        if unpriced and url.hostname not in THIS_MACHINE:
            raise OptionError(
                unpriced[0],
                None,
                f"set the price of {url.hostname}; 0 if it is free",
                f"{self.usual_key}.access",
            )


@dataclass(frozen=True)
class Scored:
    """The tokens of a text except its first one, for which no API returns a probability."""

    log_probabilities: tuple[float, ...]  # in nats, each given all tokens before it
    n_bytes: int  # UTF-8 bytes of these tokens

    @property
    def nll(self) -> float:
        """Their negative log-likelihood in nats."""
        return -math.fsum(self.log_probabilities)


@dataclass
class Usage:
    """Requests, tokens and cost of a run over its whole life, in however many processes."""

    requests: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    cost_of_cached: float = 0.0  # paid earlier, by this run or another, for the answers in `from_cache`


class Endpoint:
    """A model behind an API.

    Answers are kept in `folder`, one file per request, and never paid for twice. The key leaves this object
    only in the header of a request.
    """

    def __init__(self, served: Served, folder: Path, ledger: Path | None = None) -> None:
        self.served = served
        self.folder = folder
        self.ledger = ledger  # the run's file of its usage; None: the usage of this process alone
        self.usage = Usage() if ledger is None else _read_usage(ledger)

    def log_likelihood(self, text: str, *, prompt: str = "") -> Scored:
        """Score `text` after `prompt`; without a prompt, after the text's own first token.

        A token with characters of both counts as part of `text`.

        Raises:
            ConfigError: the server is down or refuses, or the request could exceed `max_cost`.
            DataError: the answer does not follow the API, or the server does not score prompts.
        """
        # Some servers refuse max_tokens=0, and some read it as "no limit": request one token and drop it.
        request = {"prompt": prompt + text, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        return self._request(request, lambda answer: scored(answer, prompt, text))

    def _request(self, request: dict[str, Any], parse: Callable[[Answer], T]) -> T:
        """Return the parsed answer, from the cache if it is there and undamaged."""
        asked = {"base_url": self.served.base_url.rstrip("/"), "model": self.served.model, "request": request}
        path = self.folder / f"{_digest(asked)}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["sha256"] == _digest(stored["answer"]):
                result = parse(stored["answer"])
                paid = stored.get("cost", self.served.access.cost(*token_counts(stored["answer"])))
                self.usage.from_cache += 1
                self.usage.cost_of_cached += paid
                return result
        except (OSError, DataError, *MALFORMED):
            pass  # absent or damaged: request it again
        self._check_cost(request)
        answer = self._send(request)
        try:
            cost = self._count(answer)
            result = parse(answer)
        except MALFORMED as error:
            raise DataError(
                f"{self._server}: the answer does not follow the completions API "
                f"({type(error).__name__}: {error})"
            ) from None
        except DataError as error:
            raise DataError(f"{self._server}: {error}") from None
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, json.dumps(asked | {"answer": answer, "sha256": _digest(answer), "cost": cost})
        )
        return result

    def _check_cost(self, request: dict[str, Any]) -> None:
        # A token has a byte or more, and the server may put one in front of the text.
        most_tokens = len(request["prompt"].encode()) + 1
        cost, limit = self.served.access.cost(most_tokens, request["max_tokens"]), self.served.access.max_cost
        if self.usage.cost + cost > limit:
            raise ConfigError(
                f"strategy.access.max_cost={limit:g}: {self.usage.cost:.6g} is spent and the next request "
                f"may cost {cost:.6g}; raise it, the answers so far are kept"
            )

    def _count(self, answer: Answer) -> float:
        """Add an answer to the run's usage, before anything else is done with it; return its cost."""
        prompt_tokens, completion_tokens = token_counts(answer)
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        cost = self.served.access.cost(prompt_tokens, completion_tokens)
        self.usage.cost += cost
        if self.ledger is not None:
            write_atomically(self.ledger, json.dumps(asdict(self.usage)))
        return cost

    def _send(self, request: dict[str, Any]) -> Answer:
        create = self._client.completions.with_raw_response.create
        try:
            content = create(model=self.served.model, **request).content
        except _openai().APIError as error:
            raise self._explained(error) from None  # its traceback may quote the key
        try:
            answer = parse_json(content)
        except JsonError as error:
            raise DataError(f"{self._server}: the answer is {error}; use an OpenAI-compatible API") from None
        known = ("choices", "usage")
        return {key: answer[key] for key in known if key in answer} if isinstance(answer, dict) else {}

    @cached_property
    def _client(self) -> "OpenAI":
        openai = _openai()
        from bench.models.bounded_client import BoundedClient  # httpx comes with openai

        return openai.OpenAI(
            http_client=BoundedClient(self.served.access.timeout_s),
            api_key=self._key,
            base_url=self.served.base_url,
            timeout=self.served.access.timeout_s,
            max_retries=self.served.access.max_retries,
        )

    @property
    def _key(self) -> str:
        variable = self.served.access.key_variable
        key = NO_KEY if variable is None else os.environ.get(variable, "")
        if not re.fullmatch("[!-~]+", key):
            raise ConfigError(
                f"strategy.access.key_variable={variable}: this environment variable is not set, or contains "
                "spaces or characters that are not ASCII; set it to the key"
            )
        return key

    @property
    def _server(self) -> str:
        return f"strategy.base_url={self.served.base_url}"

    def _explained(self, error: "APIError") -> ConfigError:
        """Return the error as one line that says what to change."""
        openai, access, tries = _openai(), self.served.access, 1 + self.served.access.max_retries
        status = getattr(error, "status_code", None)
        details = " ".join(error.message.replace(self._key, "[key]").split())[:200]
        if isinstance(error, openai.APITimeoutError):
            problem = (
                f"no answer within strategy.access.timeout_s={access.timeout_s:g} in {tries} tries; raise it"
            )
        elif type(error.__cause__).__name__ == "AnswerTooLargeError":
            problem = "sends more than 64 MB as one answer; use an OpenAI-compatible API"
        elif status is not None and 300 <= status < 400:
            problem = f"redirects (HTTP {status}), and no prompt is sent on; correct the address"
        elif status is None:
            problem = f"cannot be reached in {tries} tries; start the server or correct the address"
        elif status in (401, 403):
            where = f"strategy.access.key_variable={access.key_variable}"
            problem = f"refuses the key (HTTP {status}); put a valid key into the variable of {where}"
        elif status == 404:
            problem = (
                f"has no strategy.model={self.served.model}, or no /completions (HTTP 404); correct either"
            )
        elif status == 429 or status >= 500:
            problem = (
                f"HTTP {status} in {tries} tries; wait, or raise strategy.access.max_retries ({details})"
            )
        else:
            problem = f"refuses the request to strategy.model={self.served.model} (HTTP {status}: {details})"
        return ConfigError(f"{self._server}: {problem}")


def text_of(answer: Answer) -> str:
    """Return the text of the only choice."""
    (choice,) = answer["choices"]
    if not isinstance(choice["text"], str):
        raise DataError("the answer has no text")
    return choice["text"]


def token_counts(answer: Answer) -> tuple[int, int]:
    """Return the billed tokens of the prompt and of the completion."""
    usage = answer["usage"]
    counts = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    if not all(type(count) is int and count >= 0 for count in counts):
        raise DataError(f"token counts must be whole numbers of 0 or more, got {counts}")
    return counts


def scored(answer: Answer, prompt: str, text: str) -> Scored:
    """Return the scored tokens of `text` from the answer to an echo of `prompt + text`.

    Raises:
        DataError: no echo, no probabilities, or tokens that are not those of the text.
    """
    whole = prompt + text
    logprobs = answer["choices"][0].get("logprobs")
    if not text_of(answer).startswith(whole) or not logprobs:
        raise DataError("this server does not score a prompt (echo with logprobs); use one that does")
    n_tokens = token_counts(answer)[0]
    tokens, values, offsets = (logprobs[key] for key in ("tokens", "token_logprobs", "text_offset"))
    if not len(tokens) == len(values) == len(offsets) or not 2 <= n_tokens <= len(tokens):
        raise DataError(
            f"{len(tokens)} tokens, {len(values)} log-probabilities and {len(offsets)} offsets for a text of "
            f"{n_tokens} tokens; expected as many of each, and two tokens or more"
        )
    if values[0] is not None or not all(_is_log_probability(value) for value in values[1:n_tokens]):
        raise DataError("log-probabilities must be null for the first token, then finite and at most 0")
    if offsets != sorted(offsets) or offsets[0] != 0 or not all(type(at) is int for at in offsets):
        raise DataError("text offsets must be whole numbers that begin at 0 and do not decrease")
    spans = _spans(tokens[:n_tokens], whole)
    first = next((i for i, (_, end) in enumerate(spans) if i and end > len(prompt)), None)
    if first is None:
        raise DataError("the answer has no token after the prompt")
    return Scored(tuple(values[first:n_tokens]), len(whole[spans[first][0] :].encode()))


def _spans(tokens: list[str], text: str) -> list[tuple[int, int]]:
    """Return start and end of each token in `text`; (0, 0) for a token that the model puts before texts."""
    spans = _aligned(tokens, text)
    if spans is None:
        rest = _aligned(tokens[1:], text)
        spans = None if rest is None else [(0, 0), *rest]
    if spans is None:
        raise DataError("the tokens do not spell the text")
    return spans


def _aligned(tokens: list[str], text: str) -> list[tuple[int, int]] | None:
    """Return start and end of each token; adjacent tokens that are parts of characters share one span."""
    spans: list[tuple[int, int]] = []
    position, n_parts, n_most = 0, 0, 0  # adjacent parts so far, and the most characters they can make up
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
    return type(value) in (int, float) and math.isfinite(value) and value <= 0  # type: ignore[arg-type,operator]


def _read_usage(ledger: Path) -> Usage:
    """Return the usage of a run so far; raise ConfigError if its file is damaged."""
    try:
        usage = Usage(**json.loads(ledger.read_text(encoding="utf-8")))
        if not (math.isfinite(usage.cost) and usage.cost >= 0):
            raise ValueError("cost")
    except FileNotFoundError:
        return Usage()
    except MALFORMED:
        raise ConfigError(
            f"{ledger}: damaged, so what this run has spent is not known; delete it to count from 0"
        ) from None
    return usage


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _openai() -> Any:
    check_installed("openai", "strategy=endpoint")
    import openai

    return openai
