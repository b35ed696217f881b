"""A large study: what it takes to analyse grows with its cells, not with their square."""

import random
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from threadpoolctl import threadpool_limits
from toy_runs import ToyRun, make_run, tables_of

from bench.analysis.csv_tables import csv_tables
from bench.page import assemble
from bench.records import CurvePoint, Score, Spent

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


def analysis_s(runs: list[ToyRun], folder: Path) -> float:
    """Of everything but the figures."""
    started = time.process_time()
    tables = tables_of(runs)
    csv_tables(tables, folder)
    page = assemble(tables, [], [], records_href="", study=folder)
    assert len(page.cells) == len(TASKS)
    return time.process_time() - started


def test_four_times_the_cells_take_about_four_times_as_long(tmp_path: Path):
    analysis_s(sweep(4, 0), tmp_path)  # what is computed once for all studies
    with threadpool_limits(limits=1, user_api="blas"):  # as a report does
        few, many = (min(analysis_s(sweep(n, n), tmp_path) for _ in range(2)) for n in (4, 16))
    assert many < 8 * few  # it is 4 to 5; with a loop over pairs of cells it would be 16
