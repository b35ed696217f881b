"""Endpoints as they are met: a server of its own with a real model, a packaged one, and what goes wrong."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Place
from served_model import KEY, Server, own_nll, start, write_model
from transformers import AutoTokenizer

from bench.errors import BenchError, ConfigError, DataError
from bench.models.api_client import Access, Endpoint, Served
from bench.records import read_evaluations, read_record, results_of

pytest.importorskip("openai")
TEXTS = ["the cat sat on the mat", "A naïve café, 100 €: 😀😀!", "ñ", " x\n\ny ", "日本語の文"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(model_folder: Path) -> Iterator[Server]:
    server = start(model_folder)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with its count of requests at zero and the key in the environment."""
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    return replace(running, n_before=running.n_requests)


def refused(ask: Endpoint, text: str = "the cat sat") -> str:
    """The one line of the complaint."""
    with pytest.raises(BenchError) as raised:
        ask.log_likelihood(text)
    line = str(raised.value)
    assert "\n" not in line
    assert KEY not in line
    return line


def test_the_likelihood_of_a_text_is_that_of_the_model_behind_the_server(
    server: Server, model_folder: Path, tmp_path: Path
):
    endpoint = Endpoint(server.model(), tmp_path)
    for text in TEXTS:
        found = endpoint.log_likelihood(text)
        assert found.nll == pytest.approx(own_nll(model_folder, text), abs=1e-4)
        first = 3 if text.startswith("the") else 0 if text[0] in "ñ日" else 1
        assert found.n_bytes == len(text.encode()) - first, text


def test_the_likelihoods_of_a_prompt_and_its_continuation_are_those_of_the_whole(
    server: Server, model_folder: Path, tmp_path: Path
):
    endpoint = Endpoint(server.model(), tmp_path)
    prompt, continuation = "the cat sat", " on 😀 mats"
    parts = [endpoint.log_likelihood(prompt), endpoint.log_likelihood(continuation, prompt=prompt)]
    whole = own_nll(model_folder, prompt + continuation)
    assert sum(part.nll for part in parts) == pytest.approx(whole, abs=1e-4)
    assert parts[1].n_bytes == len(continuation.encode())


def test_what_was_asked_once_is_never_asked_again_unless_its_file_is_damaged(server: Server, tmp_path: Path):
    first = Endpoint(server.model(), tmp_path).log_likelihood("the cat sat")
    assert server.n_requests == 1
    again = Endpoint(server.model(max_cost=0.0), tmp_path)
    assert again.log_likelihood("the cat sat") == first
    assert (server.n_requests, again.usage.requests, again.usage.from_cache, again.usage.cost) == (1, 0, 1, 0)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_text()
    for damaged in (whole[:-20], whole.replace("-", "-1", 1), "{}", "[]"):
        assert damaged != whole
        kept.write_text(damaged)
        n_before = server.n_requests
        assert Endpoint(server.model(), tmp_path).log_likelihood("the cat sat") == first
        assert server.n_requests == n_before + 1
    Endpoint(server.model(), tmp_path).log_likelihood("the cat")
    assert len(list(tmp_path.iterdir())) == 2


def test_busy_and_failing_servers_are_asked_again(server: Server, tmp_path: Path):
    server.fails_with(429, 500, 503)
    endpoint = Endpoint(server.model(max_retries=3), tmp_path)
    started = time.monotonic()
    assert endpoint.log_likelihood("the cat sat").nll > 0
    assert time.monotonic() - started > 1  # Retry-After of the 429
    assert (server.n_requests, endpoint.usage.requests) == (4, 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (429, "HTTP 429 in 1 tries"),
        (500, "HTTP 500 in 1 tries"),
        (400, "refuses the request"),
        (403, "strategy.access.key_variable=TEST_ENDPOINT_KEY"),
        ("no json", "the answer is not JSON"),
        ("no choices", "does not follow the completions API"),
        ("no echo", "does not score a prompt"),
        ("positive", "at most 0"),
        ("infinite", "at most 0"),
        ("short", "log-probabilities"),
        ("other text", "do not spell the text"),
    ],
)
def test_what_a_server_does_wrong_is_one_line_and_is_not_kept(
    fault: int | str, says: str, server: Server, tmp_path: Path
):
    server.fails_with(fault)
    line = refused(Endpoint(server.model(), tmp_path))
    assert says in line
    assert "strategy.base_url" in line
    assert list(tmp_path.iterdir()) == []


def test_settings_that_a_server_refuses_are_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "strategy.model=huge" in refused(Endpoint(server.model(model="huge"), tmp_path))
    assert "strategy.model=tiny" in refused(Endpoint(server.model(base_url=f"{server.url}/v2"), tmp_path))
    server.fails_with("slow")
    assert "strategy.access.timeout_s=0.5" in refused(Endpoint(server.model(timeout_s=0.5), tmp_path))
    no_key = refused(Endpoint(server.model(key_variable=None), tmp_path))
    assert "HTTP 401" in no_key
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "another")
    assert "TEST_ENDPOINT_KEY" in refused(Endpoint(server.model(), tmp_path))
    monkeypatch.delenv("TEST_ENDPOINT_KEY")
    assert "TEST_ENDPOINT_KEY: this" in refused(Endpoint(server.model(), tmp_path))


def test_a_server_that_went_down_is_one_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    server = start(model_folder)
    endpoint = Endpoint(server.model(), tmp_path)
    endpoint.log_likelihood("the cat")
    server.stop()
    assert f"strategy.base_url={server.url}/v1: cannot be reached in 1 tries" in refused(endpoint)
    endpoint.log_likelihood("the cat")  # kept


def test_no_request_is_sent_that_could_pass_the_cap_and_a_higher_one_goes_on(server: Server, tmp_path: Path):
    texts = [f"the cat sat on mat {i}" for i in range(10)]
    one = Endpoint(server.model(), tmp_path / "other")
    one.log_likelihood(texts[0])
    assert one.usage.cost == one.usage.prompt_tokens * 1e-6 + 1 * 10e-6
    capped = Endpoint(server.model(max_cost=5 * one.usage.cost), tmp_path)
    with pytest.raises(ConfigError, match=r"strategy\.access\.max_cost"):
        any(capped.log_likelihood(text).nll < 0 for text in texts)
    assert 0 < capped.usage.cost <= 5 * one.usage.cost
    assert 1 <= capped.usage.requests == server.n_requests - 1 < 5
    higher = Endpoint(server.model(max_cost=1.0), tmp_path)
    for text in texts:
        higher.log_likelihood(text)
    assert higher.usage.from_cache == capped.usage.requests
    assert higher.usage.requests == len(texts) - capped.usage.requests


@pytest.fixture
def packaged(model_folder: Path, tmp_path: Path) -> Iterator[str]:
    """`transformers serve`, which serves completions but ignores echo and logprobs."""
    for package in ("fastapi", "uvicorn", "accelerate"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["transformers", "serve", str(model_folder), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command[0])), *command[1:], "--device", "cpu"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            urllib.request.urlopen(f"{url}/health").read()  # noqa: S310
            break
        except OSError:
            time.sleep(0.1)
    yield url
    process.kill()
    process.wait()


@pytest.mark.product
def test_a_packaged_server_is_told_to_lack_likelihoods(packaged: str, model_folder: Path, tmp_path: Path):
    access = Access(
        key_variable=None,
        price_per_million_prompt_tokens=None,
        price_per_million_completion_tokens=None,
        max_cost=0.0,
        timeout_s=60.0,
        max_retries=2,
    )
    served = Served(base_url=f"{packaged}/v1", model=str(model_folder), access=access)
    endpoint = Endpoint(served, tmp_path / "answers")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokens = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    with pytest.raises(DataError, match="does not score a prompt"):
        endpoint.log_likelihood("the cat sat")
    assert endpoint.usage.prompt_tokens == tokens.shape[1]


def files_with(secret: str, *folders: Path) -> list[Path]:
    """All files under the folders that hold it; there must be some files."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.product
def test_an_endpoint_is_a_row_of_a_study_and_its_failures_are_records(
    server: Server, model_folder: Path, place: Place, tmp_path: Path
):
    data = tmp_path / "data"
    common = [
        *(f"paths.data={data}", "task=[bits_per_byte_exact,retrieval_zero_shot]", "strategy.model=tiny"),
        *("task.bits_per_byte_exact.windows=5", "strategy.access.key_variable=TEST_ENDPOINT_KEY"),
        *(
            "strategy=endpoint",
            "strategy.access.max_retries=0",
            "strategy.access.price_per_million_prompt_tokens=1",
        ),
        *(
            "strategy.access.price_per_million_completion_tokens=1",
            "strategy.access.max_cost=1",
            "logger=wandb",
        ),
    ]
    place.settings = [setting for setting in place.settings if not setting.startswith("task")]
    urls = f"strategy.base_url={server.url}/v1,http://127.0.0.1:9/v1"
    done = place.bench(*place.sweep(*common, urls, "launcher.workers=1"))
    assert "1 finished" in done.stdout + done.stderr, done.stderr
    records = [read_record(path) for path in (place.folder / "experiments/adhoc/records").glob("*.json")]
    by_url = {record.config["strategy"]["base_url"].removeprefix(server.url): record for record in records}
    assert len(by_url) == 2

    finished = by_url["/v1"]
    prompts = server.prompts
    nats = sum(own_nll(model_folder, prompt) for prompt in prompts)
    first = [AutoTokenizer.from_pretrained(model_folder).tokenize(prompt)[0] for prompt in prompts]
    n_bytes = sum(len(prompt.encode()) - len(token) for prompt, token in zip(prompts, first, strict=True))
    evaluations, _ = read_evaluations(place.folder / "experiments/adhoc/evaluations")
    (evaluation,) = evaluations[finished.run_id]
    results = results_of([evaluation])
    (score,) = [score for result in results.values() for score in result.scores]
    assert score.n_items == len(prompts) == 5
    assert score.value == pytest.approx(nats / math.log(2) / n_bytes, abs=1e-4)
    assert results["retrieval_zero_shot"].status == "inapplicable"
    assert (finished.parameters, finished.budget, finished.spent.steps) == (0, None, 0)
    assert evaluation.data["endpoint"]["requests"] == 5
    assert evaluation.data["endpoint"]["cost"] > 0

    failed = by_url["http://127.0.0.1:9/v1"]
    results = results_of(evaluations[failed.run_id])
    assert results["bits_per_byte_exact"].status == "failed"
    assert "1 failed" in done.stdout
    reason = "strategy.base_url=http://127.0.0.1:9/v1: cannot be reached in 1 tries; "
    assert results["bits_per_byte_exact"].reason == reason + "start the server or correct the address"
    assert files_with(KEY, place.folder, data) == []
    assert KEY not in done.stdout + done.stderr
