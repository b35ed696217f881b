"""Laws of the frames that every statistic starts from."""

import re

import numpy as np
from toy_runs import make_run, toy_tables

from bench.analysis import frames
from bench.analysis.frames import Measure
from bench.records import Score


def test_every_column_of_a_frame_is_documented():
    tables = toy_tables()
    made_by = {
        "runs": frames.run_frame,
        "results": frames.result_frame,
        "scores": frames.score_frame,
        "curves": frames.curve_frame,
        "energies": frames.energy_frame,
    }
    for name, maker in made_by.items():
        documented = set(re.findall(r"`(\w+)`", maker.__doc__ or "")) | set(frames.AXES)
        assert set(getattr(tables, name).columns) <= documented, name


def test_what_was_not_measured_is_absent_and_never_zero():
    tables = toy_tables(make_run("mlm", 0, None))
    lost = tables.runs[tables.runs["status"] == "failed"]
    assert lost[["flops", "forward_tokens", "parameters"]].isna().sum(axis=None) >= 2
    assert tables.runs["pretrain_joules_measured"].isna().all()
    assert not tables.scores["run_id"].isin(lost["run_id"]).any()


def test_values_are_a_row_per_cell_and_a_column_per_seed():
    tables = toy_tables(make_run("clm", 7, 0.5, scores=[Score("other", "f1", 0.5, None, 10)]))
    values = tables.by_seed(Measure("other", "f1"))
    assert values.shape == (len(tables.cells), len(tables.seeds))
    assert values.notna().sum(axis=None) == 1
    assert tables.by_seed(Measure("unknown", "f1")).isna().all(axis=None)
    assert np.isclose(tables.scores["value"].iloc[-1], 0.5)
