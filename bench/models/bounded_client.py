"""HTTP client that bounds each answer of a server in time and size; redirects are not followed. Needs httpx.

A timeout of httpx bounds the wait for the next bytes only, so an answer of single bytes would never end.
"""

import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

import httpx
from typing_extensions import override

MOST_BYTES = 64_000_000  # of one decoded answer; the log-probabilities of 100,000 tokens take less
_OF_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")  # no longer true once it is read


class AnswerTooLargeError(Exception):
    """The server sends more than `MOST_BYTES`."""


class BoundedClient(httpx.Client):
    """Client whose every try, from connecting to the last byte of the answer, takes at most `deadline_s`."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(timeout=deadline_s, follow_redirects=False)
        self.deadline_s = deadline_s

    @override
    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request and return the whole answer; raise ReadTimeout or AnswerTooLargeError."""
        outcome: SimpleQueue[httpx.Response | Exception] = SimpleQueue()
        # A thread, since the headers may arrive slowly, too; it ends with the process at the latest.
        threading.Thread(target=self._read, args=(request, options, outcome), daemon=True).start()
        try:
            answer = outcome.get(timeout=self.deadline_s)
        except Empty:
            raise httpx.ReadTimeout("no whole answer in time", request=request) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _read(self, request: httpx.Request, options: dict[str, Any], outcome: SimpleQueue[Any]) -> None:
        end = time.monotonic() + self.deadline_s
        try:
            answer = super().send(request, **options | {"stream": True, "follow_redirects": False})
            try:
                outcome.put(_whole(answer, request, end))
            finally:
                answer.close()
        except Exception as error:  # raised by `send`
            outcome.put(error)


def _whole(answer: httpx.Response, request: httpx.Request, end: float) -> httpx.Response:
    content = bytearray()
    for part in answer.iter_bytes():
        content += part
        if len(content) > MOST_BYTES:
            raise AnswerTooLargeError()
        if time.monotonic() > end:
            raise httpx.ReadTimeout("no whole answer in time", request=request)
    headers = [(name, value) for name, value in answer.headers.multi_items() if name not in _OF_TRANSFER]
    return httpx.Response(answer.status_code, headers=headers, content=bytes(content), request=request)
