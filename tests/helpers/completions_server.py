"""A small completions server with a real causal model, written from OpenAI's public API reference.

POST /v1/completions serves prompt, max_tokens (greedy), echo and logprobs. POST /faults takes what goes wrong
with the next requests, one each; GET /prompts gives all prompts so far, failed requests included.
"""

import json
import os
import sys
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER, MODEL = sys.argv[1:]
KEY = os.environ["SERVER_KEY"]
model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
prompts: list[str] = []
faults: deque[Any] = deque()
# Answers of the right shape that no model can have given.
SPOILED = {
    "positive": lambda logprobs: logprobs["token_logprobs"].__setitem__(1, 0.5),
    "infinite": lambda logprobs: logprobs["token_logprobs"].__setitem__(1, float("-inf")),
    "short": lambda logprobs: logprobs["token_logprobs"].pop(),
    "other text": lambda logprobs: logprobs["tokens"].__setitem__(1, "?"),
}


def spelled(token: int) -> str:
    """A token's text, or its bytes where they are not whole characters."""
    piece = tokenizer.convert_ids_to_tokens(token)
    as_bytes = bytes(BYTES[sign] for sign in piece)
    try:
        return as_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in as_bytes)


def bytes_of_signs() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for signs from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = bytes_of_signs()


@torch.no_grad()
def complete(prompt: str, max_tokens: int, echo: bool, logprobs: int | None) -> dict[str, Any]:
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = list(prompt_ids)
    for _ in range(max_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    shown = ids if echo else ids[len(prompt_ids) :]
    choice: dict[str, Any] = {"index": 0, "text": tokenizer.decode(shown), "finish_reason": "length"}
    choice["logprobs"] = None
    if logprobs is not None:
        table = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        values = [None, *table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
        choice["logprobs"] = {
            "tokens": [spelled(token) for token in shown],
            "token_logprobs": values[len(ids) - len(shown) :],
            "text_offset": [len(tokenizer.decode(shown[:i]).rstrip("\ufffd")) for i in range(len(shown))],
            "top_logprobs": None,
        }
    usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": max_tokens, "total_tokens": len(ids)}
    return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, json.dumps(prompts))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/faults":
            faults.extend(body)
            self.answer(200, "[]")
        elif self.path == "/v1/completions":
            self.complete(body)
        else:
            self.fail(404, f"Invalid URL (POST {self.path})")

    def complete(self, body: dict[str, Any]) -> None:
        prompts.append(body["prompt"])
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = faults.popleft() if faults else None
        if given != KEY:
            self.fail(401, f"Incorrect API key provided: {given}.")
        elif body["model"] != MODEL:
            self.fail(404, f"The model `{body['model']}` does not exist")
        elif isinstance(fault, int):
            self.fail(fault, f"This is what HTTP {fault} looks like, {given}")
        elif fault == "no json":
            self.answer(200, '{"choices": [')
        elif fault == "no choices":
            self.answer(200, '{"choices": [], "usage": {"prompt_tokens": 3}}')
        else:
            if fault == "slow":
                time.sleep(3)
            echo = body.get("echo", False) and fault != "no echo"
            answer = complete(body["prompt"], body.get("max_tokens", 16), echo, body.get("logprobs"))
            SPOILED.get(fault, lambda logprobs: None)(answer["choices"][0]["logprobs"])
            self.answer(200, json.dumps(answer))

    def fail(self, status: int, message: str) -> None:
        error = {"message": message, "type": "error", "param": None, "code": None}
        self.answer(status, json.dumps({"error": error}))

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Nothing: stdout is for the port."""


if __name__ == "__main__":
    torch.set_num_threads(1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
