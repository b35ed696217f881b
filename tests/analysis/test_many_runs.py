"""A large study: the work of an analysis grows with its cells, not with their square."""

import random
from cProfile import Profile
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

import pytest
from toy_runs import ToyRun, make_run, tables_of

from bench.analysis.compare import grid, level
from bench.analysis.format import measure_label
from bench.records import CurvePoint, Score, Spent
from bench.report.csv_tables import csv_tables
from bench.report.page import assemble
from bench.report.tables.results import pairs

TASKS = {"ner": "f1", "qa": "em", "probe": "accuracy", "retrieval": "recall_at_5"}
STRATEGIES = ("clip", "clm", "mlm", "rtd", "ul2")
N_SEEDS = 3


def sweep(n_settings: int, draw_seed: int) -> list[ToyRun]:
    """Five strategies at so many settings, two models, six budgets and three seeds; and scratch."""
    draw, runs = random.Random(draw_seed), []  # noqa: S311 -- no secret
    cells = [("scratch", 0, model, None) for model in range(2)]
    cells += list(product(STRATEGIES, range(1, n_settings + 1), range(2), range(6)))  # type: ignore[arg-type]
    for (strategy, setting, model, budget), seed in product(cells, range(N_SEEDS)):
        tokens, parameters = 1_000_000 * 2 ** (budget or 0), 200_000 * 2**model
        flops = 6.0 * parameters * tokens
        values = {task: 0.3 + 0.01 * (budget or 0) + 0.02 * draw.gauss(0, 1) for task in TASKS}
        run = make_run(
            strategy,
            seed,
            0.5,
            budget=None if budget is None else f"{2**budget}mb",
            run_id=f"{len(runs):012x}",
            model=f"{parameters}",
            variant=f"optim.lr_peak={setting}" if setting else "",
            scores=[Score(task, metric, values[task], 0.1, 500) for task, metric in TASKS.items()],
            parameters=parameters,
        )
        if budget is not None:
            spent = Spent(steps=100, forward_tokens=tokens, flops=flops, unique_bytes=tokens, pretrain_s=9.0)
            run = replace(run, spent=spent, curve=(CurvePoint(100, tokens, flops, 3.0, 3.1),))
        runs.append(run)
    return runs


def calls_of_an_analysis(runs: list[ToyRun], folder: Path) -> int:
    """Calls of functions, numpy's included, for everything but the figures: unlike a time, exact."""
    with Profile() as profile:
        tables = tables_of(runs)
        csv_tables(tables, folder)
        page = assemble(tables, [], [], records_href="", study=folder)
    cells = page.section("cells")
    assert cells is not None
    assert len(cells.tables) == len(TASKS)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.slow
def test_four_times_the_cells_take_about_four_times_the_calls(tmp_path: Path):
    calls_of_an_analysis(sweep(4, 0), tmp_path)  # what is computed once for all studies
    few, many = (calls_of_an_analysis(sweep(n, n), tmp_path) for n in (4, 16))
    assert many < 5 * few, (few, many)  # with a loop over pairs of cells it would be 16


def test_a_table_of_differences_grows_with_the_strategies_not_with_their_pairs():
    tables = tables_of(sweep(16, 0))
    view, n = pairs(tables), len(STRATEGIES) * 16
    assert len(view.rows) == len(TASKS) * (n - 1)
    for measure in tables.headlines:
        rows = [row for row in view.rows if row[0] == measure_label(tables, measure)]
        [best] = {row[2] for row in rows}
        means = {arm: mean(level(tables, measure, grid(tables, arm))) for arm in tables.conditions[1:]}
        assert best == max(means, key=means.__getitem__).label
        assert str(best) not in [row[1] for row in rows]
