"""What a claim speaks of among a study's tables: its measure, its cells in pairs, which way is better."""

from collections.abc import Sequence

from bench.analysis.claims import VARIANCE_RATIO, Claim, Side, suggestion
from bench.analysis.naming import cell_label
from bench.analysis.table import BASELINE, Arm, Cell, Measure, Tables, lost

Pair = tuple[Cell, Cell]  # left and right


class LackingError(Exception):
    """Why a claim cannot be tested."""


def measure_of(tables: Tables, claim: Claim) -> Measure:
    """The claim's metric, with the label count that it asks for, else the most."""
    tasks = sorted({measure.task for measure in tables.measures})
    _require_known(claim.task, tasks, "task")
    own = [measure for measure in tables.measures if measure.task == claim.task]
    _require_known(claim.metric, sorted({measure.metric for measure in own}), f"metric of {claim.task}")
    counts = [m for m in own if m.metric == claim.metric and claim.n_labels in (None, m.n_labels)]
    if not counts:
        raise LackingError(f"{claim.task}: {claim.metric} was not measured with {claim.n_labels} labels")
    return max(counts, key=lambda measure: measure.n_labels or 0)


def sign_of(tables: Tables, claim: Claim, measure: Measure) -> int:
    """1 where higher is better, -1 where lower is; 0 where nothing is and the claim is of spread alone."""
    sign = tables.measures[measure].sign
    asked = {"higher": 1, "lower": -1, None: 0}[claim.better]
    if asked and sign and asked != sign:
        raise LackingError(
            f"better: {claim.better} contradicts the task, which says the opposite of {claim.metric}"
        )
    if not (asked or sign or claim.test == VARIANCE_RATIO):
        raise LackingError(
            f"{claim.metric} only describes: add `better: higher` or `better: lower` to the claim"
        )
    return sign or asked


def pairs_of(tables: Tables, claim: Claim) -> tuple[Pair, ...]:
    """The cells to compare: those of the pretrained side, each with its partner of the same place."""
    sides = [(_arm(tables, side), side.within(claim.cells)) for side in (claim.left, claim.right)]
    order = 1 if sides[0][0].strategy == BASELINE else 0
    (arm, own), (other, partner) = sides[order], sides[1 - order]
    cells = [cell for cell in tables.cells if cell.arm == arm and _is_at(cell, own)]
    if not cells:
        raise LackingError(_no_cell(tables, arm, own))
    found = []
    for cell in cells:
        budget = None if other.strategy == BASELINE else partner.budget or cell.budget
        mate = Cell(other, partner.model or cell.model, budget)
        found.append((cell, mate) if order == 0 else (mate, cell))
    return tuple(found)


def _arm(tables: Tables, side: Side) -> Arm:
    strategies = sorted({arm.strategy for arm in tables.arms})
    _require_known(side.strategy or "", strategies, "strategy")
    arm = Arm(side.strategy or "", side.variant or "")
    variants = sorted(a.variant for a in tables.arms if a.strategy == arm.strategy)
    _require_known(arm.variant, variants, f"variant of {arm.strategy}")
    return arm


def _is_at(cell: Cell, side: Side) -> bool:
    is_pretrained = cell.arm.strategy != BASELINE
    at_budget = side.budget in (None, cell.budget) or not is_pretrained
    return at_budget and side.model in (None, cell.model)


def _no_cell(tables: Tables, arm: Arm, side: Side) -> str:
    places = ", ".join(
        f"{cell.model} {cell.budget or ''}".strip() for cell in tables.cells if cell.arm == arm
    )
    asked = f"model={side.model or 'any'}, budget={side.budget or 'any'}"
    return f"no run of {arm.label} with {asked}; there are {places}"


def _require_known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise LackingError(f"no {what} {name!r} in this study{suggestion(name, known)}")


def require_complete(tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair]) -> None:
    """No cell may be missing and no run lost: those that are left would speak for those that failed."""
    for cell, side in (
        (cell, side) for pair in pairs for cell, side in zip(pair, (claim.left, claim.right), strict=True)
    ):
        runs = [r for r in tables.runs_of.get(cell, ()) if side.seeds is None or r.seed in side.seeds]
        where = cell_label(cell, " ")
        missing = sorted(set(side.seeds or ()) - {run.seed for run in runs})
        if missing or not runs:
            raise LackingError(f"no run of {where}{f' with seed {missing[0]}' if missing else ''}")
        if (cell.arm, measure.task) in tables.inapplicable:
            raise LackingError(
                f"{cell.arm.label} cannot do {measure.task}: {tables.inapplicable[cell.arm, measure.task]}"
            )
        n_lost = sum(lost(tables, run, measure.task) is not None for run in runs)
        if n_lost:
            raise LackingError(f"{n_lost} of {len(runs)} runs of {where} lost")
        if not tables.values[measure].get(cell):
            raise LackingError(f"{where} has no score of {measure.task}")
