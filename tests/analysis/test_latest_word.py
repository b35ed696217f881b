"""A finished record stays, and the latest failure of a task is the one that is told."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from toy_runs import make_run

from bench.analysis.format import latex_escape
from bench.models.api_client import _is_log_probability
from bench.records import EvaluationRecord, TaskResult, failures_of, read_record, results_of, write_record
from bench.report.csv_tables import _escaped
from bench.report.rendering import visible


def evaluation(status: Literal["finished", "failed"], reason: str | None = None) -> EvaluationRecord:
    return EvaluationRecord("e", "r", "s", (TaskResult("squad", status, config={}, reason=reason),))


def test_the_latest_failure_is_told_and_an_earlier_score_stays():
    done, first, second = evaluation("finished"), evaluation("failed", "one"), evaluation("failed", "two")
    assert failures_of([first, second]) == failures_of([done, first, second]) == ["squad: two"]
    assert results_of([first, second])["squad"].reason == "two"
    assert results_of([done, second])["squad"].status == "finished"
    assert failures_of([first, done]) == []


def test_a_failed_record_never_replaces_a_finished_one(tmp_path: Path):
    record = make_run("clm", 0, 0.5).record()
    path = write_record(record, tmp_path)
    write_record(replace(record, status="failed", reason="a rank timed out"), tmp_path)
    assert read_record(path).status == "finished"


def test_a_finished_record_replaces_a_failed_one(tmp_path: Path):
    record = make_run("clm", 0, 0.5).record()
    write_record(replace(record, status="failed", reason="a rank timed out"), tmp_path)
    assert read_record(write_record(record, tmp_path)).status == "finished"


@pytest.mark.parametrize("cell", ["\n=1+1", " =1", "\ufeff=1", "\u202e@x", "\x0b-1+1", "＝1"])
def test_a_formula_behind_blanks_is_a_text_in_csv(cell: str):
    assert _escaped(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-0.5", "clm", "a=b", "a\n=b"])
def test_other_cells_stay_as_they_are(cell: str):
    assert _escaped(cell) == cell


def test_latex_and_pages_hold_no_control_and_no_mark_of_direction():
    assert latex_escape("a\x1cb\x0bc\x85d\u2028e\u202ef") == "a b c d e?f"
    assert visible("a\u202eb\x1bc\td\n") == "a\\u202eb\\x1bc\td\n"


def test_a_truth_value_is_no_log_probability():
    assert not _is_log_probability(False)
    assert _is_log_probability(0)
