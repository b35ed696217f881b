"""What is read from a completions server's answer, by hand; what is refused before anything is asked."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.checks import validate
from bench.config.compose import compose_runs
from bench.errors import ConfigError, DataError
from bench.models.api_client import Access, Endpoint, Scored, Served, scored

FREE = Access(
    key_variable=None,
    price_per_million_prompt_tokens=None,
    price_per_million_completion_tokens=None,
    max_cost=0.0,
    timeout_s=1.0,
    max_retries=0,
)
HERE = Served(base_url="http://localhost:8000/v1", model="tiny", access=FREE)
CAT = ["The", " cat", " sat"]


def changed(**changes: Any) -> Served:
    """The server on this machine with other options."""
    of_server = {key: changes.pop(key) for key in ("base_url", "model") if key in changes}
    return replace(HERE, access=replace(FREE, **changes), **of_server)


def echo(asked: list[str], text: str | None = None, **changes: Any) -> dict[str, Any]:
    """An answer to an echo with one generated token, "!"; token i has log-probability -i."""
    shown = [*asked, "!"]
    logprobs = {
        "tokens": shown,
        "token_logprobs": [None, *(-float(i) for i in range(1, len(shown)))],
        "text_offset": [len("".join(shown[:i])) for i in range(len(shown))],
    }
    choice = {"text": ("".join(asked) if text is None else text) + "!", "logprobs": logprobs | changes}
    return {"choices": [choice], "usage": {"prompt_tokens": len(asked), "completion_tokens": 1}}


def test_all_tokens_but_the_first_and_the_generated_one_are_scored():
    found = scored(echo(CAT), "", "The cat sat")
    assert found == Scored((-1.0, -2.0), len(" cat sat"))
    assert found.nll == 3.0


def test_after_a_prompt_only_the_continuation_is_scored_with_a_token_of_both():
    assert scored(echo(CAT), "The cat", " sat") == Scored((-2.0,), 4)
    assert scored(echo(CAT), "The c", "at sat") == Scored((-1.0, -2.0), len(" cat sat"))


def test_a_token_before_the_text_leaves_the_whole_text_to_score():
    assert scored(echo(["<s>", *CAT], "The cat sat"), "", "The cat sat") == Scored((-1.0, -2.0, -3.0), 11)


@pytest.mark.parametrize(
    "parts", [["bytes:\\xc3", "bytes:\\xa9"], ["\ufffd", "\ufffd"], ["", "é"]], ids=["bytes", "sign", "empty"]
)
def test_however_parts_of_a_character_are_spelled_its_bytes_count_once(parts: list[str]):
    assert scored(echo(["caf", *parts, " b"], "café b"), "", "café b") == Scored((-1.0, -2.0, -3.0), 4)
    assert scored(echo(["caf", *parts, " b"], "café b"), "caf", "é b") == Scored((-1.0, -2.0, -3.0), 4)
    assert scored(echo([*parts, " b"], "é b"), "", "é b") == Scored((-1.0, -2.0), 4)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (echo(["The", " dog", " sat"]), "does not score a prompt"),
        (echo(CAT) | {"choices": [{"text": "The cat sat!", "logprobs": None}]}, "does not score a prompt"),
        (echo(CAT, tokens=["The", " dog", " sat", "!"]), "do not spell"),
        (echo(CAT, tokens=["The", " cat", "!"]), "3 tokens, 4 log-probabilities"),
        (echo(CAT, token_logprobs=[None, -1.0, 0.1, -1.0]), "at most 0"),
        (echo(CAT, token_logprobs=[None, -1.0, float("nan"), -1.0]), "at most 0"),
        (echo(CAT, token_logprobs=[None, -1.0, None, -1.0]), "at most 0"),
        (echo(CAT, token_logprobs=[None, -1.0, False, -1.0]), "at most 0"),
        (echo(CAT, text_offset=[False, 3, 7, 11]), "offsets"),
        (echo(CAT) | {"usage": {"prompt_tokens": True}}, "must be whole numbers"),
        (echo(CAT, token_logprobs=[-1.0, -1.0, -1.0, -1.0]), "null for the first"),
        (echo(CAT, text_offset=[0, 7, 3, 11]), "offsets"),
        (echo(CAT) | {"usage": {"prompt_tokens": 2}}, "do not spell"),
        (echo(CAT) | {"usage": {"prompt_tokens": 9}}, "for a text of 9 tokens"),
        (echo(CAT) | {"usage": {"prompt_tokens": "3"}}, "must be whole numbers"),
    ],
)
def test_an_answer_that_no_model_can_have_given_is_refused(answer: dict[str, Any], says: str):
    with pytest.raises(DataError, match=says):
        scored(answer, "", "The cat sat")


def test_a_price_is_per_million_tokens_of_each_kind():
    access = replace(FREE, price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0)
    assert access.cost(1_000_000, 500_000) == 6.0
    assert FREE.cost(1_000_000, 1) == 0.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"base_url": "localhost:8000"}, "strategy.base_url"),
        ({"base_url": "http://me:secret@localhost/v1"}, "strategy.base_url"),
        ({"base_url": "http://localhost/v1?key=secret"}, "strategy.base_url"),
        ({"key_variable": "sk-secret"}, "strategy.access.key_variable"),
        ({"base_url": "https://api.example.org/v1"}, "strategy.access.price_per_million_prompt_tokens"),
        ({"max_cost": -1.0}, "strategy.access.max_cost"),
        ({"timeout_s": 0.0}, "strategy.access.timeout_s"),
        ({"max_retries": -1}, "strategy.access.max_retries"),
    ],
)
def test_a_setting_that_cannot_work_is_named_and_a_secret_is_not_repeated(changes: dict[str, Any], key: str):
    with pytest.raises(ConfigError) as raised:
        changed(**changes)
    assert str(raised.value).startswith(key)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "setting", ["base_url='http://me:secret@localhost/v1'", "access.key_variable=sk-secret"]
)
def test_a_secret_is_refused_before_anything_of_a_run_is_written(setting: str):
    (spec,) = compose_runs(["strategy=endpoint", f"strategy.{setting}"], multirun=False)
    with pytest.raises(ConfigError, match=r"^strategy\.") as raised:
        validate(spec.typed())
    assert "secret" not in str(raised.value)


def test_how_a_server_is_reached_and_paid_is_no_part_of_a_runs_identity():
    (one,), (other,), (another,) = (
        compose_runs(["strategy=endpoint", f"strategy.{setting}"], multirun=False)
        for setting in ("access.max_cost=1", "access.max_cost=2", "model=other")
    )
    assert (one.run_id, one.strategy) == (other.run_id, "endpoint")
    assert one.run_id != another.run_id
    assert one.config["strategy"]["access"]["max_cost"] == 1


def test_a_cap_of_nothing_sends_nothing_where_tokens_cost(tmp_path: Path):
    priced = changed(price_per_million_prompt_tokens=1.0, base_url="http://localhost:9/v1")
    with pytest.raises(ConfigError, match=r"strategy\.access\.max_cost=0: 0 is spent .* 5e-06"):
        Endpoint(priced, tmp_path).log_likelihood("four")


def test_without_its_package_an_endpoint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[endpoint\]"):
        Endpoint(HERE, tmp_path).log_likelihood("four")
