"""Comparisons -> tables for readers. Every number links to its cells, and every cell to its runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from urllib.parse import quote

from bench.analysis.compare import (
    AHEAD,
    BEHIND,
    LEANS_AHEAD,
    LEANS_BEHIND,
    HeadlineRow,
    Place,
    Summary,
    best_mean,
    between,
    clear_best,
    grid,
    headline_place,
    headline_rows,
    is_compared,
    place_name,
    places,
    reversals,
    summaries,
)
from bench.analysis.decision import all_decisions, certainty
from bench.analysis.error_model import N_DRAWS, sample
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
from bench.analysis.untrained import baseline_name, baseline_note, shown, shown_cell

_MARK = {AHEAD: " ▲", BEHIND: " ▼", LEANS_AHEAD: " △", LEANS_BEHIND: " ▽"}
_MOST_COLUMNS = 8  # tasks side by side
_MOST_PAIRS = 2000  # rows of differences between strategies
_COSTS = ["parameters", "forward_tokens", "predicted_tokens", "flops", "epochs"]
_COSTS += ["unique_bytes", "unique_pairs", "pretrain_s", "evaluate_s", "evaluate_flops", "peak_memory_bytes"]


def headline(tables: Tables) -> View:
    """Return the scores of all conditions on each task's headline metric, with chance and the baseline.

    If there are many tasks, they are the rows.
    """
    measures = tables.headlines
    table = {(row.condition, row.measure): row for row in headline_rows(tables, measures)}
    counts = [row.interval.n for row in table.values() if row.interval is not None]
    note = (
        f"{_where(tables)}Mean over seeds (n = {_range(counts)}). ▲ ahead of {baseline_name(tables)}, "
        "▼ behind: t test, Holm-corrected, p ≤ 0.05. △ ▽ leaning: p ≤ 0.05 before the correction only. "
        "No mark: inconclusive. "
        "Bold: better than each other strategy, p ≤ 0.05 (Gutmann and Maymin 1987). "
        f"{_interactions(tables)}{baseline_note(tables)}{_external_note(tables)}{seeds_note(counts)}"
    )
    if len(measures) > min(len(tables.conditions), _MOST_COLUMNS):
        return _tasks_by_condition(tables, table, note)
    rows: list[list[Entry]] = [["chance", *(_chance(tables, measure) for measure in measures)]]
    for condition in tables.conditions:
        rows.append(
            [
                shown(tables, condition).label,
                *(_headline_entry(tables, table[condition, measure]) for measure in measures),
            ]
        )
    header = ["strategy", *(measure_label(tables, measure) for measure in measures)]
    marks = ["reference" if _is_reference(condition) else "" for condition in (None, *tables.conditions)]
    align = "l" + "r" * len(measures)
    best = frozenset((1 + i, 1 + j) for j, i in _best_conditions(tables))
    return View("headline", "Headline: strategies by task", note, header, align, rows, marks=marks, best=best)


def _tasks_by_condition(
    tables: Tables, table: Mapping[tuple[Condition, Measure], HeadlineRow], note: str
) -> View:
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, measure)],
            _chance(tables, measure),
            *(_headline_entry(tables, table[condition, measure]) for condition in tables.conditions),
        ]
        for measure in tables.headlines
    ]
    header = ["task: metric", "chance", *(shown(tables, condition).label for condition in tables.conditions)]
    align = "l" + "r" * (len(header) - 1)
    best = frozenset((j, 2 + i) for j, i in _best_conditions(tables))
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


def _best_conditions(tables: Tables) -> Iterator[tuple[int, int]]:
    """Yield (number of a headline measure, number of the condition that is clearly the best)."""
    compared = [condition for condition in tables.conditions if not condition.is_external]
    for j, measure in enumerate(tables.headlines):
        if not is_informative(tables, measure):
            continue
        best = clear_best(tables, measure, [grid(tables, condition)[0] for condition in compared])
        if best is not None:
            yield j, tables.conditions.index(best.condition)


def _where(tables: Tables) -> str:
    """Return the model and data budget of the headline, where the study has several."""
    name = place_name(tables)
    return f"At {name}, the largest that most strategies were run at. " if name else ""


def _interactions(tables: Tables) -> str:
    """Return for which tasks another strategy is clearly better at another model or data budget."""
    found = []
    for measure in tables.headlines:
        others = reversals(tables, measure) if is_informative(tables, measure) else {}
        names = "; ".join(
            f"{shown(tables, condition, [measure.task]).label} at "
            f"{', '.join(_place_label(tables, place) for place in own)}"
            for condition, own in others.items()
        )
        if others:
            best = best_mean(tables, measure, headline_place(tables))
            here = shown(tables, best, [measure.task]).label if best else EMPTY
            found.append(f"{measure.task} ({here} here; {names})")
    return f"Another strategy is better elsewhere (p ≤ 0.05): {'; '.join(found)}. " if found else ""


def _place_label(tables: Tables, place: Place) -> str:
    """Return the parts of a place that the study varies."""
    model, budget = place
    parts = [model] if len(tables.models) > 1 else []
    return " ".join([*parts, *([budget or EMPTY] if len(tables.budgets) > 1 or not parts else [])])


def verdicts(tables: Tables) -> View:
    """Return the difference of every condition to the baseline, at one place and on each headline metric.

    Tasks that a strategy cannot do are left out; the headline table states the reason.
    """
    rivals = [row for row in headline_rows(tables, tables.headlines) if row.condition.strategy != BASELINE]
    found = [row for row in rivals if row.inapplicable is None]
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, row.measure)],
            row.condition.label,
            EMPTY if row.to_scratch is None else with_interval(row.to_scratch.interval, signed=True),
            EMPTY if row.to_scratch is None else str(row.to_scratch.interval.n),
            EMPTY if row.to_scratch is None or not row.to_scratch.is_tested else p_value(row.to_scratch.p),
            row.verdict,
        ]
        for row in found
    ]
    counts = [row.to_scratch.interval.n for row in found if row.to_scratch is not None]
    name = baseline_name(tables, {row.measure.task for row in found})
    note = (
        f"{_where(tables)}The difference is to {name} of the same model. {baseline_note(tables)}"
        "n: seeds on each side. p: t test, two-sided and uncorrected. Ahead or behind: p ≤ 0.05 after Holm's "
        f"correction for {len(counts)} comparisons; leaning: p ≤ 0.05 before the correction only. "
        f"{seeds_note(counts)}"
    )
    header = ["task: metric", "strategy", f"difference to {name}", "n", "p", "verdict"]
    return View("verdicts", f"Verdicts against {name}", note, header, "llrrrl", rows)


def cells(tables: Tables, measure: Measure) -> View:
    """Return every cell that was tried with its difference to the baseline and runs, or why it is empty."""
    rows: list[list[Entry]] = []
    found = summaries(tables, measure)
    for row in found:
        gap = row.to_scratch
        rows.append(
            [
                shown(tables, row.cell.condition, [measure.task]).label,
                row.cell.model,
                row.cell.budget or EMPTY,
                with_interval(row.interval) if row.interval else _why_empty(tables, row),
                str(row.interval.n) if row.interval else "0",
                EMPTY if gap is None else with_interval(gap.interval, signed=True),
                EMPTY if gap is None or not gap.is_tested else p_value(gap.p),
                _run_links(tables, row),
            ]
        )
    info = tables.measures[measure]
    note = (
        f"Chance level: {_chance(tables, measure)}. Test items: {_range(info.n_items)}. Bold: better than "
        "each other strategy of the same model and data budget, p ≤ 0.05."
    )
    gain = f"difference to {baseline_name(tables, [measure.task])}"
    header = ["strategy", "model", "data budget", "mean", "n", gain, "p", "runs, by seed"]
    title = measure_label(tables, measure)
    best = frozenset((i, 3) for i in _best_cells(tables, measure, found))
    return View(cells_anchor(tables, measure), title, note, header, "lllrrrrl", rows, best=best)


def _best_cells(tables: Tables, measure: Measure, found: Sequence[Summary]) -> list[int]:
    """Return the rows that are clearly the best of their model and data budget."""
    peers: dict[Place, list[Cell]] = {}
    for row in found:
        if row.interval is not None and not row.cell.condition.is_external:
            peers.setdefault((row.cell.model, row.cell.budget), []).append(row.cell)
    best = {clear_best(tables, measure, own) for own in peers.values()}
    return [i for i, row in enumerate(found) if row.cell in best]


def differences(tables: Tables) -> View:
    """Return the difference to the untrained baseline of each cell, on every measure."""
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
    gain = f"difference to {baseline_name(tables)}"
    header = ["task: metric", "strategy", "model", "data budget", gain]
    return View("differences", f"{gain.capitalize()} by cell", "", header, "llllr", rows)


def pairs(tables: Tables) -> View:
    """Return the differences of all pairs of strategies at each model and data budget, on headline metrics.

    If there are too many rows, the pairs are compared at the headline's place; if there are still too many,
    each strategy is compared with the best.
    """
    conditions = [condition for condition in tables.conditions if condition.strategy != BASELINE]
    couples, where = list(combinations(conditions, 2)), places(tables)
    if len(couples) * len(where) * len(tables.headlines) > _MOST_PAIRS:
        return _at_headline(tables, conditions, to_best=len(couples) * len(tables.headlines) > _MOST_PAIRS)
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
    note = f"Difference: first minus second. p: t test, uncorrected. {seeds_note(counts)}"
    header = ["task: metric", "first", "second", "model", "data budget", "difference"]
    return View("pairs", "Differences between strategies", note, header, "lllllr", rows)


def _at_headline(tables: Tables, conditions: Sequence[Condition], *, to_best: bool) -> View:
    rows: list[list[Entry]] = []
    counts: list[int] = []
    place = headline_place(tables)
    for measure in tables.headlines:
        couples = _with_best(tables, measure, conditions) if to_best else combinations(conditions, 2)
        for left, right in couples:
            gap = between(tables, measure, left, right, *place)
            if gap is not None:
                rows.append([measure_label(tables, measure), left.label, right.label, with_p(gap)])
                counts.append(gap.interval.n)
    what = (
        "the strategy minus the one with the best mean, which is biased upward (winner's curse)"
        if to_best
        else "first minus second"
    )
    note = (
        f"Difference: {what}. {_where(tables)}A table of all cells would be too long. p: t test, "
        f"uncorrected. {seeds_note(counts)}"
    )
    header = ["task: metric", *(("strategy", "best") if to_best else ("first", "second")), "difference"]
    title = f"Differences {'to the best strategy' if to_best else 'between strategies'}"
    return View("pairs", title, note, header, "lllr", rows)


def _with_best(
    tables: Tables, measure: Measure, conditions: Sequence[Condition]
) -> list[tuple[Condition, Condition]]:
    sign = tables.measures[measure].sign
    samples = {condition: sample(tables, measure, grid(tables, condition)[-1:]) for condition in conditions}
    means = {condition: sign * own.mean for condition, own in samples.items() if len(own.seeds)}
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


def _headline_entry(tables: Tables, row: HeadlineRow) -> Entry:
    if row.inapplicable is not None:
        return [Link("n/a", "", row.inapplicable)]
    href = f"#{cells_anchor(tables, row.measure)}"
    if row.interval is None:
        why = f"{row.n_lost} runs lost" if row.n_lost else "not run"
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
    gain = f"difference to {baseline_name(tables, {row.measure.task for row in found})}"
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, row.measure)],
            EMPTY if row.caps.data_bytes is None else n_bytes(row.caps.data_bytes),
            EMPTY if row.caps.flops is None else power(row.caps.flops),
            shown(tables, row.best.condition, [row.measure.task]).label,
            row.best.model,
            row.best.budget or EMPTY,
            with_interval(row.interval),
            certainty(row),
            EMPTY if row.to_scratch is None else with_interval(row.to_scratch.interval, signed=True),
            EMPTY if row.to_scratch is None else p_value(row.p_holm),
            _short_labels(tables, row.measure, row.tied),
            _short_labels(tables, row.measure, row.missing),
        ]
        for row in found
    ]
    note = (
        "Each row shows the cell with the best mean among those that use no more unique text and pretraining "
        "FLOPs than the row allows. Image-text strategies train on the pairs of the same data budget. A "
        "compute level is the FLOPs of the most expensive strategy of a model and budget; levels are at "
        f"least a factor of two apart. Certainty is the share of {N_DRAWS:,} simulated outcomes, given the "
        "errors of seeds and items, in which the cell is the best. "
        f"{gain.capitalize()}: to the best cell without pretraining, of any model; p: t test, Holm-corrected "
        f"over the candidates of the row. {baseline_note(tables)}"
        "Not distinguishable: p > 0.05 against the best cell, uncorrected. The mean of the best of several "
        "cells is biased upward (winner's curse), and so is its certainty. "
        f"{seeds_note(row.interval.n for row in found)}"
    )
    header = ["task: metric", "unique text ≤", "FLOPs ≤", "best", "model", "data budget", "mean", "certainty"]
    header += [gain, "p (Holm)", "not distinguishable", "missing"]
    title = "Best strategy and model by task, data and compute"
    return View("decisions", title, note, header, "lrrlllrrrrll", rows)


def _short_labels(tables: Tables, measure: Measure, cells: Iterable[Cell]) -> str:
    named = (shown_cell(tables, cell, [measure.task]) for cell in cells)
    return "; ".join(short_label(tables, cell) for cell in named) or EMPTY
