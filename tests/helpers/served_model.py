"""A tiny random causal model on disk, the process that serves it, and what the model itself says."""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from bench.models.api_client import Access, Served

KEY = "key-that-no-file-may-hold-4711"


def write_model(folder: Path) -> Path:
    """A GPT-2 with random weights and a byte-level tokenizer that splits characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"])
    tokenizer.train_from_iterator(["the cat sat on the mat, the café 😀 is naïve"] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)  # noqa: S106
    torch.manual_seed(0)
    sizes = GPT2Config(
        vocab_size=len(tokenizer.get_vocab()), n_positions=128, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    return folder


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    n_before: int = 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def fails_with(self, *faults: int | str) -> None:
        data = json.dumps(faults).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/faults", data)).read()  # noqa: S310

    @property
    def prompts(self) -> list[str]:
        """Of the requests since this was made."""
        return json.load(urllib.request.urlopen(f"{self.url}/prompts"))[self.n_before :]  # noqa: S310

    @property
    def n_requests(self) -> int:
        return len(self.prompts)

    def model(self, **changes: Any) -> Served:
        access = Access(
            key_variable="TEST_ENDPOINT_KEY",
            price_per_million_prompt_tokens=1.0,
            price_per_million_completion_tokens=10.0,
            max_cost=1.0,
            timeout_s=20.0,
            max_retries=0,
        )
        of_server = {"base_url": f"{self.url}/v1", "model": "tiny"}
        of_server |= {key: changes.pop(key) for key in ("base_url", "model") if key in changes}
        return Served(access=replace(access, **changes), **of_server)


def start(folder: Path) -> Server:
    script = Path(__file__).with_name("completions_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), "tiny"],
        env=os.environ | {"SERVER_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return Server(process, f"http://127.0.0.1:{int(process.stdout.readline())}")


def own_nll(folder: Path, text: str) -> float:
    """By the model itself, here."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum"))
