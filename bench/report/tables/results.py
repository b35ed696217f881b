"""Comparisons -> tables for readers. Every number links to its cells, and every cell to its runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from statistics import fmean
from urllib.parse import quote

import pandas as pd

from bench.analysis.compare import (
    Pooled,
    Summary,
    between,
    grid,
    is_compared,
    level,
    places,
    pooled,
    summaries,
)
from bench.analysis.decision import all_decisions, certainty
from bench.analysis.format import (
    EMPTY,
    Entry,
    Link,
    View,
    amount,
    cells_anchor,
    measure_label,
    measure_link,
    n_bytes,
    number,
    p_value,
    power,
    run_anchor,
    seeds_note,
    short_label,
    with_interval,
    with_p,
)
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, Tables, text
from bench.analysis.gate import gates, is_informative, why_not
from bench.analysis.stats import AHEAD, BEHIND, LEANS_AHEAD, LEANS_BEHIND, paired

_MARK = {AHEAD: " ▲", BEHIND: " ▼", LEANS_AHEAD: " △", LEANS_BEHIND: " ▽"}
_MOST_COLUMNS = 8  # tasks side by side
_MOST_PAIRS = 2000  # rows of differences between strategies
_COSTS = ["parameters", "forward_tokens", "predicted_tokens", "flops", "epochs"]
_COSTS += ["unique_bytes", "unique_pairs", "pretrain_s", "evaluate_s", "evaluate_flops", "peak_memory_bytes"]


def headline(tables: Tables) -> View:
    """Return the scores of all conditions on each task's headline metric, with chance and scratch.

    If there are many tasks, they are the rows.
    """
    measures = tables.headlines
    table = {(row.condition, row.measure): row for row in pooled(tables, measures)}
    counts = [row.interval.n for row in table.values() if row.interval is not None]
    note = (
        "Mean over all models and data budgets within each seed, then over seeds "
        f"(n = {_range(counts)}). ▲ ahead of scratch, ▼ behind it: paired t test over seeds, "
        "Holm-corrected, p ≤ 0.05. △ ▽ leaning: p ≤ 0.05 before the correction only. "
        "No mark: inconclusive. "
        f"{_external_note(tables)}{seeds_note(counts)}"
    )
    if len(measures) > min(len(tables.conditions), _MOST_COLUMNS):
        return _tasks_by_condition(tables, table, note)
    rows: list[list[Entry]] = [["chance", *(_chance(tables, measure) for measure in measures)]]
    for condition in tables.conditions:
        rows.append(
            [condition.label, *(_pooled_entry(tables, table[condition, measure]) for measure in measures)]
        )
    header = ["strategy", *(measure_label(tables, measure) for measure in measures)]
    marks = ["reference" if _is_reference(condition) else "" for condition in (None, *tables.conditions)]
    align = "l" + "r" * len(measures)
    best = frozenset((1 + i, 1 + j) for j, i in _best_conditions(tables, table))
    return View("headline", "Headline: strategies by task", note, header, align, rows, marks=marks, best=best)


def _tasks_by_condition(tables: Tables, table: Mapping[tuple[Condition, Measure], Pooled], note: str) -> View:
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, measure)],
            _chance(tables, measure),
            *(_pooled_entry(tables, table[condition, measure]) for condition in tables.conditions),
        ]
        for measure in tables.headlines
    ]
    header = ["task: metric", "chance", *(condition.label for condition in tables.conditions)]
    align = "l" + "r" * (len(header) - 1)
    best = frozenset((j, 2 + i) for j, i in _best_conditions(tables, table))
    return View("headline", "Headline: tasks by strategy", note, header, align, rows, best=best)


def gated(tables: Tables) -> View | None:
    """Return the tasks that are not informative in this study, with the reasons; None if all are."""
    rows: list[list[Entry]] = [
        [[measure_link(tables, measure)], why_not(tables, measure.task)]
        for measure in tables.headlines
        if not is_informative(tables, measure)
    ]
    if not rows:
        return None
    untested = sum(bool(gate.reason) for gate in gates(tables).values() if gate.is_open)
    note = (
        "On these tasks no strategy is shown to do better than chance and than the trivial baseline "
        "(strategy `trivial`: a bag of words, an n-gram model, a constant caption), or the audit failed. They"
        " give no verdict, no rank and no advice. Tested over seeds and items, one-sided, with "
        "Bonferroni's correction over the cells at the largest budgets."
    )
    if untested:
        note += f" {untested} other tasks could only be held against a part of this."
    return View("gated", "Tasks that are not informative here", note, ["task: metric", "why not"], "ll", rows)


def _best_conditions(
    tables: Tables, table: Mapping[tuple[Condition, Measure], Pooled]
) -> Iterator[tuple[int, int]]:
    """Yield (number of a headline measure, number of the condition with the best mean), but external ones."""
    for j, measure in enumerate(tables.headlines):
        if not is_informative(tables, measure):
            continue
        sign = tables.measures[measure].sign
        spreads = [
            (i, table[condition, measure].interval)
            for i, condition in enumerate(tables.conditions)
            if not condition.is_external
        ]
        means = {i: sign * spread.mean for i, spread in spreads if spread is not None}
        if len(means) > 1:
            yield j, max(means, key=lambda i: means[i])


def verdicts(tables: Tables) -> View:
    """Return the difference of every condition to scratch over the whole grid, on each headline metric.

    Tasks that a strategy cannot do are left out; the headline table states the reason.
    """
    rivals = [row for row in pooled(tables, tables.headlines) if row.condition.strategy != BASELINE]
    found = [row for row in rivals if row.inapplicable is None]
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, row.measure)],
            row.condition.label,
            EMPTY if row.to_scratch is None else with_interval(row.to_scratch.interval, signed=True),
            EMPTY if row.to_scratch is None else str(row.to_scratch.interval.n),
            EMPTY if row.to_scratch is None else p_value(row.to_scratch.p_t),
            EMPTY if row.to_scratch is None else p_value(row.to_scratch.p),
            f"{row.n_cells - row.n_missing} of {row.n_cells}",
            row.verdict,
        ]
        for row in found
    ]
    counts = [row.to_scratch.interval.n for row in found if row.to_scratch is not None]
    note = (
        "The difference to scratch of the same model is paired by seed and averaged over cells within a "
        "seed. p (t): paired t test over seeds; p (flip): exact sign-flip test, never below 2^(1−n); both "
        "two-sided and uncorrected. Ahead or behind: p (t) ≤ 0.05 after Holm's correction for "
        f"{len(counts)} comparisons; leaning: p ≤ 0.05 before the correction only. {seeds_note(counts)}"
    )
    header = ["task: metric", "strategy", "difference to scratch", "n", "p (t)", "p (flip)"]
    header += ["cells", "verdict"]
    return View("verdicts", "Verdicts against scratch", note, header, "llrrrrrl", rows)


def cells(tables: Tables, measure: Measure) -> View:
    """Return every cell that was tried with its difference to scratch and its runs, or why it is empty."""
    rows: list[list[Entry]] = []
    found = summaries(tables, measure)
    for row in found:
        gap = row.to_scratch
        rows.append(
            [
                row.cell.condition.label,
                row.cell.model,
                row.cell.budget or EMPTY,
                with_interval(row.interval) if row.interval else _why_empty(tables, row),
                str(row.interval.n) if row.interval else "0",
                EMPTY if gap is None else with_interval(gap.interval, signed=True),
                EMPTY if gap is None else p_value(gap.p_t),
                _run_links(tables, row),
            ]
        )
    info = tables.measures[measure]
    note = f"Chance level: {_chance(tables, measure)}. Test items: {_range(info.n_items)}."
    header = ["strategy", "model", "data budget", "mean", "n", "difference to scratch", "p", "runs, by seed"]
    title = measure_label(tables, measure)
    best = frozenset((i, 3) for i in _best_cells(found, info.sign))
    return View(cells_anchor(tables, measure), title, note, header, "lllrrrrl", rows, best=best)


def _best_cells(found: Sequence[Summary], sign: int) -> list[int]:
    """Return the rows with the best mean of their model and data budget, if there are several."""
    peers: dict[tuple[str, str | None], dict[int, float]] = {}
    for i, row in enumerate(found):
        if row.interval is not None and not row.cell.condition.is_external and sign:
            peers.setdefault((row.cell.model, row.cell.budget), {})[i] = sign * row.interval.mean
    return [max(means, key=lambda i: means[i]) for means in peers.values() if len(means) > 1]


def differences(tables: Tables) -> View:
    """Return seed-paired differences to scratch of each cell, on every measure."""
    found = [row for measure in tables.measures for row in summaries(tables, measure)]
    rows: list[list[Entry]] = [
        [
            measure_label(tables, row.measure),
            row.cell.condition.label,
            row.cell.model,
            row.cell.budget or EMPTY,
            with_p(row.to_scratch),
        ]
        for row in found
        if is_compared(row.cell.condition)
    ]
    header = ["task: metric", "strategy", "model", "data budget", "difference to scratch"]
    return View("differences", "Differences to scratch by cell", "", header, "llllr", rows)


def pairs(tables: Tables) -> View:
    """Return the differences of all pairs of strategies at each model and data budget, on headline metrics.

    If there are too many rows, the pairs are compared over the whole grid; if there are still too many, each
    strategy is compared with the best.
    """
    conditions = [condition for condition in tables.conditions if condition.strategy != BASELINE]
    couples, where = list(combinations(conditions, 2)), places(tables)
    if len(couples) * len(where) * len(tables.headlines) > _MOST_PAIRS:
        return _over_grid(tables, conditions, to_best=len(couples) * len(tables.headlines) > _MOST_PAIRS)
    found = [
        (measure, place, left, right, between(tables, measure, left, right, *place))
        for measure in tables.headlines
        for left, right in couples
        for place in where
    ]
    rows: list[list[Entry]] = [
        [measure_label(tables, measure), left.label, right.label, model, budget or EMPTY, with_p(gap)]
        for measure, (model, budget), left, right, gap in found
        if gap is not None
    ]
    counts = [gap.interval.n for *_, gap in found if gap is not None]
    note = f"Difference: first minus second, paired by seed. p: t test, uncorrected. {seeds_note(counts)}"
    header = ["task: metric", "first", "second", "model", "data budget", "difference"]
    return View("pairs", "Differences between strategies", note, header, "lllllr", rows)


def _over_grid(tables: Tables, conditions: Sequence[Condition], *, to_best: bool) -> View:
    rows: list[list[Entry]] = []
    counts: list[int] = []
    for measure in tables.headlines:
        levels = {condition: level(tables, measure, grid(tables, condition)) for condition in conditions}
        for left, right in _with_best(tables, measure, levels) if to_best else combinations(conditions, 2):
            gap = paired((levels[left] - levels[right]).dropna())
            if gap is not None:
                rows.append([measure_label(tables, measure), left.label, right.label, with_p(gap)])
                counts.append(gap.interval.n)
    what = (
        "the strategy minus the one with the best mean, which is biased upward (winner's curse)"
        if to_best
        else "first minus second"
    )
    note = (
        f"Difference: {what}. It is averaged over all models and data budgets within each seed, since a "
        f"table of all cells would be too long, and paired by seed. p: t test, uncorrected. "
        f"{seeds_note(counts)}"
    )
    header = ["task: metric", *(("strategy", "best") if to_best else ("first", "second")), "difference"]
    title = f"Differences {'to the best strategy' if to_best else 'between strategies'} over the whole grid"
    return View("pairs", title, note, header, "lllr", rows)


def _with_best(
    tables: Tables, measure: Measure, levels: Mapping[Condition, pd.Series]
) -> list[tuple[Condition, Condition]]:
    sign = tables.measures[measure].sign
    means = {condition: sign * fmean(by_seed) for condition, by_seed in levels.items() if len(by_seed)}
    best = max(means, key=means.__getitem__, default=None)
    return [(condition, best) for condition in means if best is not None and condition != best]


def runs(tables: Tables, records_href: str) -> View:
    """Return every run with its status, reason and cost; the id links to the record."""
    rows: list[list[Entry]] = []
    own = tables.runs
    used = own[_COSTS].astype(object).where(own[_COSTS].notna(), None)
    for run, costs in zip(own.itertuples(), used.itertuples(index=False), strict=True):
        link = Link(run.run_id, f"{records_href}/{quote(run.run_id, safe='')}.json")
        axes = (run.strategy, run.variant, run.model, tables.cells[run.cell].budget)
        why = "; ".join(filter(None, [text(run.reason), run.retried]))
        status = f"{run.status}: {why}" if why else run.status
        rows.append([[link], *(name or EMPTY for name in axes), str(run.seed), status, *map(amount, costs)])
    header = ["run", "strategy", "variant", "model", "data budget", "seed", "status"]
    header += [name.replace("_", " ") for name in _COSTS]
    anchors = [run_anchor(run_id) for run_id in own["run_id"]]
    marks = ["" if status == "finished" else "failure" for status in own["status"]]
    align = "lllllrl" + "r" * len(_COSTS)
    return View("runs", "Runs", "", header, align, rows, anchors, marks)


def _pooled_entry(tables: Tables, row: Pooled) -> Entry:
    if row.inapplicable is not None:
        return [Link("n/a", "", row.inapplicable)]
    href = f"#{cells_anchor(tables, row.measure)}"
    if row.interval is None:
        why = f"{row.n_cells - row.n_missing} of {row.n_cells} cells"
        why = why if row.n_missing else "no seed has every cell"
        return [Link(f"{EMPTY} ({why})", href, row.verdict)]
    text = with_interval(row.interval) + _MARK.get(row.verdict, "")
    return [Link(text, href, f"n = {row.interval.n}; {row.verdict}")]


def _chance(tables: Tables, measure: Measure) -> str:
    levels = [number(bound) for bound in _ends(tables.measures[measure].chance)]
    return " to ".join(dict.fromkeys(levels)) or EMPTY


def _ends(values: tuple[float, ...]) -> list[float]:
    return list(dict.fromkeys((*values[:1], *values[-1:])))


def _range(counts: Iterable[int]) -> str:
    known = sorted(set(counts))
    return "0" if not known else f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _external_note(tables: Tables) -> str:
    if not any(condition.is_external for condition in tables.conditions):
        return ""
    return (
        "An external reference was trained elsewhere on other data and compute; it is not part of any "
        "verdict or of Holm's correction. "
    )


def _is_reference(condition: Condition | None) -> bool:
    return condition is None or condition.strategy == BASELINE


def _run_links(tables: Tables, row: Summary) -> list[Link]:
    return _every_run_link(tables, row.measure.task)[tables.rows_of(row.cell)]


@lru_cache(maxsize=2**6)
def _every_run_link(tables: Tables, task: str) -> list[Link]:
    runs = zip(tables.runs["run_id"], tables.runs["seed"].tolist(), tables.why_lost(task), strict=True)
    return [
        Link(str(seed) if why is None else f"{seed} {why}", f"#{run_anchor(run_id)}", run_id)
        for run_id, seed, why in runs
    ]


def _why_empty(tables: Tables, row: Summary) -> str:
    marks = tables.why_lost(row.measure.task)[tables.rows_of(row.cell)]
    found = [why for why in marks if why is not None]
    if len(found) < len(marks):
        is_inapplicable = (row.cell.condition, row.measure.task) in tables.inapplicable
        return "not applicable" if is_inapplicable else "not scored"
    return ", ".join(f"{found.count(why)} {why}" for why in sorted(set(found)))


def decision_table(tables: Tables) -> View:
    """Return the best strategy and model by task, data and compute, on headline metrics."""
    found = all_decisions(tables)
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, row.measure)],
            EMPTY if row.caps.data_bytes is None else n_bytes(row.caps.data_bytes),
            EMPTY if row.caps.flops is None else power(row.caps.flops),
            row.best.condition.label,
            row.best.model,
            row.best.budget or EMPTY,
            with_interval(row.interval),
            certainty(row),
            EMPTY if row.to_scratch is None else with_interval(row.to_scratch.interval, signed=True),
            EMPTY if row.to_scratch is None else p_value(row.p_holm),
            _short_labels(tables, row.tied),
            _short_labels(tables, row.missing),
        ]
        for row in found
    ]
    note = (
        "Each row shows the cell with the best mean among those that use no more unique text and pretraining "
        "FLOPs than the row allows. Image-text strategies train on the pairs of the same data budget. A "
        "compute level is the FLOPs of the most expensive strategy of a model and budget; levels are at "
        "least a factor of two apart. Certainty is the share of 10,000 bootstraps over seeds in which the "
        "cell stays the best; with few seeds it is too high. Difference to scratch: to the best cell without "
        "pretraining, of any model; p: t test paired by seed, Holm-corrected over the candidates of the row. "
        "Not distinguishable: p > 0.05 against the best cell, uncorrected. The mean of the best of several "
        "cells is biased upward (winner's curse), and so is its certainty. "
        f"{seeds_note(row.interval.n for row in found)}"
    )
    header = ["task: metric", "unique text ≤", "FLOPs ≤", "best", "model", "data budget", "mean", "certainty"]
    header += ["difference to scratch", "p (Holm)", "not distinguishable", "missing"]
    title = "Best strategy and model by task, data and compute"
    return View("decisions", title, note, header, "lrrlllrrrrll", rows)


def _short_labels(tables: Tables, cells: Iterable[Cell]) -> str:
    return "; ".join(short_label(tables, cell) for cell in cells) or EMPTY
