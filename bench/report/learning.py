"""Did each strategy learn, and does it beat no pretraining anywhere? Curves and verdicts -> a table."""

from bench.analysis.compare import Pooled, pooled
from bench.analysis.stats import AHEAD, LEANS_AHEAD
from bench.analysis.table import Arm, Tables
from bench.analysis.text import EMPTY, Entry, View, number
from bench.records import finished

TRAINING, HELD_OUT = "train_loss_nats", "validation_loss_nats"  # of a `CurvePoint`
_MARK = {AHEAD: " ▲", LEANS_AHEAD: " △"}


def learning(tables: Tables) -> View:
    """Every pretrained arm: in how many runs its losses fell, and on which tasks its mean beats scratch."""
    found = pooled(tables, tables.headlines)
    rows: list[list[Entry]] = []
    nowhere: list[str] = []
    for arm in (arm for arm in tables.arms if losses(tables, arm, HELD_OUT)):
        better = [row for row in found if row.arm == arm and _is_better(tables, row)]
        if not better:
            nowhere.append(arm.label)
        fell = [_fell(losses(tables, arm, kind)) for kind in (TRAINING, HELD_OUT)]
        rows.append([arm.label, *fell, ", ".join(map(_gain, better)) or EMPTY])
    note = (
        "Loss: the objective's own, last against first point of the curve, which is not the start; finished "
        "runs. A held-out loss that rises while the training loss falls is overfitting. Phases are measured "
        "by the last one on held-out data, and change their training loss on the way. Better than scratch: "
        "the mean difference over all cells points that way; ▲ after Holm's correction, "
        "△ by the paired interval alone, no mark: by the mean alone. "
    )
    note += (
        f"Better on no task: {', '.join(nowhere)}." if nowhere else "Every strategy is better on some task."
    )
    header = ["strategy", "training loss fell", "held-out loss fell", "better than scratch on"]
    return View("learning", "Did it learn, and does it pay?", note, header, "lrrl", rows)


def losses(tables: Tables, arm: Arm, kind: str) -> list[tuple[float, float]]:
    """First and last loss of each finished run of an arm that was measured twice or more."""
    own = [record for cell in tables.cells if cell.arm == arm for record in finished(tables.runs_of[cell])]
    curves = [[loss for p in record.curve if (loss := getattr(p, kind)) is not None] for record in own]
    return [(curve[0], curve[-1]) for curve in curves if len(curve) > 1]


def _fell(ends: list[tuple[float, float]]) -> str:
    return f"{sum(last < first for first, last in ends)} of {len(ends)} runs" if ends else EMPTY


def _is_better(tables: Tables, row: Pooled) -> bool:
    if row.to_scratch is None:
        return False
    return tables.measures[row.measure].sign * row.to_scratch.interval.mean > 0


def _gain(row: Pooled) -> str:
    assert row.to_scratch is not None
    gain = number(row.to_scratch.interval.mean, signed=True)
    return f"{row.measure.task} {gain}{_MARK.get(row.verdict, '')}"
