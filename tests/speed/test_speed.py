"""The speed of a step: the same work for all, the same weights in a bare loop, one at a time, one run."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_models import with_pretraining

from bench.cli import main
from bench.errors import ConfigError
from bench.models.flops import blocks_flops
from bench.speed import ours, peers
from bench.speed.interleave import Baton
from bench.speed.peers import STOCK
from bench.speed.settings import ABLATIONS, BARE, COMPILED, OURS, Facts, Task, plan, settings_of
from bench.speed.settings import SMALL as SMALL_STEPS

pytestmark = pytest.mark.slow

SMALL = [
    "models=[64x4]",
    "sizes={64x4: {d_model: 32, n_layers: 2, n_heads: 2, d_ff: 84, rows_per_step: 4}}",
    *("sequence_length=32", "vocab_size=300", "rounds=2", "steps_per_round=1", "warmup_steps=1", "threads=1"),
]
STAND_IN = """
import torch
from dataclasses import dataclass
@dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)
    def forward(self, idx, targets):
        logits = self.lm_head(self.wte(idx))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""


class Free:
    """A pace that times nothing."""

    facts: Facts

    def __init__(self) -> None:
        self.n_steps = 0

    def start(self, facts: Facts) -> None:
        self.facts = facts

    def step(self) -> None:
        self.n_steps += 1

    def tell(self, seconds: float) -> None:
        assert seconds > 0
        self.n_steps += 1
        if self.n_steps == 3:
            raise StopIteration


@pytest.fixture(autouse=True)
def _determinism_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def task(strategy: str, contender: str = "ours", *overrides: str) -> Task:
    words = [*(overrides or SMALL), f"strategies=[{strategy}]"]
    (cell,) = plan(settings_of(words))
    return replace(cell.tasks[0], contender=contender)


# What is compared


@pytest.mark.product
@pytest.mark.slow
def test_every_strategy_that_trains_has_peers_and_composes():
    found = settings_of([f"strategies=[{','.join(with_pretraining())}]"])
    assert sorted(found.peers | found.nearest) == with_pretraining()
    assert all(names for names in (found.peers | found.nearest).values())
    assert len(plan(found)) == 3 * len(with_pretraining())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", with_pretraining())
def test_small_steps_are_as_many_blocks_and_weights_as_whole_ones(strategy: str, tmp_path: Path):
    (cell,) = plan(settings_of([f"strategies=[{strategy}]", "models=[128x4]"]))
    whole, small, bare = (
        next(task for task in cell.tasks if task.contender == name) for name in (OURS, SMALL_STEPS, BARE)
    )
    assert small == replace(bare, contender=SMALL_STEPS)
    assert small.steps_per_round > whole.steps_per_round
    shapes = [
        [
            (name, weight.ndim)
            for name, weight in ours.set_up(task, tmp_path / task.contender).objective.named_parameters()
        ]
        for task in (replace(whole, n_steps=2), replace(small, n_steps=2))
    ]
    assert shapes[0] == shapes[1]


def test_nanogpt_is_left_out_unless_the_user_names_a_copy(tmp_path: Path):
    (tmp_path / "model.py").touch()
    assert "nanogpt" not in settings_of([]).peers_of("clm")
    for place in (tmp_path, tmp_path / "model.py"):
        assert "nanogpt" in settings_of([f"nanogpt={place}"]).peers_of("clm")


def test_ours_compiled_is_measured_where_it_is_asked_for():
    (plain,) = plan(settings_of(["strategies=[mlm]", "models=[64x4]"]))
    (cell,) = plan(settings_of(["strategies=[mlm]", "models=[64x4]", "compiled=true"]))
    compiled = {task.contender for task in cell.tasks if task.spec.typed().trainer.compile}
    assert compiled == {COMPILED}
    assert COMPILED not in {task.contender for task in plain.tasks}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["clm", "mlm", "clip"])
def test_the_bare_loop_ends_with_the_weights_of_the_fit(strategy: str, tmp_path: Path):
    fitted, bare = Free(), Free()
    first = ours.fit(task(strategy), tmp_path / "a", fitted).state_dict()
    second = ours.bare_loop(task(strategy), tmp_path / "b", bare).state_dict()
    assert fitted.n_steps == bare.n_steps == task(strategy).n_steps
    assert fitted.facts == replace(bare.facts, what=fitted.facts.what)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_all_contenders_are_told_where_and_in_which_numbers():
    words = ("trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "trainer.compile=true")
    for cell in plan(settings_of(words)):
        for one in cell.tasks:
            trainer = one.spec.typed().trainer
            assert (trainer.accelerator, trainer.precision, trainer.compile) == ("gpu", "bf16-mixed", True)
    with pytest.raises(ConfigError, match="set only one"):
        settings_of(["compiled=true", "trainer.compile=true"])


@pytest.mark.parametrize("contender", [ours.fit, ours.bare_loop])
def test_steps_in_bf16_compute_products_in_it(contender, tmp_path: Path):
    ended = []
    for i, precision in enumerate(("32-true", "bf16-mixed")):
        given = task("clm", "ours", *SMALL, f"trainer.precision={precision}")
        ended.append(contender(given, tmp_path / str(i), Free()).backbone.embedding.weight)
    apart = float((ended[0] - ended[1]).detach().abs().max())
    assert 0 < apart < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["clm", "mlm", "span_corruption", "clip"])
def test_on_a_gpu_all_contenders_are_timed(strategy: str, tmp_path: Path):
    (tmp_path / "model.py").write_text(STAND_IN)
    where = [
        "trainer.accelerator=gpu",
        "trainer.precision=bf16-mixed",
        "trainer.compile=true",
        f"out={tmp_path}",
    ]
    words = (f"strategies=[{strategy}]", f"nanogpt={tmp_path}", f"out={tmp_path}")
    assert main(["speed", *SMALL, *where, *words]) == 0
    (cell,) = json.loads((tmp_path / "speed.json").read_text())["cells"]
    assert all(timed["failure"] is None for timed in cell["contenders"].values())
    assert sum(cell["profile"].values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("contender", [ours.data_alone, ours.products_alone])
def test_parts_of_a_step_are_timed_alone(contender, tmp_path: Path):
    pace = Free()
    try:
        contender(task("clm"), tmp_path, pace)
    except StopIteration:
        assert pace.n_steps == 3
    else:
        assert pace.n_steps == task("clm").n_steps


def spared(strategy: str, ready: ours.Setup) -> float:
    """FLOPs of a step that a masked model of ours spares in its last block, and a peer does not."""
    if strategy != "mlm":
        return 0.0
    model, length, cost = ready.config.model, ready.config.sequence_length, ready.cost
    n_targets = cost.predicted_tokens / cost.rows
    return 3 * cost.rows * (blocks_flops(model, length) - blocks_flops(model, length, n_targets))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "peer", "tolerance"),
    [
        ("clm", "gpt2", 0.02),
        ("clm", "modernbert_decoder", 0.02),
        ("mlm", "modernbert", 0.0),
        ("span_corruption", "t5", 0.02),
        ("clip", "clip", 0.05),  # its vision tower has a class token
    ],
)
@pytest.mark.parametrize("size", ["64x4", "128x4"])
def test_a_peer_processes_the_same_positions_in_as_many_flops(
    strategy: str, peer: str, tolerance: float, size: str, tmp_path: Path
):
    import transformers

    stock = STOCK[peer]
    few = f"sizes={{{size}: {{rows_per_step: 2}}}}"
    ready = ours.set_up(task(strategy, peer, few, f"models=[{size}]"), tmp_path)
    fields = stock.fields(next(iter(ready.batches())), ready)
    n_read = fields["input_ids"].numel()
    n_more = {"t5": lambda: fields["labels"].numel(), "clip": lambda: len(fields["input_ids"]) * 16}
    assert n_read + n_more.get(peer, lambda: 0)() == ready.cost.forward_tokens
    model = getattr(transformers, stock.name)(stock.config(ready))
    flops = peers.step_flops(model, lambda m: m(**fields).loss)
    assert flops == pytest.approx(ready.cost.flops + spared(strategy, ready), rel=tolerance)
    assert all(p.grad is None for p in model.parameters())


# One at a time


class Line:
    """A connection that is answered at once."""

    def __init__(self) -> None:
        self.sent: list[Facts | float] = []

    def send(self, what: Facts | float) -> None:
        self.sent.append(what)

    def recv(self) -> None:
        return None


def test_control_goes_back_after_the_first_steps_and_after_every_block():
    line, facts = Line(), Facts("toy", 1, 1, 1.0)
    waits: list[int] = []
    baton = Baton(line, 2, 3, task("clm").spec.typed().trainer)  # type: ignore[arg-type]
    baton.wait = lambda: waits.append(len(line.sent))  # type: ignore[method-assign]
    baton.start(facts)
    sent = []
    for _ in range(8):
        baton.step()
        sent.append(len(line.sent))
    assert sent == [0, 1, 1, 1, 2, 2, 2, 3]
    assert waits == [0, 1, 2]  # for what a GPU has not done yet, before each hand-over
    first = line.sent[0]
    assert isinstance(first, Facts)
    assert first.peak_memory_bytes > 1e7
    assert replace(first, peak_memory_bytes=0) == facts
    assert all(isinstance(seconds, float) and seconds < 1 for seconds in line.sent[1:])


@pytest.mark.slow
def test_a_run_writes_what_it_measured_and_says_who_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model_py, out = tmp_path / "model.py", tmp_path / "out"
    words = [*SMALL, "strategies=[clm]", "peers.clm=[nanogpt]", f"nanogpt={model_py}", f"out={out}"]
    model_py.write_text(STAND_IN)
    assert main(["speed", *words]) == 0
    assert sorted(path.suffix for path in out.iterdir()) == sorted(
        [".csv", ".json", ".md", ".pdf", ".png", ".svg"]
    )
    with (out / "speed.csv").open() as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*settings_of(words).own, "nanogpt"]
    assert all(row["rounds"] == "2" and float(row["step_ms"]) > 0 for row in rows.values())
    (cell,) = json.loads((out / "speed.json").read_text())["cells"]
    assert all(len(timed["seconds"]) == 2 for timed in cell["contenders"].values())
    assert sum(cell["profile"].values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in cell["profile"].values())
    assert str(tmp_path) not in "".join((out / f"speed.{s}").read_text() for s in ("md", "json", "csv"))

    model_py.write_text("GPT = None")
    capsys.readouterr()
    assert main(["speed", *words]) == 1
    told = capsys.readouterr().out
    assert "nanogpt failed: nanogpt=" in told
    assert "not nanoGPT's model.py" in told
    assert "over – –" in told


@pytest.mark.slow
def test_what_each_saving_gives_is_measured_where_it_is_asked_for(tmp_path: Path):
    words = [*SMALL, "strategies=[mlm]", "peers.mlm=[]", "rounds=1", f"out={tmp_path}"]
    assert not {task.contender for cell in plan(settings_of(words)) for task in cell.tasks} & set(ABLATIONS)
    assert main(["speed", *words, "ablations=true"]) == 0
    table = (tmp_path / "speed.md").read_text().split("## What each optimisation saves")[1].split("## ")[0]
    (header, _, *rows) = [line for line in table.splitlines() if line.startswith("|")]
    assert header == "| size | replaced by | mlm |"
    assert [row.split(" | ")[1] for row in rows] == list(ABLATIONS.values())
    assert all(float(row.split(" | ")[2].split()[0]) > 0 for row in rows)
