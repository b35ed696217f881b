"""Fine-tuning stability: several fits of one checkpoint, several checkpoints, and fits that failed."""

from statistics import mean, stdev
from typing import NamedTuple

from bench.analysis.compare import grid, level
from bench.analysis.naming import measure_link, seeds_note
from bench.analysis.stats import Interval, interval
from bench.analysis.table import Arm, Measure, Tables
from bench.analysis.text import EMPTY, Entry, View, number, with_interval

FIT_SD, FAILED = "_fit_sd", "failed_fits"  # what tasks call them


class Tuned(NamedTuple):
    """A fine-tuned measure, and what tells how stable it is."""

    measure: Measure
    fit_sd: Measure
    failed: Measure


def stability(tables: Tables) -> View | None:
    """A row per fine-tuned measure and strategy, scratch included; None where nothing is fine-tuned."""
    rows: list[list[Entry]] = []
    counts: list[int] = []
    for tuned in fine_tuned(tables):
        for arm in tables.arms:
            spread, failed = (_mean(tables, measure, arm) for measure in (tuned.fit_sd, tuned.failed))
            between = sd_over_seeds(tables, tuned.measure, arm)
            if (spread, failed, between) == (None, None, None):
                continue
            counts += [found.n for found in (spread, failed) if found is not None]
            texts = [
                with_interval(spread),
                EMPTY if between is None else number(between),
                EMPTY if failed is None else number(failed.mean),
            ]
            rows.append([[measure_link(tables, tuned.measure)], arm.label, *texts])
    if not rows:
        return None
    note = (
        "Standard deviations of the score: over fine-tunings of one checkpoint, and over seeds of the whole "
        "run; both are means over models and data budgets. Failed: a fine-tuning that diverged or ended no "
        "better than a constant (Mosbach et al. 2021). "
        f"{seeds_note(counts)}"
    )
    header = ["task: metric", "strategy", "sd over fits", "sd over seeds", "share of failed fits"]
    return View("stability", "Fine-tuning stability", note, header, "llrrr", rows)


def fine_tuned(tables: Tables) -> list[Tuned]:
    """Measures with a spread over fits; where only failures are told, the task's headline metric."""
    found = [
        Tuned(m, m._replace(metric=m.metric + FIT_SD), m._replace(metric=FAILED)) for m in tables.measures
    ]
    with_spread = [tuned for tuned in found if tuned.fit_sd in tables.measures]
    told = {(tuned.measure.task, tuned.measure.n_labels) for tuned in with_spread}
    headlines = {(measure.task, measure.metric) for measure in tables.headlines}
    alone = [
        tuned
        for tuned in found
        if tuned.failed in tables.measures
        and (tuned.measure.task, tuned.measure.metric) in headlines
        and (tuned.measure.task, tuned.measure.n_labels) not in told
    ]
    return [tuned for tuned in found if tuned in with_spread or tuned in alone]


def sd_over_seeds(tables: Tables, measure: Measure, arm: Arm) -> float | None:
    """The mean over cells of the standard deviation over seeds; None where no cell has two."""
    values = [tables.values[measure].get(cell, {}) for cell in grid(tables, arm)]
    spreads = [stdev(seeds.values()) for seeds in values if len(seeds) > 1]
    return mean(spreads) if spreads else None


def _mean(tables: Tables, measure: Measure, arm: Arm) -> Interval | None:
    return interval(list(level(tables, measure, grid(tables, arm)).values()))
