"""A server can neither keep a run waiting, fill its memory, nor send its prompts elsewhere."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

httpx = pytest.importorskip("httpx")

from bench.models import bounded_client  # noqa: E402
from bench.models.bounded_client import AnswerTooLargeError, BoundedClient  # noqa: E402


class Hostile(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(307)
            self.send_header("Location", "http://example.invalid/")
        else:
            self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(20 if self.path == "/drip" else 0):
            self.wfile.write(b"x")
            time.sleep(0.1)
        if self.path == "/large":
            self.wfile.write(b"x" * 2000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_single_bytes_do_not_extend_the_deadline(url: str):
    with BoundedClient(0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{url}/drip")


def test_an_answer_above_the_limit_is_refused(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_client, "MOST_BYTES", 1000)
    with BoundedClient(5) as client, pytest.raises(AnswerTooLargeError):
        client.get(f"{url}/large")


def test_a_redirect_is_not_followed(url: str):
    with BoundedClient(5) as client:
        assert client.get(f"{url}/away").status_code == 307
