"""Laws of claims.yaml and of the verdicts on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.analysis.claims import Claims, Side, read_claims
from bench.analysis.judging import Judged, judge
from bench.errors import ConfigError
from tests.laws.toy_runs import make_run, tables_of, toy_runs

GOOD: dict[str, Any] = {
    "statement": "clm is better than scratch.",
    "source": "a test",
    "test": "superiority",
    "left": {"strategy": "clm"},
    "right": {"strategy": "scratch"},
    "task": "probe",
    "metric": "accuracy",
    "smallest_effect": 0.03,
}


def write(folder: Path, **changes: Any) -> Claims:
    """The good claim with some keys changed, or without those set to None, read back."""
    claim = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    text = yaml.safe_dump({"written": "2026-11-25", "claims": {"first": claim}})
    (folder / "claims.yaml").write_text(text, encoding="utf-8")
    found = read_claims(folder)
    assert found is not None
    return found


def verdict(folder: Path, **changes: Any) -> Judged:
    return judge(tables_of(toy_runs()), write(folder, **changes))[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"smalest_effect": 0.03}, "smalest_effect"),
        ({"smallest_effect": "much"}, "smallest_effect"),
        ({"smallest_effect": 0.0}, "smallest_effect"),
        ({"task": None}, "task"),
        ({"statement": None}, "statement"),
        ({"test": "superiorty"}, "did you mean superiority"),
        ({"left": {}}, "left.strategy"),
        ({"left": {"strategy": "clm", "seeds": [0, 1]}}, "right.seeds"),
        ({"better": "more"}, "better"),
        ({"test": "crossover", "between": [1, 2]}, "axis"),
        ({"test": "crossover", "axis": "labels"}, "between"),
        ({"test": "variance_ratio", "smallest_effect": 1.0}, "a ratio above 1"),
    ],
)
def test_a_bad_claim_is_one_line_with_file_claim_and_key(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as error:
        write(tmp_path, **changes)
    text = str(error.value)
    assert "claims.yaml" in text
    assert "claims.first" in text
    assert named in text
    assert "\n" not in text


def test_a_study_without_the_file_has_no_claims(tmp_path: Path) -> None:
    assert read_claims(tmp_path) is None


def test_a_side_takes_the_shared_wishes_where_it_has_none() -> None:
    assert Side("clm", model="1m").within(Side(model="2m", budget="1kb")) == Side("clm", None, "1m", "1kb")


def test_a_clear_lead_is_supported_and_its_mirror_contradicted(tmp_path: Path) -> None:
    assert verdict(tmp_path).verdict == "supported"
    sides = {"left": GOOD["right"], "right": GOOD["left"]}
    assert verdict(tmp_path, **sides).verdict == "contradicted"


def test_a_lead_smaller_than_the_smallest_effect_is_equivalent(tmp_path: Path) -> None:
    assert verdict(tmp_path, smallest_effect=0.5).verdict == "equivalent"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "prob"}, "did you mean probe"),
        ({"metric": "acuracy"}, "did you mean accuracy"),
        ({"left": {"strategy": "clmm"}}, "did you mean clm"),
        ({"cells": {"budget": "9kb"}}, "budget=9kb"),
    ],
)
def test_what_the_study_lacks_is_not_run_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **changes)
    assert found.verdict == "not run"
    assert reason in found.evidence.why_not


def test_a_lost_run_is_never_support(tmp_path: Path) -> None:
    tables = tables_of([*toy_runs(), make_run("clm", 3, None)])
    found = judge(tables, write(tmp_path))[0]
    assert (found.verdict, found.p_holm) == ("not run", None)
    assert "1 of 4 runs" in found.evidence.why_not


def test_seeds_that_a_claim_lists_have_to_be_run(tmp_path: Path) -> None:
    sides = {side: GOOD[side] | {"seeds": [0, 1, 7]} for side in ("left", "right")}
    found = verdict(tmp_path, **sides)
    assert found.verdict == "not run"
    assert "seed 7" in found.evidence.why_not
