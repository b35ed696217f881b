"""Laws of the decision table and of `bench advise`, on records with values that can be checked by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from toy_runs import (
    CLM,
    PROBE,
    SCRATCH,
    ToyRun,
    make_run,
    results_from,
    tables_of,
    toy_runs,
    toy_tables,
    write_study,
)

from bench.analysis.advise import advise, matching, read_bytes, read_flops
from bench.analysis.decision import Caps, Decision, decide, decisions, levels, needs
from bench.analysis.format import plain
from bench.analysis.frames import Cell, Condition, Tables
from bench.cli import main
from bench.errors import BenchError, ConfigError
from bench.records import Score, Spent
from bench.report.tables.results import decision_table

ANY = Caps(None, None)


def decision(tables: Tables, caps: Caps = ANY) -> Decision:
    found = decide(tables, PROBE, caps, needs(tables))
    assert found is not None
    return found


def arm_runs(strategy: str, values: tuple[float, ...], **changes: Any) -> list[ToyRun]:
    return [make_run(strategy, seed, value, **changes) for seed, value in enumerate(values)]


def sized(strategy: str, values: tuple[float, ...], data: int, flops: float, **changes: Any) -> list[ToyRun]:
    spent, name = Spent(steps=1, flops=flops, unique_bytes=data), f"{data}b{flops:.0e}"
    ids = [f"{strategy}-{name}-{seed}" for seed in range(len(values))]
    made = arm_runs(strategy, values, budget=name, spent=spent, **changes)
    return [run.__class__(**(vars(run) | {"run_id": run_id})) for run, run_id in zip(made, ids, strict=True)]


# Certainty


def test_a_clear_lead_is_nearly_certain_and_equals_share():
    assert decision(toy_tables()).certainty == pytest.approx(
        0.99, abs=0.01
    )  # 0.11 ahead, standard error 0.02
    equal = tables_of(arm_runs("scratch", SCRATCH) + arm_runs("clm", SCRATCH))
    assert decision(equal).certainty == pytest.approx(0.5, abs=0.03)


def test_fewer_than_three_seeds_of_any_candidate_have_no_certainty():
    for few, many in (("scratch", "clm"), ("clm", "scratch")):
        runs = arm_runs(few, (0.5, 0.6)) + arm_runs(many, CLM)
        assert decision(tables_of(runs)).certainty is None
    assert [plain(entry) for entry in decision_table(tables_of(runs)).rows[0]][7] == "–"


# What fits


def grid() -> Tables:
    """More data and more compute are better, each at two levels; scratch is worst."""
    runs = arm_runs("scratch", SCRATCH)
    for data, gain in ((1_000, 0.0), (4_000, 0.1)):
        for flops, more in ((1e9, 0.0), (1e10, 0.02)):
            runs += sized("clm", tuple(v + gain + more for v in CLM), data, flops)
    return tables_of(runs)


def best_of(tables: Tables, caps: Caps) -> str | None:
    return decision(tables, caps).best.budget


def test_the_best_lies_within_both_caps_and_scratch_always_does():
    tables = grid()
    assert best_of(tables, ANY) == "4000b1e+10"
    assert best_of(tables, Caps(1_000, None)) == "1000b1e+10"
    assert best_of(tables, Caps(3_999, 9e9)) == "1000b1e+09"
    assert best_of(tables, Caps(None, 1e9)) == "4000b1e+09"
    assert decision(tables, Caps(999, None)).best.condition.strategy == "scratch"


def test_the_table_has_a_row_per_level_of_data_and_compute():
    tables = grid()
    assert levels(needs(tables)) == [Caps(d, f) for d in (1_000, 4_000) for f in (1e9, 1e10)]
    rows = [[plain(entry) for entry in row] for row in decision_table(tables).rows]
    assert [row[1:3] + row[5:6] for row in rows] == [
        ["1 kB", "1.0×10⁹", "1000b1e+09"],
        ["1 kB", "1.0×10¹⁰", "1000b1e+10"],
        ["4 kB", "1.0×10⁹", "4000b1e+09"],
        ["4 kB", "1.0×10¹⁰", "4000b1e+10"],
    ]
    assert [int(row[7].split()[0]) for row in rows] == pytest.approx([98, 71, 98, 71], abs=3)


def test_strategies_of_one_budget_share_a_level_that_the_dearest_sets():
    runs = sized("clm", CLM, 1_000, 1e9) + sized("mlm", CLM, 1_000, 0.7e9)
    assert [caps.flops for caps in levels(needs(tables_of(runs)))] == [1e9]
    assert len(decisions(tables_of(runs), PROBE, needs(tables_of(runs)))) == 1


def test_the_data_budget_that_was_granted_counts_for_pairs_too():
    asked = {"budget": {"unique_bytes": 4_000, "unique_pairs": 10}}
    pairs = Spent(steps=1, flops=1e9, unique_pairs=10)
    tables = tables_of(arm_runs("scratch", SCRATCH) + arm_runs("clip", CLM, spent=pairs, config=asked))
    assert decision(tables, Caps(4_000, None)).best.condition.strategy == "clip"
    assert decision(tables, Caps(3_999, None)).best.condition.strategy == "scratch"


def test_what_is_not_known_does_not_fit_a_cap():
    tables = tables_of(arm_runs("scratch", SCRATCH) + arm_runs("clip", CLM, spent=Spent(steps=1, flops=1e9)))
    assert decision(tables, Caps(10**9, None)).best.condition.strategy == "scratch"
    assert decision(tables, ANY).best.condition.strategy == "clip"


def test_the_decision_names_who_is_not_told_apart_who_is_ahead_and_who_is_missing():
    tables = toy_tables(*arm_runs("mlm", (0.61, 0.62, 0.66)), make_run("clip", 0, None))
    found = decision(tables)
    assert found.best == Cell(Condition("clm", ""), "tiny", "1kb")
    assert [cell.condition.strategy for cell in found.tied] == ["mlm"]
    assert [cell.condition.strategy for cell in found.missing] == ["clip"]
    assert [cell.condition.strategy for cell in found.ahead] == ["clm", "mlm"]
    values = [
        scipy.stats.ttest_ind(own, SCRATCH, equal_var=False).pvalue for own in (CLM, (0.61, 0.62, 0.66))
    ]
    assert found.p_holm == pytest.approx(max(2 * min(values), values[0]))  # Holm's step for clm


def test_the_best_scratch_of_any_model_is_what_pretraining_must_beat():
    big = arm_runs("scratch", (0.70, 0.72, 0.74), model="big", parameters=999)
    tables = toy_tables(*[ToyRun(**(vars(run) | {"run_id": f"big{run.seed}"})) for run in big])
    found = decision(tables)
    assert (found.best.condition.strategy, found.best.model) == ("scratch", "big")
    assert found.ahead == ()


# Advice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path, toy_runs()) / "experiments"


def answers(folder: Path, task: str = "probe", data: str = "", flops: str = "", study: str = "") -> list[str]:
    return advise(task, data, flops, study, folder).lines


def add_study(folder: Path, name: str, runs: list[ToyRun]) -> None:
    """Write one more study beside the others."""
    (folder / "toy").rename(folder / "aside")
    write_study(folder.parent, runs)
    (folder / "toy").rename(folder / name)
    (folder / "aside").rename(folder / "toy")


def test_advice_is_six_lines_what_how_surely_scale_levels_studies_and_next(folder: Path):
    assert answers(folder) == [
        "probe: pretrain clm, tiny, 1kb",
        "how surely: clm, tiny, 1kb: accuracy 0.630 [0.555, 0.705], n = 3 seeds; ahead of scratch by +0.110 "
        "[+0.049, +0.171], 3 seeds each, p = 0.009 (Holm, 1 compared); best in 98 % of simulated outcomes; "
        "not distinguishable: none",
        "scale: model tiny (100 parameters); 1 kB of unique text; 1.0×10⁹ FLOPs; study toy, runs clm-1k "
        "clm-1k clm-1k",
        "levels: chance 0.250, no trivial baseline, scratch 0.520",
        "studies: toy alone",
        "to settle it: nothing is open between strategies at this scale; other scales have to be measured",
    ]


def test_a_frozen_task_is_held_against_random_features(tmp_path: Path):
    frozen = [replace(run, results=results_from(run.results[0].scores, "probe")) for run in toy_runs()]
    text = " ".join(answers(write_study(tmp_path, frozen) / "experiments"))
    assert "ahead of random features by +0.110" in text
    assert "random features 0.520" in text
    assert "scratch" not in text


def test_nothing_measured_within_the_budget_is_said_and_not_extrapolated(folder: Path):
    first, second = answers(folder, data="999", flops="1e12")
    assert first == (
        "probe: nothing pretrained was measured within this budget; the least measured: 1 kB of unique text "
        "with 1.0×10⁹ FLOPs (clm, tiny, 1kb)"
    )
    assert second == "studies: toy alone"


def test_a_budget_beyond_what_was_measured_is_answered_by_what_was(folder: Path):
    scale = answers(folder, data="2MB", flops="1e13")[2]
    assert "nothing was measured beyond 1 kB of unique text and 1.0×10⁹ FLOPs" in scale
    assert "beyond" not in answers(folder, data="1kB", flops="1e9")[2]


def test_no_pretraining_is_advised_where_none_is_shown_to_beat_scratch(tmp_path: Path):
    none = "probe: no pretraining measured within this budget is shown to beat scratch"
    worse = arm_runs("scratch", SCRATCH) + arm_runs("clm", (0.4, 0.5, 0.6))  # -0.10 -0.02 +0.06
    found = answers(write_study(tmp_path / "a", worse) / "experiments")
    assert found[0] == none
    assert found[1].startswith("how surely: best mean: scratch, tiny: accuracy 0.520")
    lucky = arm_runs("scratch", SCRATCH) + arm_runs("clm", (0.5, 0.7, 0.5))  # 0.00 +0.18 -0.04
    found = answers(write_study(tmp_path / "b", lucky) / "experiments")
    assert found[0] == none
    assert found[1].startswith("how surely: best mean: clm, tiny, 1kb: accuracy 0.567")
    assert "not distinguishable: (scratch, tiny)" in found[1]
    assert found[5].startswith("to settle it: clm, tiny, 1kb against scratch, tiny takes ")


def test_who_is_shown_to_beat_scratch_is_named_where_the_best_mean_is_not(tmp_path: Path):
    runs = [*toy_runs(), *arm_runs("mlm", (0.5, 0.9, 0.8))]
    what, surely, *_ = answers(write_study(tmp_path, runs) / "experiments")
    assert what == "probe: pretrain one that is shown to beat scratch: (clm, tiny, 1kb)"
    assert surely.startswith("how surely: best mean: mlm, tiny, 1kb: accuracy 0.733")
    assert "; difference to scratch +0.213" in surely


def test_where_there_is_no_scratch_or_no_rival_the_answer_says_so(tmp_path: Path):
    what, surely, *_ = answers(write_study(tmp_path, arm_runs("clm", CLM)) / "experiments")
    assert what == "probe: clm, tiny, 1kb has the best mean; no scratch to compare with"
    assert surely.endswith("no rival was measured")


MLM_WINS = [*arm_runs("scratch", SCRATCH), *arm_runs("clm", SCRATCH), *arm_runs("mlm", (0.80, 0.81, 0.82))]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([*toy_runs(), make_run("mlm", 0, 0.3)], "agrees (accuracy 0.630)"),
        (arm_runs("scratch", SCRATCH) + arm_runs("clm", (0.5, 0.7, 0.5)), "not shown to beat scratch"),
        (MLM_WINS, "disagrees: mlm, tiny, 1kb is better (accuracy 0.810)"),
        ([*toy_runs(), *arm_runs("mlm", (0.61, 0.64, 0.67))], "does not decide: its best mean is mlm"),
        (arm_runs("scratch", SCRATCH) + arm_runs("mlm", CLM), "has no clm; its best mean is mlm"),
        (arm_runs("scratch", SCRATCH) + arm_runs("clm", (0.24, 0.25, 0.26)), "is not informative"),
    ],
)
def test_several_studies_give_one_answer_that_says_where_they_disagree(
    folder: Path, runs: list[ToyRun], words: str
):
    more = [make_run(name, 3, value) for name, value in (("scratch", 0.52), ("clm", 0.63))]  # so it answers
    add_study(folder, "second", runs)
    write_study(folder.parent, more)
    found = answers(folder)
    assert len(found) == 6
    assert found[0] == "probe: pretrain clm, tiny, 1kb"
    assert found[4].startswith("studies: toy answers; second ")
    assert words in found[4]
    assert "second" in answers(folder, study="second")[-2]


def test_the_levels_name_the_trivial_baseline_where_it_was_recorded(tmp_path: Path):
    trivial = [make_run("trivial", seed, 0.4, budget=None) for seed in range(3)]
    found = answers(write_study(tmp_path, [*toy_runs(), *trivial]) / "experiments")
    assert found[3] == "levels: chance 0.250, trivial baseline 0.400, scratch 0.520"


def test_a_task_that_is_not_informative_gives_no_advice(tmp_path: Path):
    runs = arm_runs("scratch", SCRATCH) + arm_runs("clm", (0.24, 0.25, 0.26))
    found = answers(write_study(tmp_path, runs) / "experiments")
    assert found[0] == "probe: not informative at this scale"
    assert "no strategy is better than chance (0.250) by more than noise" in found[1]
    assert "pretrain" not in " ".join(found)


@pytest.mark.parametrize("text", ["advises: false", "advises: 0", "advice: false", "advises: [", "no"])
def test_a_study_says_in_its_readme_that_it_gives_no_advice(folder: Path, text: str):
    add_study(folder, "second", MLM_WINS)
    (folder / "second/README.md").write_text(f"---\n{text}\n---\n# A sweep of rates\n")
    if text != "advises: false":
        with pytest.raises(ConfigError, match=r"second/README\.md: front matter"):
            answers(folder)
        return
    assert answers(folder)[4] == "studies: toy alone"
    with pytest.raises(ConfigError, match="study=second: it gives no advice"):
        answers(folder, study="second")


def test_of_several_tasks_the_one_that_trains_the_network_is_answered(tmp_path: Path):
    runs = []
    for run in toy_runs():
        [score] = run.results[0].scores
        frozen = results_from([replace(score, task="probe_frozen", value=score.value + 0.1)], "probe")
        runs.append(replace(run, results=(*run.results, *frozen)))
    folder = write_study(tmp_path, runs) / "experiments"
    assert (
        answers(folder, "pro")[0] == "probe: pretrain clm, tiny, 1kb; other tasks of this name: probe_frozen"
    )
    assert answers(folder, "probe_frozen")[0] == "probe_frozen: pretrain clm, tiny, 1kb"


def test_a_damaged_record_is_told_and_does_not_stop_the_answer(folder: Path):
    (folder / "toy/records/bad.json").write_text("{")
    (folder / "broken/records").mkdir(parents=True)
    (folder / "broken/records/bad.json").write_text("{")
    found = advise("probe", "", "", "", folder)
    assert found.lines[0] == "probe: pretrain clm, tiny, 1kb"
    assert len(found.warnings) == 2
    with pytest.raises(BenchError, match=r"bad\.json"):
        advise("probe", "", "", "broken", folder)


def test_a_task_is_found_by_its_name_then_its_words_then_any_part():
    known = ["generation", "ner_ieer", "ner_ieer_finetune", "library_probe"]
    assert matching("ner_ieer", known) == ["ner_ieer"]
    assert matching("NER", known) == ["ner_ieer", "ner_ieer_finetune"]
    assert matching("probe", known) == ["library_probe"]
    assert matching("rat", known) == ["generation"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", None),
        ("2MB", 2e6),
        ("500kB", 5e5),
        ("4_000_000", 4e6),
        ("1.5 gb", 1.5e9),
        ("1e6", 1e6),
        ("7B", 7),
    ],
)
def test_data_is_read_in_powers_of_a_thousand(text: str, size: float | None):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["2XB", "MB", "-1MB", "0", "nan", "inf", "1e400", "2MiB", "two"])
def test_data_that_is_no_amount_is_one_clear_line(text: str):
    with pytest.raises(ConfigError, match=f"data={text} is not an amount above 0; write it like 2MB"):
        read_bytes(text)


@pytest.mark.parametrize("text", ["fast", "-1e9", "0", "1e13FLOPs", "nan"])
def test_compute_that_is_no_number_is_one_clear_line(text: str):
    with pytest.raises(ConfigError, match=f"flops={text} is not an amount above 0; write it like 1e13"):
        read_flops(text)


def test_unknown_names_are_one_line_with_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=r"task=prope: no study has it; did you mean probe\? .*: probe$"):
        answers(folder, task="prope")
    with pytest.raises(ConfigError, match="studies with records: toy"):
        answers(folder, study="nope")
    with pytest.raises(ConfigError, match="no study with records"):
        answers(folder / "toy")
    assert main(["advise", "data=2MB"]) == 2
    assert "task=... is missing" in capsys.readouterr().err
    assert main(["advise", "task=probe", "dat=2MB"]) == 2
    assert "'dat=2MB' is not a setting" in capsys.readouterr().err


def test_the_command_prints_the_lines(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["advise", "task=pro", "data=1kB", f"experiments_dir={folder}"]) == 0
    assert capsys.readouterr().out.startswith("probe: pretrain clm, tiny, 1kb\nhow surely: ")


def test_lower_is_better_turns_the_advice(tmp_path: Path):
    def error(strategy: str, seed: int, value: float) -> ToyRun:
        score = Score("probe", "error", value, 1.0, 9, higher_is_better=False)
        return make_run(strategy, seed, value, scores=(score,))

    runs = [error("scratch", i, v) for i, v in enumerate(CLM)] + [
        error("clm", i, v) for i, v in enumerate(SCRATCH)
    ]
    what, surely, *_ = answers(write_study(tmp_path, runs) / "experiments")
    assert what == "probe: pretrain clm, tiny, 1kb"
    assert "ahead of scratch by −0.110" in surely
