"""The table of fine-tuning: which learning rates were chosen, and whether the fits converged."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bench.analysis.format import EMPTY, Entry, View, number
from bench.analysis.frames import Condition, Tables
from bench.analysis.untrained import shown

AXES = ["task", "cell", "seed", "n_labels"]
COLUMNS = [*AXES, "lr_at_64", "chosen", "stopped", "steps", "validation", "is_edge"]
SHARE = "{:.0%}".format


def fit_frame(tables: Tables) -> pd.DataFrame:
    """Return one row per fine-tuning of a finished evaluation.

    `task`, `cell`, `seed`; `n_labels`, absent if not varied; `lr_at_64`, the peak rate at width 64; `chosen`,
    whether the rate was; `stopped`: plateau, cap or diverged; `steps`; `validation`, the best score;
    `is_edge`, whether the rate is the lowest or the highest of the grid.
    """
    rows = [
        {
            **{"task": row.task, "cell": row.cell, "seed": row.seed, "n_labels": fit.n_labels},
            **{"lr_at_64": fit.lr_at_64, "chosen": fit.chosen, "stopped": fit.stopped},
            "steps": fit.curve[-1][0] if fit.curve else 0,
            "validation": max((score for _, score in fit.curve), default=np.nan),
            "is_edge": fit.lr_at_64 in (min(grid := row.config["lr_grid"]), max(grid)) and len(grid) > 1,
        }
        for row in tables.results.itertuples()
        for fit in row.fits
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def convergence(tables: Tables) -> View | None:
    """Return a row per fine-tuned task, label count and strategy; None if no record holds its fits."""
    fits = fit_frame(tables)
    if fits.empty:
        return None
    rows: list[list[Entry]] = []
    marks = []
    for (task, labels), own in fits.groupby(["task", "n_labels"], dropna=False, sort=True):
        for condition in tables.conditions:
            found = own[[tables.cells[cell].condition == condition for cell in own["cell"]]]
            if len(found):
                rows.append([_name(task, labels), *_row(shown(tables, condition, [task]), found)])
                marks.append("failure" if _is_doubtful(found) else "")
    note = (
        "Every learning rate of the grid is tried with one fit of each checkpoint; the others are made at "
        "the best rate by validation score. A fit ends when validation no longer improves (plateau); one "
        "that reached the most steps allowed (cap) may not have converged, and a rate at the edge of the "
        "grid may not be the best. Validation scores are means over checkpoints of the best states."
    )
    header = ["task", "strategy", "rates chosen", "at the edge", "plateau", "cap", "diverged", "median steps"]
    return View(
        "convergence",
        "Fine-tuning: rates and convergence",
        note,
        [*header, "validation by rate"],
        "lllrrrrrl",
        rows,
        marks=marks,
    )


def _name(task: str, labels: float) -> str:
    return task if pd.isna(labels) else f"{task}, {int(labels):,} labels"


def _row(condition: Condition, fits: pd.DataFrame) -> list[Entry]:
    chosen = fits[fits["chosen"]]
    per_checkpoint = chosen.drop_duplicates(["cell", "seed"])
    rates = Counter(per_checkpoint["lr_at_64"])
    by_rate = fits.groupby("lr_at_64")["validation"].mean()
    return [
        condition.label,
        ", ".join(f"{rate:g} ({n})" for rate, n in sorted(rates.items())),
        SHARE(per_checkpoint["is_edge"].mean()),
        *(SHARE((chosen["stopped"] == end).mean()) for end in ("plateau", "cap", "diverged")),
        f"{chosen['steps'].median():,.0f}",
        "; ".join(f"{rate:g}: {EMPTY if np.isnan(v) else number(v)}" for rate, v in by_rate.items()),
    ]


def _is_doubtful(fits: pd.DataFrame) -> bool:
    """Return whether most checkpoints chose a rate at the edge, or most fits reached the cap."""
    chosen = fits[fits["chosen"]]
    shares: Sequence[float] = [chosen["is_edge"].mean(), (chosen["stopped"] == "cap").mean()]
    return max(shares) > 0.5
