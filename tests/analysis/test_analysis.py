"""Laws of the tables and the statistics, on records with values that can be checked by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from toy_runs import CLM, PROBE, cell, make_run, tables_of, toy_runs, toy_tables

from bench.analysis import compare, stats
from bench.analysis.compare import baseline_cell, choose, headline_place, headline_rows, summaries, verdict
from bench.analysis.decision import Decision, decisions, needs
from bench.analysis.error_model import Difference
from bench.analysis.format import latex_escape, markdown_escape, plain, with_seeds
from bench.analysis.frames import Cell, Condition, Tables
from bench.records import CurvePoint, Divergence, RunRecord, Score, Spent, read_record, write_record
from bench.report.csv_tables import csv_tables
from bench.report.tables import results as views
from bench.report.tables.findings import learning
from bench.report.tables.provenance import warnings


def summary_of(tables: Tables, wanted: Cell) -> Any:
    return next(row for row in summaries(tables, PROBE) if row.cell == wanted)


def test_interval_of_three_seeds_is_students():
    found = stats.interval([0.3, 0.1, 0.2])
    assert found is not None
    half = 4.3027 * 0.1 / math.sqrt(3)  # t at 97.5 % with two degrees of freedom, sd 0.1
    assert (found.n, found.mean) == (3, pytest.approx(0.2))
    assert found.low == pytest.approx(0.2 - half, abs=1e-5)
    assert found.high == pytest.approx(0.2 + half, abs=1e-5)


def test_interval_needs_three_seeds_and_ignores_their_order():
    assert stats.interval([]) is None
    assert stats.interval([0.25, 0.75]) == stats.Interval(0.5, None, None, 2)
    values = [0.1, 0.5, 0.2, 0.9, 0.3, 0.4]
    assert stats.interval(values) == stats.interval(values[::-1])


def test_interval_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        stats.interval([0.5, math.nan])


def test_how_little_two_seeds_know_is_told():
    assert "Fewer than 3 seeds have no interval" in views.seeds_note([2, 5])
    assert "Fewer than 3 seeds" not in views.seeds_note([3])


def test_pooling_averages_cells_within_seeds_that_have_all():
    assert stats.pool(np.array([[1.0, 2.0], [3.0, np.nan]])).tolist() == pytest.approx(
        [2.0, np.nan], nan_ok=True
    )
    assert np.isnan(stats.pool(np.empty((0, 2)))).all()


def test_cell_means_and_differences_are_the_hand_computed_ones():
    row = summary_of(toy_tables(), cell("clm"))
    assert row.interval.mean == pytest.approx(0.63)
    assert row.to_scratch.interval.mean == pytest.approx(0.11)
    error, df = math.sqrt((0.03**2 + 0.02**2) / 3), (9 + 4) ** 2 / (81 / 2 + 16 / 2)  # Welch
    half = scipy.stats.t(df).ppf(0.975) * error
    assert row.to_scratch.interval.low == pytest.approx(0.11 - half, abs=1e-5)
    assert row.to_scratch.interval.high == pytest.approx(0.11 + half, abs=1e-5)
    assert (row.to_scratch.is_paired, row.to_scratch.interval.n) == (False, 3)


def test_two_seeds_of_scratch_leave_a_difference_without_an_interval():
    records = [record for record in toy_runs() if record.run_id != "scratch-None-0"]
    row = summary_of(tables_of(records), cell("clm"))
    assert (row.to_scratch.is_tested, row.to_scratch.interval.n) == (False, 2)
    assert row.interval.n == 3


def gap_of(mean: float, half: float | None, p: float) -> Difference:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Difference(stats.Interval(mean, low, high, 3), p, is_paired=False)


def word(gap: Difference | None, *, better: bool = True, p_holm: float = 0.01, lacking: str = "") -> str:
    return verdict(gap, higher_is_better=better, p_holm=p_holm, lacking=lacking)


def test_verdict_follows_the_better_side():
    gap = gap_of(0.11, 0.05, 0.01)
    assert word(gap) == compare.AHEAD
    assert word(gap, better=False) == compare.BEHIND
    assert word(gap_of(0.1, 0.2, 0.3), p_holm=1.0) == "inconclusive"
    assert "fewer than three seeds" in word(gap_of(0.11, None, 1.0))
    assert "no score" in word(gap, lacking="no score")


def test_a_test_that_the_correction_undoes_leans_and_does_not_decide():
    gap = gap_of(0.11, 0.05, 0.01)
    assert word(gap_of(0.2, 0.3, 0.295), p_holm=0.3) == compare.INCONCLUSIVE
    assert word(gap, p_holm=0.06) == compare.LEANS_AHEAD
    assert word(gap, p_holm=0.06, better=False) == compare.LEANS_BEHIND


def test_holms_correction_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_the_headline_is_the_largest_place_that_most_strategies_were_run_at():
    larger = [make_run("mlm", seed, 0.7, budget="2kb") for seed in range(3)]
    larger += [make_run("clm", seed, 0.6, budget="2kb", run_id=f"clm-2kb-{seed}") for seed in range(3)]
    alone = make_run("mlm", 0, 0.9, budget="4kb", spent=Spent(steps=1, unique_bytes=4000))
    spent = [replace(run, spent=Spent(steps=1, unique_bytes=2000)) for run in larger]
    tables = toy_tables(*spent, alone)
    assert headline_place(tables) == ("tiny", "2kb")
    means = {row.condition.strategy: row.interval for row in headline_rows(tables, [PROBE])}
    assert means["mlm"] is not None
    assert means["mlm"].mean == pytest.approx(0.7)  # the run at 4kb is not averaged in
    assert "At data budget 2kb" in views.headline(tables).note


def test_an_order_that_differs_elsewhere_is_named():
    runs = [make_run("mlm", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    for strategy, value in (("mlm", 0.9), ("clm", 0.8)):
        spent = Spent(steps=1, unique_bytes=2000)
        values = (value - 0.01, value, value + 0.01)
        runs += [make_run(strategy, i, v, budget="2kb", spent=spent) for i, v in enumerate(values)]
    note = views.headline(toy_tables(*runs)).note
    assert "Another strategy is better elsewhere (p ≤ 0.05): probe (mlm here; clm at 1kb)." in note
    assert "better elsewhere" not in views.headline(toy_tables()).note


def test_bold_is_the_strategy_that_is_better_than_each_other_one():
    close = [make_run("mlm", seed, value) for seed, value in enumerate((0.61, 0.62, 0.66))]
    assert len(views.headline(toy_tables()).best) == 1
    assert not views.headline(toy_tables(*close)).best
    assert not views.cells(toy_tables(*close), PROBE).best


def test_a_strategy_that_was_not_run_at_the_headlines_place_has_no_number():
    tables = toy_tables(*(make_run("mlm", seed, 0.7, budget="2kb") for seed in range(3)))
    [row] = [row for row in headline_rows(tables, [PROBE]) if row.condition == Condition("clm", "")]
    assert (row.interval, row.verdict) == (None, "inconclusive (no score)")


def test_the_choice_names_the_tied_the_beaten_and_the_missing():
    mlm = [make_run("mlm", seed, value) for seed, value in enumerate((0.61, 0.62, 0.66))]
    lost = make_run("clip", 0, None)
    choice = choose(toy_tables(*mlm, lost), PROBE, "tiny", "1kb")
    assert choice is not None
    assert choice.best == Condition("clm", "")
    assert (choice.tied, choice.missing) == ((Condition("mlm", ""),), (Condition("clip", ""),))
    assert choice.beaten == (Condition("scratch", ""),)


def test_a_failed_run_is_never_a_number():
    spoilt = make_run("clm", 3, None, scores=(Score("probe", "accuracy", 0.0, 0.25, 100),))
    diverged = make_run("mlm", 0, None, status="diverged")
    tables = toy_tables(spoilt, diverged)
    assert summary_of(tables, cell("clm")).interval.n == 3
    assert summary_of(tables, cell("mlm")).interval is None
    written = csv_tables(tables, Path("nowhere"))
    assert set(written["scores"]["status"]) == {"finished"}
    lost = written["runs"][written["runs"]["status"] != "finished"]
    assert set(lost["reason"]) == {"out of memory"}
    costs = ("flops", "forward_tokens", "unique_bytes", "pretrain_s")
    assert lost[[*costs]].isna().all(axis=None)


def test_an_empty_cell_shows_its_status():
    view = views.cells(toy_tables(make_run("mlm", 0, None)), PROBE)
    row = next(row for row in view.rows if plain(row[0]) == "mlm")
    assert "1 failed" in plain(row[3])


def test_scratch_has_no_budget_and_no_unique_data():
    runs = csv_tables(toy_tables(), Path("nowhere"))["runs"]
    scratch = runs[runs["strategy"] == "scratch"]
    assert scratch[["budget", "unique_bytes"]].isna().all(axis=None)
    assert scratch["flops"].tolist() == [0.0, 0.0, 0.0]  # no pretraining really costs nothing


def test_budgets_stand_in_order_of_size_not_of_name():
    big = Spent(steps=1, unique_bytes=20_000)
    tables = toy_tables(make_run("clm", 0, 0.7, budget="1mb", spent=big))
    assert tables.budgets == ("1kb", "1mb")


def test_repeated_seeds_count_once_and_are_told():
    tables = toy_tables(make_run("clm", 0, 0.70, run_id="again"))
    row = summary_of(tables, cell("clm"))
    assert row.interval.n == 3
    assert row.interval.mean == pytest.approx((0.65 + 0.63 + 0.66) / 3)
    assert any("repeat a cell" in line for line in warnings(tables))


def test_disagreeing_data_and_software_are_told():
    assert warnings(toy_tables()) == []
    other = make_run("mlm", 0, 0.6, data={"text": {"content_hash": "xyz"}}, environment={"torch": "2.8"})
    lines = " ".join(warnings(toy_tables(other)))
    assert "text.content_hash" in lines
    assert "torch" in lines


def test_text_carries_n_and_interval_or_says_that_there_is_none():
    assert with_seeds(stats.Interval(0.5, 0.4, 0.6, 3)) == "0.500 [0.400, 0.600], n = 3 seeds"
    assert "one seed" in with_seeds(stats.Interval(0.5, None, None, 1))
    assert with_seeds(None) == "no result"


def test_markup_in_names_is_text():
    assert markdown_escape("a|b<c>\n*d*") == r"a\|b&lt;c&gt; \*d\*"
    assert latex_escape(r"50% of a_b \x") == r"50\% of a\_b \textbackslash{}x"


def test_a_lost_run_leaves_the_verdict_open():
    tables = toy_tables(make_run("clm", 3, None))
    [row] = [row for row in headline_rows(tables, [PROBE]) if row.condition == Condition("clm", "")]
    assert (row.n_lost, row.verdict) == (1, "inconclusive (1 runs lost)")


def test_a_cell_is_compared_with_scratch_of_the_same_settings_or_with_none():
    tables = tables_of(
        [
            make_run("scratch", 0, 0.5),
            make_run("clm", 0, 0.7, variant="corpus/text=nltk optim.lr_peak=0.1"),
        ],
    )

    def beside(variant: str) -> str:
        return baseline_cell(Cell(Condition("clm", variant), "tiny", "1kb")).condition.variant

    assert beside("optim.lr_peak=0.1") == ""
    assert beside("corpus/text=nltk optim.lr_peak=0.1") == "corpus/text=nltk"
    found = {row.condition.strategy: row for row in headline_rows(tables, [PROBE])}
    assert found["clm"].verdict == "no verdict (no scratch with the same settings)"


# Training progress and gain over scratch


def curve(*losses: float) -> tuple[CurvePoint, ...]:
    """Held-out losses; the training loss falls by one at each point."""
    return tuple(CurvePoint(i + 1, 100 * i, 1e6 * i, 9.0 - i, loss) for i, loss in enumerate(losses))


def learned(tables: Tables) -> list[list[str]]:
    return [[plain(entry) for entry in row] for row in learning(tables).rows]


def test_a_strategy_that_learned_and_pays_says_on_what():
    runs = [make_run("clm", i, v, curve=curve(3.0, 2.0), budget="1kb") for i, v in enumerate(CLM)]
    tables = tables_of([*toy_runs()[:3], *runs])
    assert learned(tables) == [["clm", "3 of 3 runs", "3 of 3 runs", "probe +0.110 ▲"]]
    assert "Every strategy is better than scratch on at least one task." in learning(tables).note


def test_a_strategy_that_pays_nowhere_and_a_loss_that_rose_are_named():
    worse = [0.4, 0.5, 0.3]
    ends = [(3.0, 2.0), (2.0, 3.0), (2.0, 2.0)]
    runs = [make_run("mlm", i, v, curve=curve(*ends[i])) for i, v in enumerate(worse)]
    lost = make_run("mlm", 3, None)
    tables = tables_of([*toy_runs()[:3], *runs, lost])
    assert learned(tables) == [["mlm", "3 of 3 runs", "1 of 3 runs", "–"]]
    assert "Better than scratch on no task: mlm." in learning(tables).note


def test_better_means_lower_where_lower_is_better():
    def record(strategy: str, seed: int, value: float) -> RunRecord:
        score = Score("text", "bits", value, 8.0, 100, higher_is_better=False)
        return make_run(strategy, seed, value, scores=(score,), curve=curve(3.0, 2.0))

    runs = [record(name, i, v) for name, v in (("scratch", 5.0), ("clm", 4.0)) for i in range(2)]
    assert learned(tables_of(runs))[-1][-1].startswith("text −1.000")


# External references


def decided(tables: Tables) -> list[Decision]:
    return decisions(tables, PROBE, needs(tables))


def external(seed: int, value: float, model: str = "hf[name=bert]", **changes: Any) -> RunRecord:
    changes = {"run_id": f"{model}-{seed}", "model": model, "budget": None, "parameters": 9999} | changes
    return make_run("reference", seed, value, **changes)


def test_an_external_reference_is_marked_and_changes_no_other_row():
    without, tables = toy_tables(), toy_tables(*(external(seed, 0.9 + seed / 100) for seed in range(3)))
    assert [row for row in headline_rows(tables, [PROBE]) if not row.condition.is_external] == headline_rows(
        without, [PROBE]
    )
    [row] = [row for row in headline_rows(tables, [PROBE]) if row.condition.is_external]
    assert row.verdict == "external reference"
    assert row.interval is not None
    assert row.interval.mean == pytest.approx(0.91)
    assert row.to_scratch is None
    assert choose(tables, PROBE, "tiny", "1kb") == choose(without, PROBE, "tiny", "1kb")
    assert decided(tables) == decided(without)
    other, ours = ({"tokenizer_sha256": text} for text in ("abc", "xyz"))
    guess = Score("probe", "accuracy", 0.9, 0.1, 100)  # by another vocabulary
    reference = external(0, 0.9, data=other, scores=(guess,))
    assert warnings(toy_tables(reference, make_run("mlm", 0, 0.6, data=ours))) == []
    view = views.headline(tables)
    assert plain(view.rows[-1][0]) == "reference [hf[name=bert]] (external)"
    assert "trained elsewhere" in view.note
    assert "trained elsewhere" not in views.headline(without).note


def test_every_external_model_is_a_row_of_its_own():
    tables = toy_tables(external(0, 0.9), external(0, 0.7, model="hf[name=gpt2]"))
    means = {
        r.condition.variant: r.interval.mean
        for r in headline_rows(tables, [PROBE])
        if r.condition.is_external and r.interval
    }
    assert means == {"hf[name=bert]": pytest.approx(0.9), "hf[name=gpt2]": pytest.approx(0.7)}
    assert tables.models == ("tiny",)


def test_scratch_of_its_architecture_makes_no_verdict_of_an_external_reference():
    name = "hf[name=bert]"
    scratch = [make_run("scratch", s, 0.5, model=name, run_id=f"hf-{s}") for s in range(3)]
    tables = toy_tables(*scratch, *(external(seed, 0.9 + seed / 100) for seed in range(3)))
    rows = {row.condition: row for row in headline_rows(tables, [PROBE])}
    [reference] = [row for arm, row in rows.items() if arm.is_external]
    assert (reference.to_scratch, reference.verdict) == (None, "external reference")
    assert all(s.to_scratch is None for s in summaries(tables, PROBE) if s.cell.condition.is_external)


def test_what_trains_on_from_a_checkpoint_is_paired_with_it():
    name = "hf[name=bert]"
    trained = [make_run("mlm", s, 0.95 + s / 100, model=name, run_id=f"mlm-{s}") for s in range(3)]
    tables = toy_tables(*trained, *(external(seed, 0.9) for seed in range(3)))
    rows = [[plain(entry) for entry in row] for row in views.pairs(tables).rows]
    [row] = [row for row in rows if row[3] == name and "(external)" in row[2]]
    assert row[5].startswith("+0.060")


def test_a_study_of_external_references_alone_is_a_table_without_verdicts():
    tables = tables_of([external(seed, 0.9) for seed in range(3)])
    assert decided(tables) == []
    assert [row.verdict for row in headline_rows(tables, [PROBE])] == ["external reference"]


def test_a_retried_run_says_so_in_its_record_and_in_the_table_of_runs(tmp_path: Path):
    tries = (Divergence(7, 3.5, 0.006), Divergence(2, None, 0.003))
    retried = make_run("clm", 5, 0.6, divergences=tries)
    path = write_record(retried.record(), tmp_path)
    assert read_record(path) == retried.record()
    shown = "diverged at optim.lr_peak=0.006 after step 7, at optim.lr_peak=0.003 after step 2, "
    rows = {
        row[5]: row[6] for row in views.runs(tables_of([retried, make_run("clm", 6, 0.6)]), "records").rows
    }
    assert rows == {"5": f"finished: {shown}trained anew at 0.0015", "6": "finished"}
