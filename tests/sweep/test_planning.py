"""`bench plan`: hours from records of the same shape, one line of warning, and no torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import many

from bench.config.command_settings import split_settings
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import (
    EvaluationCost,
    EvaluationRecord,
    Spent,
    TaskResult,
    write_evaluation,
    write_record,
)
from bench.sweep.plan import Plan, hours, lines
from bench.sweep.sweep import planned

CLAIM = {
    **{"statement": "s", "source": "s", "test": "superiority", "task": "library_probe", "metric": "accuracy"},
    **{
        "left": {"strategy": "clm"},
        "right": {"strategy": "random_features"},
        "smallest_effect": 0.03,
        "reason": "r",
    },
}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [
        *("experiment=quickstart", "strategy=clm,scratch", "model=0.2m", "budget=1mb"),
        f"paths.experiments={tmp_path}",
    ]


def claims(folder: Path, nodes: dict[str, Any], **more: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "claims.yaml").write_text(yaml.safe_dump({"written": "2026-12-01", "claims": nodes, **more}))


def lines_of(words: list[str]) -> list[str]:
    settings, rest = split_settings("plan", Plan, words)
    return lines(rest, settings)


def record(spec: RunSpec, seconds: float) -> None:
    spent = Spent(forward_tokens=100_000, flops=1e12, pretrain_s=seconds)
    run = replace(spec.record("finished"), spent=spent, environment={"device": "x86_64"})
    write_record(run, spec.records)
    cost = EvaluationCost(seconds=36.0)
    result = TaskResult("library_probe", "finished", {}, cost=cost)
    write_evaluation(EvaluationRecord("e0", spec.run_id, spec.study, (result,)), spec.evaluations)


def test_a_plan_names_power_sizes_and_cost(words: list[str], tmp_path: Path) -> None:
    claims(tmp_path / "quickstart", {"wins": CLAIM | {"assumed": {"seed_sd": 0.01}}, "other": CLAIM})
    text = "\n".join(lines_of([*words, "seed=range(5)", "plan.seeds=[3,10]"]))
    assert "quickstart: 10 runs, 2 claims" in text
    assert "wins   superiority  0.03  2.50%       5             9" in text
    assert "other: no pilot: give plan.pilot=STUDY" in text
    assert "items not counted\n3      0.03" in text
    assert "not counted, since no run has recorded it: library_probe, pretraining of clm" in text


def test_hours_are_those_of_recorded_runs_of_the_same_shape(words: list[str]) -> None:
    specs = many(*words, "seed=range(4)")
    record(specs[0], 200.0)
    found = hours(specs)  # four runs of clm, of 150,000 tokens each
    assert found.pretraining == pytest.approx(4 * 150_000 * 200 / 100_000 / 3600)
    assert found.tasks == pytest.approx(8 * 36 / 3600)
    assert found.sources == ["runs of the same shape"]
    other = hours(many(*words, "strategy=mlm", "sequence_length=128"))
    assert other.sources == ["FLOPs per second of other runs"]
    assert other.pretraining > 0
    on_paper = hours(many(*words, "strategy=mlm", "trainer=gpu"))
    assert on_paper.sources == ["conf/scale.yaml"]


def test_a_sweep_warns_in_one_line_of_a_claim_with_little_power(words: list[str], tmp_path: Path) -> None:
    specs, folder = many(*words, "seed=range(3)"), tmp_path / "quickstart"
    claims(folder, {"wins": CLAIM})
    assert "power" not in " ".join(planned(specs))
    claims(
        folder,
        {"wins": CLAIM | {"assumed": {"seed_sd": 0.03}}, "sure": CLAIM | {"assumed": {"seed_sd": 1e-4}}},
    )
    assert planned(specs)[-1].startswith("less than 80 % power at the smallest effect: wins (")
    assert "sure" not in planned(specs)[-1]
    claims(folder, {"wins": CLAIM}, pilot="gone")
    assert "power" not in planned(specs)[-1]


def test_what_cannot_be_planned_is_one_line(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write the study's claims"):
        lines_of(words)
    claims(tmp_path / "quickstart", {"wins": CLAIM})
    with pytest.raises(ConfigError, match="study=gone: no run record"):
        lines_of([*words, "plan.pilot=gone"])
    with pytest.raises(ConfigError, match=r"plan\.seed: there is no such key; did you mean seeds"):
        lines_of([*words, "plan.seed=3"])


@pytest.mark.slow
def test_a_plan_needs_no_torch(words: list[str], tmp_path: Path) -> None:
    claims(tmp_path / "quickstart", {"wins": CLAIM | {"assumed": {"seed_sd": 0.01}}})
    code = f"import sys, bench.cli; bench.cli.main({['plan', *words]}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
