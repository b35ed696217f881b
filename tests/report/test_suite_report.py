"""Laws of what the report shows of the suite: label budgets, stability, cost, samples, arrays, figures."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_reports import FIGURES, Page, write_report
from toy_runs import CLM, PROBE, SCRATCH, ToyRun, cell, make_run, tables_of, toy_runs, toy_tables, write_study

from bench.analysis.compare import headline_rows
from bench.analysis.decision import decisions, needs
from bench.analysis.format import View, measure_label, plain
from bench.analysis.frames import Condition, Measure, Tables, load
from bench.analysis.inference import BEFORE, BEYOND, stops_helping
from bench.config.build import build
from bench.errors import ConfigError, DataError
from bench.records import (
    Energy,
    EvaluationCost,
    EvaluationRecord,
    Fit,
    Score,
    TaskResult,
    items_path,
    write_evaluation,
)
from bench.report import csv_tables
from bench.report.figures.base import Figure, render
from bench.report.tables import results as views
from bench.report.tables.costs import evaluation, samples, visible
from bench.report.tables.findings import label_budgets, stability
from bench.report.tables.fits import convergence
from bench.report.tables.provenance import warnings

pytestmark = pytest.mark.slow

# Crossover

GRID = (0.001, 0.002, 0.004)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, -1.0), 64.0),  # half way between 2^5 and 2^7
        ((3.0, -1.0), 2**6.5),
        ((1.0, 0.0), 128.0),  # no gain there: it has stopped
        ((1.0, 1.0), BEYOND),
        ((-1.0, 1.0), BEYOND),
        ((-1.0, 0.0), BEFORE),
    ],
)
def test_the_crossover_is_linear_in_log2_labels_or_outside(values: tuple[float, float], expected: float):
    assert stops_helping((32, 128), np.array(values)) == pytest.approx(expected)


def test_of_several_crossovers_the_last_counts():
    counts = (8, 16, 32, 64)
    rows = np.array([[1, -1, 1, -1], [1, -1, -1, -1], [-1, 1, -1, 0], [1, -1, -1, 1]])
    assert stops_helping(counts, rows).tolist() == pytest.approx([2**5.5, 2**3.5, 2**4.5, BEYOND])


def test_crossovers_lie_between_measured_counts_or_outside_all():
    rng = np.random.default_rng(0)
    found = stops_helping((32, 128, 512), rng.normal(size=(1000, 3)))
    inside = found[np.isfinite(found)]
    assert inside.size
    assert inside.min() >= 32
    assert inside.max() <= 512


def budgets(strategy: str, seed: int, values: tuple[float, ...], **changes: Any) -> ToyRun:
    scores = [
        Score("probe", "accuracy", v, 0.25, 100, n_labels=n) for v, n in zip(values, (128, 32), strict=True)
    ]
    return make_run(strategy, seed, 0.0, scores=scores, **changes)


def label_study() -> Tables:
    """Minus scratch, with 32 and 128 labels: clm +0.1, -0.1; mlm +0.1, +0.1; rtd -0.1, 0; ul2 -0.1, +0.1."""
    values = {
        "scratch": (0.6, 0.4),
        "clm": (0.5, 0.5),
        "mlm": (0.7, 0.5),
        "rtd": (0.6, 0.3),
        "ul2": (0.7, 0.3),
    }
    jitter = (0.001, 0.0, -0.001)
    return tables_of(
        [
            budgets(name, seed, (row[0] + jitter[seed], row[1] + jitter[seed]))
            for name, row in values.items()
            for seed in range(3)
        ]
    )


def texts(view: View | None) -> list[list[str]]:
    assert view is not None
    return [[plain(entry) for entry in row] for row in view.rows]


def test_the_table_of_label_budgets_answers_in_words_or_labels():
    rows = texts(label_budgets(label_study()))
    assert rows[0][0] == "probe: accuracy\N{NO-BREAK SPACE}↑ (32 to 128 labels)"
    assert {row[1]: row[4:] for row in rows} == {
        "clm": ["64 labels", "[32, 128]", "3"],
        "mlm": ["ahead at all label counts", "[> 128]", "3"],
        "rtd": ["never ahead", "[< 32, > 128]", "3"],
        "ul2": ["ahead with the most labels, behind with fewer", "[> 128]", "3"],
    }
    assert rows[0][2:4] == ["+0.100 [+0.098, +0.102]", "−0.100 [−0.102, −0.098]"]


def test_lower_is_better_turns_the_gain_round():
    def run(name: str, seed: int, values: tuple[float, float]) -> ToyRun:
        scores = [Score("text", "bits", v, None, 9, False, n) for v, n in zip(values, (128, 32), strict=True)]
        return make_run(name, seed, 0.0, scores=scores)

    tables = tables_of([run(*row) for row in (("scratch", 0, (3.0, 5.0)), ("clm", 0, (4.0, 4.0)))])
    assert texts(label_budgets(tables))[0][4:] == ["64 labels", "[too few seeds]", "1"]


def test_a_study_without_label_budgets_has_no_table_of_them():
    assert label_budgets(toy_tables()) is None
    assert stability(toy_tables()) is None
    assert samples(toy_tables()) == []


# What only describes


def described(strategy: str, seed: int, value: float) -> ToyRun:
    entropy = Score("attention", "entropy", 3.0 + seed, None, 9, higher_is_better=None)
    return make_run(strategy, seed, value, scores=(Score("probe", "accuracy", value, 0.25, 100), entropy))


def test_a_descriptive_measure_is_shown_and_never_judged():
    values = {"scratch": SCRATCH, "clm": CLM}
    tables = tables_of([described(name, i, v) for name, row in values.items() for i, v in enumerate(row)])
    entropy = Measure("attention", "entropy")
    assert tables.headlines == [PROBE]
    assert measure_label(tables, entropy) == "attention: entropy"
    assert decisions(tables, entropy, needs(tables)) == []
    assert {row.verdict for row in headline_rows(tables, [entropy])} == {"baseline", "descriptive"}
    assert headline_rows(tables, [PROBE, entropy])[:2] == headline_rows(
        tables, [PROBE]
    )  # none of Holm's comparisons
    assert set(csv_tables.decisions(tables)["task"]) == {"probe"}
    assert texts(views.cells(tables, entropy))[0][3].startswith("4.000")


def test_a_headline_is_the_first_score_that_has_a_better():
    scores = (Score("t", "entropy", 1.0, None, 9, None), Score("t", "accuracy", 0.5, 0.1, 9))
    tables = tables_of([make_run("clm", 0, 0.5, scores=scores)])
    assert tables.headlines == [Measure("t", "accuracy")]


def test_a_headline_is_with_the_most_labels_in_whatever_order_a_task_tells_them():
    scores = tuple(Score("t", "f1", 0.5, 0.1, 9, n_labels=n) for n in (32, 512, 128))
    tables = tables_of([make_run("clm", 0, 0.5, scores=scores)])
    assert tables.headlines == [Measure("t", "f1", 512)]


def test_chance_may_differ_between_seeds_and_not_within_one():
    def run(strategy: str, seed: int, chance: float) -> ToyRun:
        return make_run(strategy, seed, 0.5, scores=(Score("t", "f1", 0.5, chance, 9),))

    drawn = [run(name, seed, 0.1 + seed / 10) for name in ("scratch", "clm") for seed in range(2)]
    assert warnings(tables_of(drawn)) == []
    assert views.headline(tables_of(drawn)).rows[0][1] == "0.100 to 0.200"
    assert warnings(tables_of([*drawn, run("mlm", 0, 0.3)])) == [
        "The runs disagree in the chance level of t: f1."
    ]


# Many tasks


def many(n_tasks: int) -> Tables:
    def scores(value: float) -> tuple[Score, ...]:
        return tuple(Score(f"task_{i}", "f1", value, 0.25, 100) for i in range(n_tasks))

    both = {"scratch": SCRATCH, "clm": CLM}
    return tables_of(
        [make_run(name, i, v, scores=scores(v)) for name, row in both.items() for i, v in enumerate(row)]
    )


def test_more_tasks_than_strategies_are_rows():
    view = views.headline(many(3))
    assert view.header == ["task: metric", "chance", "scratch", "clm"]
    assert texts(view)[0] == [
        "task_0: f1\N{NO-BREAK SPACE}↑",
        "0.250",
        "0.520 [0.470, 0.570]",
        "0.630 [0.555, 0.705] ▲",
    ]
    assert view.rows[0][0][0].href == "#cells-0"  # type: ignore[union-attr]
    assert views.headline(many(2)).header[0] == "strategy"


# Arrays


def with_arrays(folder: Path, arrays: dict[str, Any]) -> Path:
    write_study(folder, toy_runs())
    evaluations = folder / "experiments/toy/evaluations"
    record = EvaluationRecord("e0", "clm-1kb-0", "toy", ())
    np.savez_compressed(items_path(evaluations, record), **arrays)
    return items_path(evaluations, record)


def test_items_are_those_of_the_task(tmp_path: Path):
    with_arrays(tmp_path, {"probe/accuracy": np.ones(3), "probe_2/accuracy": np.zeros(3)})
    tables, _ = load("toy", tmp_path / "experiments")
    found = tables.arrays("clm-1kb-0", "probe")
    assert {name: values.tolist() for name, values in found.items()} == {"accuracy": [1.0, 1.0, 1.0]}
    assert tables.arrays("clm-1kb-1", "probe") == {}  # no file
    assert tables.arrays("clm-1kb-0", "nope") == {}
    assert tables.arrays("nope", "probe") == {}
    items = tables.items("probe")
    assert items["value"].tolist() == [1.0, 1.0, 1.0]
    assert items[["run_id", "seed", "name", "fit"]].drop_duplicates().values.tolist() == [
        ["clm-1kb-0", 0, "accuracy", 0]
    ]
    assert tables.items("nope").empty


def test_items_are_of_the_evaluation_that_the_result_came_from(tmp_path: Path):
    first = with_arrays(tmp_path, {"probe/accuracy": np.ones(3)})
    lost = EvaluationRecord(
        "e1", "clm-1kb-0", "toy", (TaskResult("probe", "failed", {}, "no"),), started_at="2999-01-01"
    )
    write_evaluation(lost, first.parent)
    np.savez_compressed(items_path(first.parent, lost), **{"probe/accuracy": np.zeros(3)})
    tables, _ = load("toy", tmp_path / "experiments")
    assert tables.arrays("clm-1kb-0", "probe")["accuracy"].tolist() == [1.0, 1.0, 1.0]


def test_damaged_items_are_one_line(tmp_path: Path):
    path = with_arrays(tmp_path, {"probe/accuracy": np.random.default_rng(0).random(1000)})
    tables, _ = load("toy", tmp_path / "experiments")
    whole = path.read_bytes()
    broken = [b"", b"no archive", whole[:-100], whole[:200] + bytes(100) + whole[300:]]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"clm-1kb-0\.e0\.npz: not readable.*delete it") as caught:
            tables.arrays("clm-1kb-0", "probe")
        assert "\n" not in str(caught.value)


def test_items_that_are_no_plain_arrays_are_never_unpickled(tmp_path: Path):
    with_arrays(tmp_path, {"probe/accuracy": np.array([{"a": 1}], dtype=object)})
    tables, _ = load("toy", tmp_path / "experiments")
    with pytest.raises(DataError, match="not readable arrays"):
        tables.arrays("clm-1kb-0", "probe")


# Evaluation


def evaluated(seed: int, *, energy: Energy | None = None, **changes: Any) -> ToyRun:
    run = make_run("clm", seed, 0.5)
    cost = EvaluationCost(1.0 + seed, 1e9, energy)
    return replace(run, results=(replace(run.results[0], cost=cost, **changes),))


def test_the_evaluation_table_counts_results_costs_and_what_was_left_out():
    measured, estimated = (
        Energy(j, s, m, 0.0, "USA") for j, s, m in ((10.0, "measured", "RAPL"), (30.0, "estimated", "TDP"))
    )  # type: ignore[arg-type]
    runs = [
        evaluated(0, energy=measured, counts={"unseen label": 2}),
        evaluated(2, energy=estimated),
        evaluated(3, status="failed", reason="no", scores=(), counts={"unseen label": 99}),
        evaluated(4, status="inapplicable", reason="no text", scores=()),
        make_run("clm", 5, None),
    ]
    energy = "RAPL (measured); TDP (estimated)"
    left_out = "unseen label: 2 (0 to 2 a run)"
    expected = ["probe", "2", "1", "1", "2", "1.0×10⁹", "10", "30", energy, left_out]
    assert texts(evaluation(tables_of(runs))) == [expected]


def test_samples_are_of_the_lowest_seed_and_appear_as_text(tmp_path: Path):
    nasty = "<script>alert(1)</script>\n| *b*\x00"
    runs = [evaluated(seed, samples=[{"prompt": f"seed {seed}", "continuation": nasty}]) for seed in (1, 0)]
    [view] = samples(tables_of(runs))
    assert view.header == ["strategy", "prompt", "continuation"]
    assert texts(view) == [["clm", "seed 0", "<script>alert(1)</script> ⏎ | *b*\N{REPLACEMENT CHARACTER}"]]
    path = write_report(write_study(tmp_path, runs))
    assert Page(path.read_text()).n_scripts == 1  # ours
    assert "&lt;script&gt;alert(1)" in path.read_text()
    assert "<script>" not in path.with_suffix(".md").read_text()


def test_samples_of_one_column_are_one_row():
    [view] = samples(tables_of([evaluated(0, samples=[{"token": "a"}, {"token": " b"}])]))
    assert texts(view) == [["clm", "a · b"]]


def test_text_that_cannot_be_shown_is_marked():
    assert visible(" a\tb\u202e\r\nc ") == "a b\N{REPLACEMENT CHARACTER} ⏎ c"


def test_stability_tells_fits_seeds_and_failures_of_every_strategy():
    def scores(value: float, spread: float, failed: float) -> tuple[Score, ...]:
        extra = (("accuracy_fit_sd", spread), ("failed_fits", failed))
        return (
            Score("probe", "accuracy", value, 0.25, 100),
            *(Score("probe", name, v, None, 3, higher_is_better=False) for name, v in extra),
        )

    rows = {"scratch": (0.5, 0.5), "clm": (0.6, 0.8)}
    runs = [
        make_run(name, i, v, scores=scores(v, 0.1 * (i + 1), i / 2))
        for name, row in rows.items()
        for i, v in enumerate(row)
    ]
    shared = ["0.150 [2 seeds]", "0.250"]
    sd = math.sqrt(2) * 0.1
    assert [row[1:] for row in texts(stability(tables_of(runs)))] == [
        ["scratch", shared[0], "0.000", shared[1]],
        ["clm", shared[0], f"{sd:.3f}", shared[1]],
    ]


def test_rates_at_the_edge_and_fits_that_reached_the_cap_are_shown():
    def fits(chosen: float, stopped: str) -> tuple[Fit, ...]:
        made = partial(Fit, 64, stopped=stopped)  # type: ignore[arg-type]
        first = [made(rate, rate == chosen, curve=((50, 0.4), (100, rate * 100))) for rate in GRID]
        return (*first, Fit(64, chosen, True, "plateau", ((50, 0.5), (150, 0.3))))

    def run(strategy: str, seed: int, chosen: float, stopped: str) -> ToyRun:
        made = make_run(strategy, seed, 0.5)
        config = {"protocol": "finetune", "lr_grid": list(GRID)}
        return replace(made, results=(replace(made.results[0], config=config, fits=fits(chosen, stopped)),))

    runs = [run("clm", 0, 0.002, "plateau"), run("clm", 1, 0.002, "plateau"), run("mlm", 0, 0.004, "cap")]
    view = convergence(tables_of([*runs, make_run("mntp", 0, 0.5)]))
    assert view is not None
    task, by_rate = "probe, 64 labels", "0.001: 0.400; 0.002: 0.450; 0.004: 0.400"
    at_edge = "0.001: 0.400; 0.002: 0.400; 0.004: 0.450"
    assert texts(view) == [
        [task, "clm", "0.002 (2)", "0%", "100%", "0%", "0%", "125", by_rate],
        [task, "mlm", "0.004 (1)", "100%", "50%", "50%", "0%", "125", at_edge],
    ]
    assert view.marks == ["", "failure"]
    assert convergence(tables_of([make_run("clm", 0, 0.5)])) is None


def test_a_single_fit_has_failures_and_no_spread():
    scores = (Score("probe", "f1", 0.5, 0.25, 9), Score("probe", "failed_fits", 1.0, None, 1, False))
    [row] = texts(stability(tables_of([make_run("clm", 0, 0.5, scores=scores)])))
    assert row == ["probe: f1\N{NO-BREAK SPACE}↑", "clm", "–", "–", "1.000"]


# Figures


def figure(name: str, **changes: Any) -> Figure:
    return build(FIGURES[name] | changes, Figure, name)  # type: ignore[type-abstract]


def scored(name: str, metrics: dict[str, float], strategies: tuple[str, ...] = ("scratch", "clm")) -> Tables:
    """Three seeds of each strategy; clm has one tenth more on everything."""
    return tables_of(
        [
            make_run(
                arm, seed, 0.0, scores=[Score(name, m, v + 0.1 * i, 0.25, 100) for m, v in metrics.items()]
            )
            for i, arm in enumerate(strategies)
            for seed in range(3)
        ]
    )


@pytest.mark.parametrize("name", ["label_curves", "layers", "canary_exposure", "attention_rollout"])
def test_a_study_without_such_scores_omits_the_figure(name: str):
    assert not figure(name).applies(toy_tables())


def test_label_curves_state_every_crossover():
    drawn, tables = figure("label_curves"), label_study()
    assert drawn.applies(tables)
    assert render(partial(drawn.draw, tables), "label_curves")["png"]
    caption = drawn.caption(tables)
    for text in (
        "stops helping: clm 64 labels [32, 128]",
        "ahead at all label counts: mlm [> 128]",
        "never ahead: rtd",
    ):
        assert text in caption
    assert "n = 3 seeds" in caption


def test_layers_are_in_order_of_number_and_the_best_is_named():
    layers = {f"accuracy_layer_{i}": v for i, v in ((0, 0.3), (2, 0.5), (10, 0.4))}
    drawn, tables = figure("layers"), scored("probe", {"accuracy": 0.5} | layers)
    assert [series.xs for series in drawn.find(tables)] == [[0, 2, 10]]  # type: ignore[attr-defined]
    assert render(partial(drawn.draw, tables), "layers")["png"]
    assert "clm at layer 2 of 10, 0.600 [0.600, 0.600], n = 3 seeds" in drawn.caption(tables)


def test_exposure_is_told_at_the_most_copies_and_recall_is_none():
    scores = {"exposure_exact_at_16": 5.0, "exposure_exact_at_0": 1.0, "recall_at_5": 0.5}
    drawn, tables = figure("canary_exposure"), scored("canaries", scores)
    assert [series.xs for series in drawn.find(tables)] == [[0, 16]]  # type: ignore[attr-defined]
    assert render(partial(drawn.draw, tables), "canary_exposure")["png"]
    assert "canaries (16 copies, chance 0.250): scratch 5.000 [5.000, 5.000]" in drawn.caption(tables)


def test_a_line_figure_of_an_unknown_task_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"tasks=\['nope'\].*probe"):
        figure("label_curves", tasks=["nope"]).applies(label_study())


def rollout_study(folder: Path, matrix: Any) -> Path:
    """A task with samples in two runs; the lower seed has the arrays."""
    runs = []
    for seed in (0, 1):
        run = make_run("clm", seed, 0.5, scores=(Score("attention_rollout", "entropy", 1.0, None, 2, None),))
        own = replace(run.results[0], samples=[{"token": "<b>"}, {"token": "$x_"}])
        runs.append(replace(run, results=(own,)))
    write_study(folder, [*toy_runs()[:3], *runs])
    path = folder / "experiments/toy/evaluations/clm-1kb-0.e0.npz"
    np.savez_compressed(path, **{"attention_rollout/rollout": matrix})
    return path


@pytest.mark.slow
def test_the_rollout_is_drawn_from_the_arrays_of_the_lowest_seed(tmp_path: Path):
    rollout_study(tmp_path, np.array([[1.0, 0.0], [0.4, 0.6]], dtype=np.float32))
    tables, _ = load("toy", tmp_path / "experiments")
    drawn = figure("attention_rollout")
    assert render(partial(drawn.draw, tables), "attention_rollout")["png"]
    text = "clm (tiny, 1kb, seed 0) 0.800 and 0.700"
    assert text in drawn.caption(tables)
    assert 'id="figure-attention_rollout"' in write_report(tmp_path).read_text()


def test_damaged_arrays_leave_the_figure_out_with_a_warning(tmp_path: Path):
    rollout_study(tmp_path, np.eye(2)).write_bytes(b"PK broken")
    text = write_report(tmp_path).read_text()
    assert "Figure attention_rollout left out: clm-1kb-0.e0.npz: not readable arrays" in text
    assert "Outcomes by item left out of the errors: clm-1kb-0.e0.npz: not readable arrays" in text
    assert str(tmp_path) not in text
    assert 'id="figure-attention_rollout"' not in text
    assert 'id="figure-quality_vs_data"' in text


def test_a_cell_knows_its_runs_by_seed():
    tables = tables_of(toy_runs()[::-1])
    assert tables.runs_of(cell("clm"))["seed"].tolist() == [0, 1, 2]
    assert sum(len(tables.runs_of(own)) for own in tables.cells) == len(tables.runs)
    assert tables.runs_of(cell("unknown")).empty
    assert (Condition("clm", ""), "probe") not in tables.inapplicable
