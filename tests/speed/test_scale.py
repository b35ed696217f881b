"""The study on paper: its arithmetic by hand, its counts against records, its page against the command."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_models import saved_tensors

from bench.config.compose import compose_evaluations, compose_runs
from bench.config.schema import Model
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models import flops
from bench.models.flops import StepCost
from bench.objectives.base import Objective
from bench.records import read_records
from bench.speed import estimates
from bench.speed import settings as speed
from bench.speed.estimates import LAYOUTS, Layout, Planned
from bench.speed.scale import page, plan, planned, settings_of
from bench.speed.settings import Facts
from bench.training.pretrain import build_objective

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = Model(d_model=2, n_layers=3, n_heads=1, d_ff=5, patch_size=1)
COST = StepCost(rows=10, forward_tokens=100, predicted_tokens=50, flops=1e3)
RUN = Planned("toy", "toy", TINY, 1000, 7, COST, peak_targets=50, cooldown_share=0.1, has_phases=False)
A100, H100 = 312e12, 989.4e12  # FLOP/s in bf16


@pytest.mark.parametrize(
    ("budgets", "share", "alone", "branched"),
    [
        ([0.5, 1, 2, 4, 8], 0.1, 15.5, 8.75),  # 43.5 % saved
        ([3], 0.2, 3, 3),
        ([1, 2], 1.0, 3, 3),  # all cooldown: nothing to share
        ([1, 2], 0.0, 3, 2),  # none: the short run is a checkpoint of the long one
    ],
)
def test_budgets_that_branch_from_one_trunk_cost_its_stable_part_and_their_cooldowns(
    budgets: list[float], share: float, alone: float, branched: float
):
    assert estimates.separately(budgets) == alone
    assert estimates.branched(budgets, share) == pytest.approx(branched)


def test_nine_budgets_a_root_of_two_apart_save_62_percent():
    budgets = [1.41**i for i in range(9)]
    saved = 1 - estimates.branched(budgets, 0.1) / estimates.separately(budgets)
    assert saved == pytest.approx(0.62, abs=0.01)


def test_hours_and_energy_by_hand():
    assert estimates.gpu_hours(3600e12, 10e12, 0.5) == pytest.approx(0.2)
    assert estimates.gpu_hours(3600e12, 10e12, 0.5, recompute=True) == pytest.approx(0.2 * 4 / 3)
    assert estimates.kwh(10, 500, 1.2) == pytest.approx(6)
    assert [estimates.efficiency(n, 0.1) for n in (1, 8, 16, 32)] == pytest.approx([1, 1, 0.9, 0.8])


def test_memory_by_hand():
    # Ten rows on four GPUs: three on the fullest, 30 positions and 15 targets.
    plain = estimates.memory(RUN, 4, Layout(sharded=False, recompute=False))
    assert plain.states == (16 + 2 + 4) * 1000
    assert plain.activations == 30 * 3 * (24 * 2 + 8 * 5)
    assert plain.logits == 12 * 15 * 7
    lean = estimates.memory(RUN, 4, Layout(sharded=True, recompute=True))
    assert lean.states == pytest.approx(16 * 1000 / 4 + 2 * 2 * 1000 / 3)
    assert lean.activations == 30 * (3 * 4 * 2 + 24 * 2 + 8 * 5)


def test_the_layout_that_costs_least_time_is_taken():
    run = replace(RUN, parameters=100)  # few, so that recomputation saves more than sharding
    totals = [estimates.memory(run, 4, layout).total for layout in LAYOUTS]
    assert [estimates.fitting(run, 4, total) for total in totals] == list(LAYOUTS)
    assert estimates.fitting(run, 4, min(totals) - 1) is None


@pytest.mark.parametrize(
    ("shape", "vocab_size", "length", "tokens", "peak", "mfu", "published"),
    [
        # llm.c's GPT-2: 124 M in 90 minutes on eight A100 at 60 %, 1.5 B in 24 hours on eight H100 at 50 %
        # (github.com/karpathy/llm.c, discussions 481 and 677). A plain feed-forward of 4 D has the
        # products of a gated one of 8/3 D.
        ((768, 12, 2048), 50257, 1024, 10e9, A100, 0.6, 12),
        ((1600, 48, 4267), 50257, 1024, 33.6e9, H100, 0.5, 192),
    ],
)
def test_published_runs_took_the_hours_that_are_planned(
    shape: tuple[int, int, int],
    vocab_size: int,
    length: int,
    tokens: float,
    peak: float,
    mfu: float,
    published: float,
):
    d_model, n_layers, d_ff = shape
    model = Model(d_model=d_model, n_layers=n_layers, n_heads=1, d_ff=d_ff, patch_size=1)
    head = 2 * length * d_model * vocab_size  # without ModernBERT's dense layer
    forward = flops.blocks_flops(model, length) + head
    total = StepCost.of_row(1, length, length, forward).flops / length * tokens
    assert estimates.gpu_hours(total, peak, mfu) == pytest.approx(published, rel=0.1)


def saved_bytes(objective: Objective, batch: Batch) -> int:
    """Of what autograd saves in a pass in bf16, each storage once, without weights or their copies."""
    weights = {tuple(p.shape) for p in objective.parameters()}
    weights |= {shape[::-1] for shape in weights}
    with saved_tensors(besides=weights) as found, torch.autocast("cpu", torch.bfloat16):
        objective.loss(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(("strategy", "over"), [("clm", 0.0), ("mlm", 0.0), ("clip", 0.0), ("ul2", 0.24)])
def test_autograd_saves_what_the_formula_of_activations_says(strategy: str, over: float):
    sizes = ["model=1m", "model.d_model=128", "model.n_layers=6", "model.d_ff=192"]
    (spec,) = compose_runs([f"strategy={strategy}", *sizes, "sequence_length=128"], multirun=False)
    objective = build_objective(spec, vocab_size=64, image_size=64)
    generator = torch.Generator().manual_seed(0)
    texts = {"tokens": torch.randint(5, 64, (8, 128), generator=generator)}
    images = torch.randint(255, (8, 64, 64, 3), dtype=torch.uint8, generator=generator)
    pairs = {"images": images, "captions": texts["tokens"][:, :16]}
    batch = objective.corrupt(pairs if objective.modality == "pairs" else texts, generator)
    cost = objective.step_cost(10_000)
    formula = estimates.activation_bytes(
        objective.shapes.model, 8 * cost.forward_tokens / cost.rows, recompute=False
    )
    assert saved_bytes(objective, batch) == pytest.approx((1 + over) * formula, rel=0.1)


@pytest.fixture(scope="module")
def recorded() -> Sequence[tuple[Planned, object]]:
    """A run of each strategy of two committed studies, as planned and as recorded."""
    return [*of_study("quickstart", "library_probe"), *of_study("strategies", "qc_probe")]


def of_study(study: str, task: str) -> Sequence[tuple[Planned, object]]:
    folder = ROOT / "experiments"
    records, _ = read_records(folder / study / "records")
    by_id = {record.run_id: record for record in records if record.status == "finished" and record.seed == 0}
    specs = compose_evaluations([f"study={study}", f"task=[{task}]", f"paths.experiments={folder}"])
    trained = [s for s in specs if s.run_id in by_id and s.config["strategy"]["modality"] != "none"]
    return [
        (
            planned(spec, vocab_size=by_id[spec.run_id].data["vocab_size"], image_size=32),
            by_id[spec.run_id],
        )
        for spec in trained
    ]


@pytest.mark.slow
def test_what_is_planned_is_what_was_recorded(recorded):
    assert len(recorded) >= 8
    for run, record in recorded:
        assert record.config["corpus"]["pairs"]["image_size"] == 32
        assert run.parameters == record.parameters, record.strategy
        tokens = record.config["budget"]["tokens"]
        # The study of all strategies is older than a last block that is computed at targets alone.
        assert run.flops(tokens) == record.spent.flops or (
            record.study == "strategies" and 0.7 * record.spent.flops < run.flops(tokens) < record.spent.flops
        ), record.strategy
        assert run.steps(tokens) * run.cost.forward_tokens == record.spent.forward_tokens, record.strategy


def test_what_the_page_says_was_measured_is_what_the_record_holds():
    page = " ".join((ROOT / "docs" / "scale.md").read_text().split())
    record = json.loads((ROOT / "reports" / "speed" / "gpu" / "speed.json").read_text())
    assert record["machine"]["device"] == "NVIDIA H200"
    size = speed.settings_of([]).sizes["768x12"]
    model = Model(None, size.d_model, size.n_layers, size.n_heads, size.d_ff, size.patch_size)
    reached, peaks, formulas = [], [], []
    for cell in record["cells"]:
        ours = cell["contenders"]["ours"]
        facts = Facts(**ours["facts"])
        rate = facts.flops / statistics.median(ours["seconds"])
        reached.append(f"{rate / H100:.2f} for {cell['strategy']}")
        peaks.append(f"{facts.peak_memory_bytes / 1e9:.1f} GB for {cell['strategy']}")
        states = (estimates.STATE_BYTES + estimates.CAST_BYTES) * facts.parameters
        total = states + estimates.activation_bytes(model, facts.tokens, recompute=False)
        formulas.append(f"{total / 1e9:.1f}")
        assert total == pytest.approx(facts.peak_memory_bytes, rel=0.15)
        assert f"{cell['profile']['Python and the rest']:.0%}"[:-1] + " %" in page
    for numbers in (reached, peaks):
        assert "{}, {} and {}".format(*numbers) in page
    assert "{}, {} and {} GB without".format(*formulas) in page


@pytest.mark.slow
def test_the_committed_page_is_what_the_command_writes():
    assert (ROOT / "docs" / "scale.md").read_text(encoding="utf-8") == page([])


def test_a_page_holds_what_was_asked_for():
    text = page(["gpus=[64]", "models=[17m]", "strategies=[clm]", "gpu.memory_gb=1"])
    assert "`bench scale 'gpus=[64]'" in text
    assert "256 GPUs" not in text
    assert "does not fit" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models=[2b]", "model=2b: no such choice"),
        ("strategies=[scratch]", "scratch has no pretraining to plan"),
        ("strategies=[bert]", "strategy=bert: no such choice"),
        ("gpus=[]", "gpus="),
        ("gpus=[8,8]", "each once"),
        ("gpus=[0]", r"gpus\[0\]=0: use a number above 0"),
        ("gpus=[many]", r"gpus\[0\]"),
        ("seeds=1.5", "seeds=1.5"),
        ("mfu.low=0.9", "mfu=0.9"),
        ("pue=0.5", "pue=0.5: use 1 or more"),
        ("memory_share=2", "memory_share=2"),
        ("loss_per_doubling=0.5", "256 GPUs"),
        ("gpu.power=700", "gpu.power: there is no such key"),
        ("tokens_per_step=10", "optim.tokens_per_step=10 holds no row"),
    ],
)
def test_nonsense_is_refused_in_one_line(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        plan(settings_of([override]))
    assert "\n" not in str(refused.value)
