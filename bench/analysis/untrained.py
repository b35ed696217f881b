"""The two baselines without pretraining, and which of them a task has.

The records of both have the strategy `scratch`, since both are the same untrained network. A task that
fine-tunes trains it on the task itself: that is *scratch*. Every other task keeps it frozen (a probe, fitted
layers on top, zero-shot): those are *random features*.
"""

from collections.abc import Iterable

from bench.analysis.frames import BASELINE, Cell, Condition, Tables
from bench.errors import ConfigError

SCRATCH, RANDOM_FEATURES = "scratch", "random features"
_CLAIMED = {"scratch": SCRATCH, "random_features": RANDOM_FEATURES}  # as a claim writes it


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


def recorded(name: str) -> str:
    """Return the strategy of the records that a claim's or a caller's name stands for."""
    return BASELINE if name in _CLAIMED else name


def require_name(tables: Tables, name: str, task: str, where: str) -> None:
    """Refuse the name of the baseline that a task does not have.

    Raises:
        ConfigError: names the place and the right name.
    """
    known = {measure.task for measure in tables.measures}
    if name not in _CLAIMED or task not in known or _CLAIMED[name] == baseline_name(tables, [task]):
        return
    right = next(own for own in _CLAIMED if own != name)
    does = "trains the network itself" if task in tables.fine_tuned else "keeps the network frozen"
    raise ConfigError(f"{where}={name}: {task} {does}, so its baseline without pretraining is {right}")


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
