"""Did each strategy learn, and does it beat no pretraining anywhere? Curves and verdicts -> a table."""

from bench.analysis.compare import Pooled, pooled
from bench.analysis.stats import AHEAD, LEANS_AHEAD
from bench.analysis.table import Arm, Tables, cell_of
from bench.analysis.text import EMPTY, Entry, View, number
from bench.records import finished

_MARK = {AHEAD: " ▲", LEANS_AHEAD: " △"}


def learning(tables: Tables) -> View:
    """Every pretrained arm: in how many runs its held-out loss fell, and where its mean is above scratch."""
    found = pooled(tables, tables.headlines)
    rows: list[list[Entry]] = []
    nowhere: list[str] = []
    for arm in (arm for arm in tables.arms if losses(tables, arm)):
        better = [row for row in found if row.arm == arm and _is_better(tables, row)]
        if not better:
            nowhere.append(arm.label)
        fell = [last < first for first, last in losses(tables, arm)]
        rows.append([arm.label, f"{sum(fell)} of {len(fell)}", ", ".join(map(_gain, better)) or EMPTY])
    note = (
        "Loss: the objective's own on held-out data, first against last point of the curve; finished runs. "
        "Better than scratch: the mean difference over all cells points that way; ▲ after Holm's correction, "
        "△ by the paired interval alone, no mark: by the mean alone. "
    )
    note += (
        f"Better on no task: {', '.join(nowhere)}." if nowhere else "Every strategy is better on some task."
    )
    header = ["strategy", "runs whose loss fell", "better than scratch on"]
    return View("learning", "Did it learn, and does it pay?", note, header, "lrl", rows)


def losses(tables: Tables, arm: Arm) -> list[tuple[float, float]]:
    """First and last held-out loss of each finished run of an arm that was measured twice or more."""
    own = [r for r in finished(tables.records) if cell_of(r).arm == arm]
    curves = [[p.validation_loss_nats for p in r.curve if p.validation_loss_nats is not None] for r in own]
    return [(curve[0], curve[-1]) for curve in curves if len(curve) > 1]


def _is_better(tables: Tables, row: Pooled) -> bool:
    if row.to_scratch is None:
        return False
    sign = 1 if tables.measures[row.measure].higher_is_better else -1
    return sign * row.to_scratch.interval.mean > 0


def _gain(row: Pooled) -> str:
    assert row.to_scratch is not None
    gain = number(row.to_scratch.interval.mean, signed=True)
    return f"{row.measure.task} {gain}{_MARK.get(row.verdict, '')}"
