"""Client of an OpenAI-compatible completions server: answers cached, cost capped, shapes checked. No torch.

Wire format: OpenAI's API reference, "Create a completion": POST <base_url>/completions. Log-likelihoods are
those of `echo` with `logprobs`, which vLLM and llama-cpp-python serve as well.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from omegaconf import MISSING

from bench.config.checks import refuse_secrets
from bench.errors import ConfigError, DataError
from bench.models.echo import Answer, Scored, scored, text_of, token_counts
from bench.records import write_atomically

if TYPE_CHECKING:
    from openai import APIError, OpenAI

T = TypeVar("T")
PRICES = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
NO_KEY = "no-key"  # the client insists on one
# What reading an answer of the wrong shape raises.
MISSHAPEN = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass  # not frozen: OmegaConf merges into no frozen dataclass inside of another
class Access:
    """How a server is reached and what it may cost; no answer depends on it. Money is in any one currency."""

    key_variable: str | None = MISSING  # name of the environment variable that holds the key; null: no key
    price_per_million_prompt_tokens: float | None = MISSING  # null: free, for a server on this machine only
    price_per_million_completion_tokens: float | None = MISSING
    max_cost: float = MISSING  # of one run; no request is sent that could pass it
    timeout_s: float = MISSING  # of one try
    max_retries: int = MISSING  # after no connection, no answer in time, HTTP 408, 409, 429 or 5xx

    def __post_init__(self) -> None:
        lows = {"max_cost": 0, "timeout_s": 1e-3, "max_retries": 0} | dict.fromkeys(PRICES, 0)
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"strategy.access.{name}={value}: use {low} or more")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of this many tokens."""
        prompt, completion = (getattr(self, name) or 0.0 for name in PRICES)
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


@dataclass(frozen=True)
class Served:
    """A model and the server that answers for it."""

    base_url: str = MISSING  # up to and without /completions
    model: str = MISSING  # as the server names it
    access: Access = MISSING

    def __post_init__(self) -> None:
        refuse_secrets("strategy", asdict(self))
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"strategy.base_url={self.base_url!r}: use an address such as https://HOST/v1")
        unpriced = [name for name in PRICES if getattr(self.access, name) is None]
        if unpriced and url.hostname not in THIS_MACHINE:
            raise ConfigError(
                f"strategy.access.{unpriced[0]}: state the price of {url.hostname}; 0 if it is free"
            )


@dataclass
class Usage:
    """What a run asked for so far; answers from the cache cost nothing."""

    requests: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Endpoint:
    """A model behind an API.

    Answers are kept in `folder`, one file per request, and never paid twice. The key leaves this object
    only in the header of a request.
    """

    def __init__(self, served: Served, folder: Path) -> None:
        self.served = served
        self.folder = folder
        self.usage = Usage()

    def completion(self, prompt: str, *, max_tokens: int, temperature: float = 0.0) -> str:
        """The text that the model writes after `prompt`.

        Raises:
            ConfigError: the server is down or refuses, or the request could pass `max_cost`.
            DataError: the answer is not what the API promises.
        """
        request = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
        return self._ask(request, text_of)

    def log_likelihood(self, text: str, *, prompt: str = "") -> Scored:
        """What the model gives `text` after `prompt`; without a prompt, after the text's own first token.

        A token with characters of both counts as one of `text`.

        Raises:
            ConfigError, DataError: as `completion`; DataError also if the server does not score prompts.
        """
        # Some servers refuse max_tokens=0 and some take it for "no limit": one token is asked and dropped.
        request = {"prompt": prompt + text, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        return self._ask(request, lambda answer: scored(answer, prompt, text))

    def _ask(self, request: dict[str, Any], read: Callable[[Answer], T]) -> T:
        """`read` of the answer, from the cache if it is there and whole."""
        asked = {"base_url": self.served.base_url.rstrip("/"), "model": self.served.model, "request": request}
        path = self.folder / f"{_digest(asked)}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["sha256"] == _digest(stored["answer"]):
                result = read(stored["answer"])
                self.usage.from_cache += 1
                return result
        except (OSError, DataError, *MISSHAPEN):
            pass  # absent or damaged: asked again
        self._check_cost(request)
        answer = self._send(request)
        try:
            self._count(answer)
            result = read(answer)
        except MISSHAPEN as error:
            raise DataError(
                f"{self._server} answered not as the completions API does ({type(error).__name__}: {error})"
            ) from None
        except DataError as error:
            raise DataError(f"{self._server}: {error}") from None
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asked | {"answer": answer, "sha256": _digest(answer)}))
        return result

    def _check_cost(self, request: dict[str, Any]) -> None:
        at_most = (
            len(request["prompt"].encode()) + 1
        )  # a token has a byte or more, and one may begin the text
        cost, cap = self.served.access.cost(at_most, request["max_tokens"]), self.served.access.max_cost
        if self.usage.cost + cost > cap:
            raise ConfigError(
                f"strategy.access.max_cost={cap:g}: {self.usage.cost:.6g} is spent and the next request may "
                f"cost {cost:.6g}; raise it, answers so far are kept"
            )

    def _count(self, answer: Answer) -> None:
        prompt_tokens, completion_tokens = token_counts(answer)
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        self.usage.cost += self.served.access.cost(prompt_tokens, completion_tokens)

    def _send(self, request: dict[str, Any]) -> Answer:
        create = self._client.completions.with_raw_response.create
        try:
            content = create(model=self.served.model, **request).content
        except _openai().APIError as error:
            raise self._explained(error) from None  # its traceback may quote the key
        try:
            answer = json.loads(content)
        except ValueError:
            raise DataError(f"{self._server} answered no JSON; is it an OpenAI-compatible API?") from None
        known = ("choices", "usage")
        return {key: answer[key] for key in known if key in answer} if isinstance(answer, dict) else {}

    @cached_property
    def _client(self) -> "OpenAI":
        return _openai().OpenAI(
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
                f"strategy.access.key_variable={variable}: this environment variable is not set, or holds "
                "blanks or signs that no key has; set it"
            )
        return key

    @property
    def _server(self) -> str:
        return f"strategy.base_url={self.served.base_url}"

    def _explained(self, error: "APIError") -> ConfigError:
        """One line on what to change."""
        openai, access, tries = _openai(), self.served.access, 1 + self.served.access.max_retries
        status = getattr(error, "status_code", None)
        said = " ".join(error.message.replace(self._key, "[key]").split())[:200]
        if isinstance(error, openai.APITimeoutError):
            told = (
                f"no answer within strategy.access.timeout_s={access.timeout_s:g} in {tries} tries; raise it"
            )
        elif status is None:
            told = f"cannot be reached in {tries} tries; start the server or correct the address"
        elif status in (401, 403):
            where = f"strategy.access.key_variable={access.key_variable}"
            told = f"refuses the key (HTTP {status}); put one that it takes into the variable of {where}"
        elif status == 404:
            told = f"has no strategy.model={self.served.model}, or no /completions (HTTP 404); correct either"
        elif status == 429 or status >= 500:
            told = f"HTTP {status} in {tries} tries; wait, or raise strategy.access.max_retries ({said})"
        else:
            told = f"refuses the request to strategy.model={self.served.model} (HTTP {status}: {said})"
        return ConfigError(f"{self._server}: {told}")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ConfigError(
            "an endpoint is asked with the package openai: pip install 'pretraining-bench[endpoint]'"
        ) from None
    return openai
