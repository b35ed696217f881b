"""Tables of costs and coverage: pretraining, Pareto fronts and evaluation; and samples of texts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.analysis.cost import SOURCES, STAGES, energy_note, flops, front, run_costs, seconds
from bench.analysis.format import (
    EMPTY,
    Entry,
    View,
    amount,
    measure_link,
    power,
    seeds_note,
    with_interval,
    with_p,
)
from bench.analysis.frames import Cell, Condition, Tables
from bench.analysis.gate import informative
from bench.analysis.untrained import shown

_LINE_END = " ⏎ "
_UNITS = ["FLOPs", "s", "kWh", "kg CO2"]


class Sample(NamedTuple):
    """The texts that a task recorded for one run."""

    run_id: str
    cell: Cell
    seed: int
    texts: list[dict[str, str]]


def evaluation(tables: Tables) -> View | None:
    """Return a table with a row per task; None if no task was evaluated."""
    done = tables.results[tables.results["run_status"] == "finished"]
    rows = [_row(task, own, tables.energies) for task, own in done.groupby("task")]
    if not rows:
        return None
    note = (
        "Results of finished runs. A task is inapplicable if a strategy lacks the input or output that it "
        "needs. Seconds, FLOPs (forward and backward passes) and joules are means over the results that have "
        "them, without pretraining. Measured and estimated joules are not comparable. Items left out could "
        "not be scored; they are counted by reason, in total over all runs and as a range over runs."
    )
    header = ["task", "finished", "inapplicable", "failed", "seconds", "FLOPs", "joules, measured"]
    header += ["joules, estimated", "energy by", "items left out"]
    return View("evaluation", "Evaluation: cost and coverage", note, header, "lrrrrrrrll", rows)


def _row(task: str, results: pd.DataFrame, energies: pd.DataFrame) -> list[Entry]:
    done = results[results["status"] == "finished"]
    own = energies[(energies["task"] == task) & energies["run_id"].isin(done["run_id"])]
    methods = own[["method", "source"]].drop_duplicates().itertuples(index=False)
    return [
        task,
        *(str((results["status"] == status).sum()) for status in ("finished", "inapplicable", "failed")),
        amount(done["seconds"].mean()),
        amount(done["flops"].mean()),
        *(amount(own["joules"][own["source"] == source].mean()) for source in SOURCES),
        "; ".join(sorted(f"{method} ({source})" for method, source in methods)) or EMPTY,
        left_out(done["counts"]),
    ]


def left_out(counts: Iterable[Mapping[str, int]]) -> str:
    """Return `label unseen in training: 12 (0 to 5 a run)`, reason by reason, from the counts of each run."""
    by_reason = pd.DataFrame(list(counts)).fillna(0).astype("int64")
    parts = []
    for reason in sorted(by_reason.columns):
        own = by_reason[reason]
        span = f"{own.min():,}" if own.min() == own.max() else f"{own.min():,} to {own.max():,}"
        parts.append(f"{reason}: {own.sum():,} ({span} a run)")
    return "; ".join(parts) or EMPTY


def samples(tables: Tables) -> list[View]:
    """Return a table per task with texts, from each strategy's largest cell and lowest seed."""
    tasks = sorted(set(tables.results["task"][tables.results["samples"].map(len) > 0]))
    return [view for task in tasks if (view := _samples(tables, task)) is not None]


def _samples(tables: Tables, task: str) -> View | None:
    found = {c: sample for c in tables.conditions if (sample := shown_sample(tables, c, task)) is not None}
    texts = {condition: sample.texts for condition, sample in found.items()}
    columns = list(dict.fromkeys(name for rows in texts.values() for row in rows for name in row))
    rows: list[list[Entry]] = [
        [shown(tables, condition, [task]).label, *(visible(row.get(name, EMPTY)) for name in columns)]
        for condition, own in texts.items()
        for row in (own if len(columns) > 1 else _joined(own))
    ]
    if not rows:
        return None
    places = sorted({f"{s.cell.model}, {s.cell.budget or 'no data'}, seed {s.seed}" for s in found.values()})
    note = (
        "The texts are from one run of each strategy, of its largest cell and lowest seed "
        f"({'; '.join(places)}). ⏎ marks a line break."
    )
    header = ["strategy", *columns]
    return View(f"samples-{task}", f"Samples: {task}", note, header, "l" * len(header), rows)


def shown_sample(tables: Tables, condition: Condition, task: str) -> Sample | None:
    """Return the sample of a condition's largest cell and lowest seed; None if it has none."""
    own = tables.results[(tables.results["task"] == task) & (tables.results["run_status"] == "finished")]
    cells = [i for i, cell in enumerate(tables.cells) if cell.condition == condition]
    own = own[own["cell"].isin(cells) & (own["samples"].map(len) > 0)]
    if own.empty:
        return None
    row = own[own["cell"] == own["cell"].max()].iloc[0]
    return Sample(row["run_id"], tables.cells[row["cell"]], int(row["seed"]), row["samples"])


def visible(text: str) -> str:
    """Return a text on one line, with signs for line ends and for what cannot be printed."""
    flat = _LINE_END.join(text.strip().splitlines())
    return "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in flat
    )


def _joined(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Join rows of a single column to one row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: " · ".join(row[name].strip() for row in rows if name in row) for name in names}]


def cost(tables: Tables) -> View:
    """Return a table with the cost of a run of each cell, and of the whole study with its lost runs."""
    rows: list[list[Entry]] = []
    costs, finished = run_costs(tables), tables.runs["status"] == "finished"
    means = costs[finished].groupby(tables.runs["cell"]).mean().reindex(range(len(tables.cells)))
    counts = finished.groupby(tables.runs["cell"]).agg(["size", "sum"])
    for i, cell in enumerate(tables.cells):
        n, n_lost = int(counts["size"][i]), int(counts["size"][i] - counts["sum"][i])
        names = [
            shown(tables, cell.condition).label,
            cell.model,
            cell.budget or EMPTY,
            f"{n}, {n_lost} lost" if n_lost else str(n),
        ]
        rows.append([*names, *_entries(means.loc[i])])
    whole = ["the study in total", EMPTY, EMPTY, str(len(tables.runs))]
    rows.append([*whole, *_entries(costs.sum(min_count=1))])
    header = ["strategy", "model", "data budget", "runs"]
    header += [f"{stage} {unit}" for stage in STAGES for unit in _UNITS]
    marks = [*("" for _ in tables.cells), "reference"]
    return View("cost", "Cost", _note(tables), header, "lllr" + "r" * 8, rows, marks=marks)


def _entries(found: pd.Series) -> list[Entry]:
    """Return the entries of a row of `run_costs`, or of its mean or sum."""
    entries: list[Entry] = []
    for stage in STAGES:
        entries += [amount(found[f"{stage} flops"]), amount(found[f"{stage} s"])]
        for unit in ("kwh", "co2_kg"):
            known = [(found[f"{stage} {unit} {source}"], source) for source in SOURCES]
            parts = [f"{_small(value)} {source}" for value, source in known if not math.isnan(value)]
            entries.append("; ".join(parts) or EMPTY)
    return entries


def _small(value: float) -> str:
    return power(value) if value < 0.01 else amount(value)


def _note(tables: Tables) -> str:
    return " ".join(
        part
        for part in (
            "The rows of cells are means over the finished runs that have the number. Pretraining and "
            "evaluation are not added up. Seconds depend on the machine and its load; FLOPs do not.",
            _coverage(tables),
            energy_note(tables),
        )
        if part
    )


def _coverage(tables: Tables) -> str:
    """Return which part of the study the totals include."""
    runs = tables.runs
    lost = runs["status"] != "finished"
    silent = int((lost & run_costs(tables)["pretraining s"].isna()).sum())
    pretrained = set(runs["run_id"][runs["budget"].notna()])
    stages = tables.energies[tables.energies["stage"] == "pretraining"]
    metered = len(pretrained & set(stages["run_id"]))
    parts = []
    if lost.any():
        parts.append(f"The total includes the lost runs ({lost.sum()})")
        parts[-1] += (
            f"; for {silent} of them no cost is on record, so the true total is higher." if silent else "."
        )
    if metered and metered < len(pretrained):
        parts.append(f"Energy was recorded for {metered} of {len(pretrained)} pretrained runs.")
    return " ".join([*parts, *_sharing(runs[~lost])])


def _sharing(runs: pd.DataFrame) -> list[str]:
    """Return a sentence on the runs that branch from a trunk, which they did not train again."""
    branches = runs[runs["data"].map(lambda data: "trunk" in data).astype(bool)]
    if branches.empty:
        return []
    steps = np.array([data["trunk"]["steps"] for data in branches["data"]])
    saved = (branches["flops"] * steps / branches["steps"]).sum()
    return [
        f"{len(branches)} runs branch from a trunk that another run trained. FLOPs and seconds include the "
        "trunk in each of them, as if each had been trained alone; energy does not. The shared trunk saved "
        f"{100 * saved / runs['flops'].sum():.1f} % of the FLOPs."
    ]


def pareto(tables: Tables) -> View:
    """Return the Pareto front of each task's headline metric and pretraining FLOPs."""
    spent, taken = flops(tables), seconds(tables)
    found = [(measure, member) for measure in informative(tables) for member in front(tables, measure, spent)]
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, measure)],
            shown(tables, member.cell.condition, [measure.task]).label,
            member.cell.model,
            member.cell.budget or EMPTY,
            with_interval(member.interval),
            power(member.cost),
            amount(taken.get(member.cell)),
            with_p(member.gain),
            {None: EMPTY, True: "clear", False: "not clear"}[member.is_clear],
        ]
        for measure, member in found
    ]
    note = (
        "A cell is on the front if no cheaper cell has an equal or better mean, and no cell of the same cost "
        "a better one; a baseline has no cost. The costs exclude evaluation, and "
        "seconds depend on the machine. "
        "A gain is clear if the t test against the next cheaper row of the task "
        "has p ≤ 0.05, uncorrected; a gain that is not clear may be due to chance. "
        f"{seeds_note(member.interval.n for _, member in found)}"
    )
    header = ["task: metric", "strategy", "model", "data budget", "mean", "pretraining FLOPs"]
    header += ["pretraining s", "difference to the next cheaper row", "gain"]
    title = "Pareto fronts of quality and pretraining FLOPs"
    return View("pareto", title, note, header, "llllrrrrl", rows)
