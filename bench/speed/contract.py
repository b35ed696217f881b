"""What a contender is to the one who times it: its task, what it says of itself, the way back and forth.

No torch: the parent process holds these, a contender's process does the work.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from bench.config.run_spec import RunSpec

OURS, COMPILED, DATA, LIMIT = "ours", "ours_compiled", "data", "limit"
SMALL, BARE = "ours_small", "bare_small"  # steps that are over soon: under Lightning, and in a bare loop
ALL_PLAIN = "all_plain"
ABLATIONS = {  # ours with one of its savings left out, in words
    "last_block_everywhere": "last block at all positions",
    "logits_everywhere": "last block and logits at all positions",
    "whole_logits": "logits of all targets at once, cross-entropy by autograd",
    "rope_by_autograd": "RoPE by autograd",
    "separate_products": "a product for each of q, k, v, gate and value; RoPE by autograd",
    "unfused_adamw": "AdamW by operations on each parameter",
    "filled_tensors": "new tensors filled with NaN, as torch's deterministic mode has it",
    ALL_PLAIN: "all of these",
}
OWN = (OURS, COMPILED, SMALL, BARE, DATA, LIMIT, *ABLATIONS)  # beside every strategy; some if asked for
NANOGPT = "nanogpt"
HUGGING_FACE = ("gpt2", "modernbert_decoder", "modernbert", "t5", "clip")
PeerName = Literal["nanogpt", "gpt2", "modernbert_decoder", "modernbert", "t5", "clip"]


@dataclass(frozen=True)
class Task:
    """What one process is to do, step after step."""

    contender: str
    spec: RunSpec  # of our run, whose sizes and batches all share
    n_steps: int
    warmup_steps: int
    steps_per_round: int
    image_size: int
    threads: int | None
    model_py: str | None  # nanoGPT's


@dataclass(frozen=True)
class Facts:
    """What a contender does in one step."""

    what: str  # for readers
    parameters: int
    positions: int  # of the data; a peer's own class token is not one
    flops: float  # of matrix products, forward and backward
    peak_memory_bytes: int = 0  # of the first steps: allocated on the GPU, else of the process


@dataclass(frozen=True)
class Failure:
    """Why a contender cannot go on, in one line."""

    reason: str


class Pace(Protocol):
    """How a contender lets itself be timed."""

    def start(self, facts: Facts) -> None:
        """Before its first step."""
        ...

    def step(self) -> None:
        """After each step: hands control back when a block of them is done."""
        ...

    def tell(self, seconds: float) -> None:
        """In place of `step`, by a contender that times itself: a step's seconds."""
        ...
