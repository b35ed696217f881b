"""`bench advise`: a task, data and compute -> which strategy and model, in a line with its evidence.

Reads the records of studies, without torch. Every study that has the task answers for itself: under another
corpus, tokenizer or setting it is another comparison, so scores of two studies are never put together.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from bench.analysis.decision import Caps, Decision, Need, certainty, decide, needs, pretrained
from bench.analysis.format import cell_label, n_bytes, p_value, power, with_interval, with_seeds
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, Tables, load
from bench.analysis.gate import why_not
from bench.errors import BenchError, ConfigError
from bench.records import studies

_BYTES = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_MOST_NAMES = 5  # cells that a line lists
_NONE = "no pretraining measured within this budget is shown to beat scratch"


class Advice(NamedTuple):
    """The answer: a line per study and matching task, and a warning for all that could not be read."""

    lines: list[str]
    warnings: list[str]


def advise(task: str, data: str, compute: str, study: str, experiments_dir: Path) -> Advice:
    """Return what the records of one study, or of every study, advise for a task.

    Args:
        task: a task's name or a part of it, see `matching`.
        data: the most unique text, such as 2MB; "" means no limit.
        compute: the most pretraining FLOPs, such as 1e13; "" means no limit.
        study: a study's name; "" means all studies that have such a task.
        experiments_dir: where the studies' records lie.

    Raises:
        ConfigError: an amount is not a number, the study or task is unknown, or no study has records.
    """
    caps = Caps(read_bytes(data), read_flops(compute))
    found, warnings = _load(study, experiments_dir)
    known = sorted({measure.task for tables in found for measure in tables.headlines})
    tasks = matching(task, known)
    lines = [
        line(tables, measure, caps)
        for tables in found
        for measure in tables.headlines
        if measure.task in tasks
    ]
    return Advice(lines, warnings)


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
    names = [study] if study else [n for n in studies(experiments_dir) if _has_records(experiments_dir / n)]
    if not names:
        raise ConfigError(
            f"experiments_dir={experiments_dir}: no study with records; run one by `bench train`"
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
            warnings.append(f"left out: study {name} is an exploratory search, which gives no advice")
            continue
        found.append(tables)
        warnings += [f"left out of study {name}: {error}" for error in damaged]
    return found, warnings


def _has_records(folder: Path) -> bool:
    return any((folder / "records").glob("*.json"))


def line(tables: Tables, measure: Measure, caps: Caps) -> str:
    """Return the advice of one study on one task."""
    if reason := why_not(tables, measure.task):
        return f"{measure.task}: not informative at this scale; {reason}; evidence: study {tables.study}"
    takes = needs(tables)
    decision = decide(tables, measure, caps, takes)
    own = pretrained(tables, measure, takes)
    if any(need.fits(caps) for need in own.values()) and decision is not None:
        parts = [*_answer(tables, decision), _beyond(own.values(), caps)]
    else:
        parts = [_nothing(own), *([_score(decision)] if decision is not None else [])]
    parts.append(_evidence(tables, decision))
    return f"{measure.task}: {'; '.join(part for part in parts if part)}"


def _nothing(own: Mapping[Cell, Need]) -> str:
    """Return that nothing fits the budget, with the smallest text and the smallest compute measured."""
    known = [
        (need.data_bytes, need.flops, cell)
        for cell, need in own.items()
        if need.data_bytes is not None and need.flops is not None
    ]
    by_text, by_compute = sorted(known), sorted(known, key=lambda place: (place[1], place[0], place[2]))
    names = dict.fromkeys(_place(*place) for place in (*by_text[:1], *by_compute[:1]))
    also = f"; the least measured: {' or '.join(names)}" if names else ""
    return f"nothing pretrained was measured within this budget{also}"


def _place(size: float, compute: float, cell: Cell) -> str:
    return f"{n_bytes(size)} of unique text with {power(compute)} FLOPs ({cell_label(cell)})"


def _beyond(own: Collection[Need], caps: Caps) -> str:
    """Return where the measurements end if the budget is larger; empty otherwise."""
    most = [
        max((value for value in values if value is not None), default=None)
        for values in zip(*own, strict=True)
    ]
    writes = (lambda size: f"{n_bytes(size)} of unique text", lambda size: f"{power(size)} FLOPs")
    ends = zip(caps, most, writes, strict=True)
    texts = [write(end) for cap, end, write in ends if cap is not None and end is not None and cap > end]
    return f"nothing was measured beyond {' and '.join(texts)}" if texts else ""


def _answer(tables: Tables, decision: Decision) -> list[str]:
    """Return the best cell, its difference to scratch, the certainty and the cells not distinguishable."""
    is_shown = decision.best in decision.ahead
    parts = [_score(decision), _against_scratch(tables, decision)]
    if decision.scratch is not None and not decision.ahead:
        parts.insert(0, _NONE)
        parts[1] = f"best mean: {parts[1]}"
    if decision.ahead and not is_shown:
        parts.append(f"shown to beat scratch: {_names(decision.ahead)}")
    parts += _rivals(decision)
    return [*parts, f"without a number: {_names(decision.missing)}" if decision.missing else ""]


def _rivals(decision: Decision) -> list[str]:
    if decision.n_candidates == 1:
        return ["no rival was measured"]
    share, n = certainty(decision), decision.interval.n
    sure = [f"best in {share} of simulated outcomes ({n} seeds)"] if decision.certainty is not None else []
    return [*sure, f"not distinguishable: {_names(decision.tied)}"]


def _score(decision: Decision) -> str:
    return f"{cell_label(decision.best)}: {decision.measure.metric} {with_seeds(decision.interval)}"


def _against_scratch(tables: Tables, decision: Decision) -> str:
    gap = decision.to_scratch
    if decision.scratch is None:
        cannot = (Condition(BASELINE, ""), decision.measure.task) in tables.inapplicable
        return "scratch cannot do the task" if cannot else "no scratch to compare with"
    if decision.scratch == decision.best:
        return ""
    if gap is None:
        return "no scratch to compare with"
    n = gap.interval.n
    word = "ahead of scratch by" if decision.best in decision.ahead else "difference to scratch"
    p = p_value(decision.p_holm, equals="= ")
    kind = "paired seeds" if gap.is_paired else "seeds each"
    compared = f"{n} {kind}, p {p} (Holm, {decision.n_tested} compared)"
    return f"{word} {with_interval(gap.interval, signed=True)}, {compared}"


def _names(cells: Sequence[Cell]) -> str:
    shown = ", ".join(f"({cell_label(cell)})" for cell in cells[:_MOST_NAMES])
    more = f" and {len(cells) - _MOST_NAMES} more" if len(cells) > _MOST_NAMES else ""
    return f"{shown}{more}" if cells else "none"


def _evidence(tables: Tables, decision: Decision | None) -> str:
    study = f"evidence: study {tables.study}"
    if decision is None:
        return study
    lost = tables.why_lost(decision.measure.task)[tables.rows_of(decision.best)]
    own = zip(tables.runs_of(decision.best)["run_id"], lost, strict=True)
    runs = " ".join(run_id[:6] for run_id, why in own if why is None)
    return f"{study}, runs {runs}"
