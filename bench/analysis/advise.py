"""`bench advise`: a task, data and compute -> which strategy and model, in six lines at most.

Reads the records of studies, without torch. Under another corpus, tokenizer or setting a study is another
comparison, so scores of two studies are never put together: one study answers, and the others are held
against it. It is the first by these criteria: the task is informative in it, it measured something within the
budget, the task trains the network (only there is the baseline trained, too), a strategy is shown to beat the
baseline, it has the most seeds, the most compute.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from bench.analysis.decision import Caps, Decision, Need, certainty, decide, needs, pretrained
from bench.analysis.error_model import estimate, sample
from bench.analysis.format import (
    amount,
    cell_label,
    n_bytes,
    number,
    p_value,
    power,
    with_interval,
    with_seeds,
)
from bench.analysis.frames import BASELINE, TRIVIAL, Cell, Condition, Measure, Tables, load
from bench.analysis.gate import why_not
from bench.analysis.inference import seeds_needed
from bench.analysis.readme import advises
from bench.analysis.stats import LEVEL, MIN_SEEDS
from bench.analysis.untrained import baseline_name, shown_cell
from bench.errors import BenchError, ConfigError
from bench.records import studies

_BYTES = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_MOST_NAMES = 5  # cells that a line lists


class Advice(NamedTuple):
    """The answer, in six lines at most, and a warning for each study that was left out."""

    lines: list[str]
    warnings: list[str]


def advise(task: str, data: str, compute: str, study: str, experiments_dir: Path) -> Advice:
    """Return what the records of one study, or of all together, advise for a task.

    Args:
        task: a task's name or a part of it, see `matching`. Of several tasks one is answered, by the same
            criteria as a study is chosen; the answer names the others.
        data: the most unique text, such as 2MB; "" means no limit.
        compute: the most pretraining FLOPs, such as 1e13; "" means no limit.
        study: a study's name; "" means all studies that have such a task.
        experiments_dir: where the studies' records lie.

    Raises:
        ConfigError: an amount is not a number, the study or task is unknown, no study has records, or the
            study that was asked for does not advise.
    """
    caps = Caps(read_bytes(data), read_flops(compute))
    found, warnings = _load(study, experiments_dir)
    known = sorted({measure.task for tables in found for measure in tables.headlines})
    tasks = matching(task, known)
    answers = [
        Answer(tables, measure, caps)
        for tables in found
        for measure in tables.headlines
        if measure.task in tasks
    ]
    lead = max(answers, key=Answer.rank)
    others = [a for a in answers if a.measure.task == lead.measure.task and a is not lead]
    return Advice(_lines(lead, others, [name for name in tasks if name != lead.measure.task]), warnings)


def read_bytes(text: str) -> float | None:
    """Parse a size such as `2MB`, `500kB` or `4_000_000` into bytes; units are powers of 1000.

    Returns:
        The bytes, or None for "".

    Raises:
        ConfigError: the text is not a size.
    """
    parts = re.fullmatch(r"(.*?)\s*([KMG]?B)?", text, flags=re.IGNORECASE)
    number, unit = parts.groups(default="") if parts else (text, "")
    return (
        _positive(f"data={text}", number, "2MB, 500kB or 4_000_000", _BYTES[unit.upper()]) if text else None
    )


def read_flops(text: str) -> float | None:
    """Parse FLOPs such as `1e13`; return None for "".

    Raises:
        ConfigError: the text is not a number above 0.
    """
    return _positive(f"flops={text}", text, "1e13", 1.0) if text else None


def _positive(given: str, number: str, example: str, unit: float) -> float:
    try:
        value = float(number) * unit
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{given} is not an amount above 0; write it like {example}")
    return value


def matching(query: str, known: Sequence[str]) -> list[str]:
    """Return the task of this name; else all tasks with a word that begins so; else all that contain it.

    Raises:
        ConfigError: no task matches; the message names the closest.
    """
    low = query.lower()
    ways = (
        [name for name in known if name == query],
        [name for name in known if f"_{low}" in f"_{name.lower()}"],
        [name for name in known if low in name.lower()],
    )
    for found in ways:
        if found:
            return found
    words = dict.fromkeys([*known, *(word for name in known for word in name.split("_"))])
    close = get_close_matches(low, words, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"task={query}: no study has it; {hint}tasks with scores: {', '.join(known) or 'none'}")


def _load(study: str, experiments_dir: Path) -> tuple[list[Tables], list[str]]:
    """Return the studies to answer from, and a warning for each unreadable study or record."""
    if study and not advises(experiments_dir / study):
        raise ConfigError(f"study={study}: it gives no advice (`advises: false` in its README.md)")
    known = [n for n in studies(experiments_dir) if _has_records(experiments_dir / n)]
    names = [study] if study else [name for name in known if advises(experiments_dir / name)]
    if not names:
        raise ConfigError(
            f"experiments_dir={experiments_dir}: no study with records that advises; run one by `bench train`"
        )
    found, warnings = [], []
    for name in names:
        try:
            tables, damaged = load(name, experiments_dir)
        except BenchError as error:
            if study:
                raise
            warnings.append(f"left out: {error}")
            continue
        if tables.runs["exploratory"].any():
            why = f"study {name} is an exploratory search, which gives no advice"
            if study:
                raise ConfigError(why)
            warnings.append(f"left out: {why}")
            continue
        found.append(tables)
        warnings += [f"left out of study {name}: {error}" for error in damaged]
    return found, warnings


def _has_records(folder: Path) -> bool:
    return any((folder / "records").glob("*.json"))


@dataclass(frozen=True, eq=False)
class Answer:
    """What one study says of a task within a budget."""

    tables: Tables
    measure: Measure
    caps: Caps

    @cached_property
    def gated(self) -> str:
        """Why the task is not informative in the study; "" if it is."""
        return why_not(self.tables, self.measure.task)

    @cached_property
    def needs(self) -> dict[Cell, Need]:
        """The data and compute of every cell."""
        return needs(self.tables)

    @cached_property
    def pretrained(self) -> dict[Cell, Need]:
        """The data and compute of each pretrained cell with a score."""
        return pretrained(self.tables, self.measure, self.needs)

    @cached_property
    def decision(self) -> Decision | None:
        """The decision within the budget; None where nothing pretrained fits it."""
        if not any(need.fits(self.caps) for need in self.pretrained.values()):
            return None
        return decide(self.tables, self.measure, self.caps, self.needs)

    @property
    def baseline(self) -> str:
        """The name of the baseline without pretraining."""
        return baseline_name(self.tables, [self.measure.task])

    def rank(self) -> tuple[object, ...]:
        """Return the place of the study among those that can answer; the largest answers."""
        found = self.decision
        if found is None:
            return (not self.gated, False)
        spent = max(
            (need.flops or 0.0 for need in self.pretrained.values() if need.fits(self.caps)), default=0.0
        )
        is_trained = self.measure.task in self.tables.fine_tuned
        return (not self.gated, True, is_trained, bool(found.ahead), found.interval.n, spent)

    def name(self, cell: Cell) -> str:
        """Return the label of a cell, with the baseline's name on this task."""
        return cell_label(shown_cell(self.tables, cell, [self.measure.task]))

    def names(self, cells: Sequence[Cell]) -> str:
        """Return the labels of cells, as far as a line has room."""
        shown = ", ".join(f"({self.name(cell)})" for cell in cells[:_MOST_NAMES])
        more = f" and {len(cells) - _MOST_NAMES} more" if len(cells) > _MOST_NAMES else ""
        return f"{shown}{more}" if cells else "none"

    def score(self) -> str:
        """Return the best cell with its score."""
        found = self.decision
        assert found is not None
        return f"{self.name(found.best)}: {self.measure.metric} {with_seeds(found.interval)}"


def _lines(lead: Answer, others: Sequence[Answer], more_tasks: Sequence[str]) -> list[str]:
    """Return the answer: what, by how much and how surely, at which scale, the bars, other studies, next."""
    also = f"; other tasks of this name: {', '.join(more_tasks)}" if more_tasks else ""
    if lead.gated:
        return [
            f"{lead.measure.task}: not informative at this scale{also}",
            f"why: {lead.gated}",
            f"scale: {_scale(lead)}",
            f"studies: {_studies(lead, others)}",
            "to settle it: a larger model or budget, or more labels, until a strategy is above these levels",
        ]
    if lead.decision is None:
        return [
            f"{lead.measure.task}: {_nothing([lead, *others])}{also}",
            f"studies: {_studies(lead, others)}",
        ]
    return [
        f"{lead.measure.task}: {_what(lead)}{also}",
        f"how surely: {_how_surely(lead)}",
        f"scale: {_scale(lead)}",
        f"levels: {_levels(lead)}",
        f"studies: {_studies(lead, others)}",
        f"to settle it: {_next(lead)}",
    ]


def _what(lead: Answer) -> str:
    found = lead.decision
    assert found is not None
    if found.scratch is None:
        return f"{lead.name(found.best)} has the best mean; {_no_baseline(lead)}"
    if not found.ahead:
        return f"no pretraining measured within this budget is shown to beat {lead.baseline}"
    if found.best in found.ahead:
        return f"pretrain {lead.name(found.best)}"
    return f"pretrain one that is shown to beat {lead.baseline}: {lead.names(found.ahead)}"


def _no_baseline(lead: Answer) -> str:
    cannot = (Condition(BASELINE, ""), lead.measure.task) in lead.tables.inapplicable
    return f"{lead.baseline} cannot do the task" if cannot else f"no {lead.baseline} to compare with"


def _how_surely(lead: Answer) -> str:
    """Return the best cell's score, its lead over the baseline, and its rivals."""
    found = lead.decision
    assert found is not None
    parts = [f"{'' if found.best in found.ahead else 'best mean: '}{lead.score()}", _gap(lead, found)]
    if found.n_candidates == 1:
        parts.append("no rival was measured")
    else:
        share = f"best in {certainty(found)} of simulated outcomes"
        parts += [share] if found.certainty is not None else []
        parts.append(f"not distinguishable: {lead.names(found.tied)}")
    parts += [f"without a number: {lead.names(found.missing)}"] if found.missing else []
    return "; ".join(part for part in parts if part)


def _gap(lead: Answer, found: Decision) -> str:
    gap = found.to_scratch
    if gap is None:
        return ""
    word = f"ahead of {lead.baseline} by" if found.best in found.ahead else f"difference to {lead.baseline}"
    kind, p = "paired seeds" if gap.is_paired else "seeds each", p_value(found.p_holm, equals="= ")
    compared = f"{gap.interval.n} {kind}, p {p} (Holm, {found.n_tested} compared)"
    return f"{word} {with_interval(gap.interval, signed=True)}, {compared}"


def _scale(lead: Answer) -> str:
    """Return the models, data and compute that the study measured, and the runs of the best cell."""
    models = {cell.model: lead.tables.runs_of(cell)["parameters"].max() for cell in lead.pretrained}
    parts = [f"model {', '.join(f'{name} ({amount(float(n))} parameters)' for name, n in models.items())}"]
    parts += [_span(lead.pretrained.values(), 0, n_bytes, " of unique text")]
    parts += [_span(lead.pretrained.values(), 1, power, " FLOPs"), _beyond(lead)]
    parts.append(f"study {lead.tables.study}{_runs(lead)}")
    return "; ".join(part for part in parts if part)


def _span(own: Collection[Need], i: int, write: Callable[[float], str], unit: str) -> str:
    known = sorted({value for need in own if (value := need[i])})
    ends = dict.fromkeys(write(value) for value in (*known[:1], *known[-1:]))
    return f"{' to '.join(ends)}{unit}" if ends else ""


def _beyond(lead: Answer) -> str:
    """Return where the measurements end if the budget is larger; empty otherwise."""
    most = [
        max((value for value in values if value is not None), default=None)
        for values in zip(*lead.pretrained.values(), strict=True)
    ]
    writes = (lambda size: f"{n_bytes(size)} of unique text", lambda size: f"{power(size)} FLOPs")
    ends = zip(lead.caps, most, writes, strict=True)
    texts = [write(end) for cap, end, write in ends if cap is not None and end is not None and cap > end]
    return f"nothing was measured beyond {' and '.join(texts)}" if texts else ""


def _runs(lead: Answer) -> str:
    if lead.decision is None or lead.gated:
        return ""
    best = lead.decision.best
    lost = lead.tables.why_lost(lead.measure.task)[lead.tables.rows_of(best)]
    own = zip(lead.tables.runs_of(best)["run_id"], lost, strict=True)
    return f", runs {' '.join(run_id[:6] for run_id, why in own if why is None)}"


def _levels(lead: Answer) -> str:
    """Return chance, the trivial baseline and the baseline without pretraining."""
    found, tables = lead.decision, lead.tables
    assert found is not None
    chance = tables.measures[lead.measure].chance
    ends = dict.fromkeys(number(level) for level in (*chance[:1], *chance[-1:]))
    trivial = [cell for cell in tables.cells_with(lead.measure) if cell.condition.strategy == TRIVIAL]
    parts = [f"chance {' to '.join(ends)}"] if ends else ["no chance level"]
    for name, cells in (("trivial baseline", trivial[:1]), (lead.baseline, [found.scratch])):
        means = [float(tables.seed_values(lead.measure, cell).mean()) for cell in cells if cell is not None]
        parts.append(f"{name} {number(means[0])}" if means else f"no {name}")
    return ", ".join(parts)


def _nothing(answers: Sequence[Answer]) -> str:
    """Return that nothing fits the budget, with the smallest text and the smallest compute measured."""
    known = [
        (need.data_bytes, need.flops, cell)
        for answer in answers
        for cell, need in answer.pretrained.items()
        if need.data_bytes is not None and need.flops is not None
    ]
    by_text, by_compute = sorted(known), sorted(known, key=lambda place: (place[1], place[0], place[2]))
    names = dict.fromkeys(_place(*place) for place in (*by_text[:1], *by_compute[:1]))
    also = f"; the least measured: {' or '.join(names)}" if names else ""
    return f"nothing pretrained was measured within this budget{also}"


def _place(size: float, compute: float, cell: Cell) -> str:
    return f"{n_bytes(size)} of unique text with {power(compute)} FLOPs ({cell_label(cell)})"


def _studies(lead: Answer, others: Sequence[Answer]) -> str:
    """Return which study answers, and what each of the others says."""
    if not others:
        return f"{lead.tables.study} alone"
    return "; ".join(
        [f"{lead.tables.study} answers", *(f"{o.tables.study} {_against(lead, o)}" for o in others)]
    )


def _against(lead: Answer, other: Answer) -> str:
    """Return whether another study agrees with the first, by the strategy with the best mean."""
    if other.gated:
        return "is not informative"
    mine, theirs = lead.decision, other.decision
    if mine is None or theirs is None:
        return "has nothing within this budget"
    wanted, best = mine.best.condition, theirs.best.condition
    mean, is_shown = f"{other.measure.metric} {number(theirs.interval.mean)}", theirs.best in theirs.ahead
    if wanted.strategy == best.strategy:
        if is_shown == (mine.best in mine.ahead):
            return f"agrees ({mean})"
        return f"has the same best mean ({mean}), {'' if is_shown else 'not '}shown to beat {other.baseline}"
    tied = {cell.condition.strategy for cell in theirs.tied}
    measured = {cell.condition.strategy for cell in other.tables.cells_with(other.measure)}
    name = other.name(theirs.best)
    if wanted.strategy not in measured:
        return f"has no {wanted.label}; its best mean is {name} ({mean})"
    if wanted.strategy in tied:
        return f"does not decide: its best mean is {name} ({mean}), not distinguishable"
    return f"disagrees: {name} is better ({mean})"


def _next(lead: Answer) -> str:
    """Return what the nearest open comparison takes, by the spreads that were found."""
    found = lead.decision
    assert found is not None
    rivals = [cell for cell in found.tied if cell.condition != found.best.condition]
    if not rivals:
        return "nothing is open between strategies at this scale; other scales have to be measured"
    own = {cell: sample(lead.tables, lead.measure, [cell]) for cell in (found.best, *rivals)}
    nearest = min(rivals, key=lambda cell: abs(own[found.best].mean - own[cell].mean))
    gap = estimate((own[found.best], own[nearest]), (1.0, -1.0))
    against = f"{lead.name(found.best)} against {lead.name(nearest)}"
    if gap is None:
        return f"{MIN_SEEDS} seeds or more of {against}"
    n = seeds_needed(gap, abs(gap.mean), 1 - LEVEL) if gap.mean else None
    takes = "more items than the task has" if n is None else f"{n} seeds"
    return (
        f"{against} takes {takes}, if the difference seen ({number(gap.mean, signed=True)}) is the true one"
    )
