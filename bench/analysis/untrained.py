"""The two baselines without pretraining, and which of them a task has.

The records of both have the strategy `scratch`, since both are the same untrained network. A task that
fine-tunes trains it on the task itself: that is *scratch*. Every other task keeps it frozen (a probe, fitted
layers on top, zero-shot): those are *random features*, `random_features` in a claim.
"""

from collections.abc import Iterable

from bench.analysis import claims
from bench.analysis.frames import BASELINE, Cell, Condition, Tables

SCRATCH, RANDOM_FEATURES = "scratch", "random features"


def baseline_name(tables: Tables, tasks: Iterable[str] | None = None) -> str:
    """Return the baseline of these tasks, or of all: `scratch`, `random features`, or both names."""
    wanted = {measure.task for measure in tables.measures} if tasks is None else set(tasks)
    kinds = {SCRATCH if task in tables.fine_tuned else RANDOM_FEATURES for task in wanted}
    return " / ".join(sorted(kinds)) or SCRATCH


def shown(tables: Tables, condition: Condition, tasks: Iterable[str] | None = None) -> Condition:
    """Return a condition under the name that tables and figures on these tasks, or on all, give it."""
    if condition.strategy != BASELINE:
        return condition
    return condition._replace(strategy=baseline_name(tables, tasks))


def shown_cell(tables: Tables, cell: Cell, tasks: Iterable[str] | None = None) -> Cell:
    """Return a cell under the name of its condition, see `shown`."""
    return cell._replace(condition=shown(tables, cell.condition, tasks))


def fits_name(tables: Tables, name: str, task: str) -> bool:
    """Return whether a name is not that of the baseline which the task does not have."""
    other = claims.RANDOM_FEATURES if task in tables.fine_tuned else claims.SCRATCH
    return name != other


def require_name(tables: Tables, name: str, task: str, where: str) -> None:
    """Refuse the name of the baseline that a task does not have, see `claims.require_baseline`.

    Raises:
        ConfigError: names the place and the right name.
    """
    if task in {measure.task for measure in tables.measures}:
        claims.require_baseline(name, task, where, is_trained=task in tables.fine_tuned)


def baseline_note(tables: Tables) -> str:
    """Return what the names stand for, where the study has tasks of both kinds; "" otherwise."""
    tasks = {measure.task for measure in tables.headlines}
    trained = sorted(tasks & tables.fine_tuned)
    if not trained or len(trained) == len(tasks):
        return ""
    return (
        f"Without pretraining: scratch, the network trained on the task itself ({', '.join(trained)}), and "
        "random features, the frozen random network (all other tasks). "
    )
