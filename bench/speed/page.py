"""Timings -> the tables of `bench speed`, for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.analysis.text import EMPTY, View, amount, markdown_escape, markdown_table, plain, power
from bench.report.rendering import template
from bench.speed.contract import ABLATIONS, COMPILED, LIMIT, OURS
from bench.speed.profile import ATTENTION, OTHER, PRODUCTS, REST
from bench.speed.settings import HEAD_WIDTH, Speed, Targets
from bench.speed.timings import LEVEL, Result, Spread, Verdict, coverage, interval_rank, verdicts

QUIET = 0.05  # of the processors, for all else on the machine
SHARES = (PRODUCTS, ATTENTION, OTHER, REST)
NUMBERS = {"32-true": "float32", "bf16-mixed": "float32 with products in bf16 (autocast)"}
SIGNS = {True: "≥", False: "<"}
COLUMNS = [
    *("model", "strategy", "contender", "what", "parameters", "flops_per_position", "peak_memory_gb"),
    *("rounds", "step_ms"),
    *("positions_per_s", "positions_per_s_q1", "positions_per_s_q3"),
    *("over_best_peer", "over_best_peer_low", "over_best_peer_high", "share_of_limit", "failure"),
]


def comparison(results: Sequence[Result], settings: Speed) -> View:
    """A row per cell: ours against the fastest peer, the limit and its own parts."""
    header = ["size", "strategy", "positions/s", "fastest peer", "ours over it", "share of the limit"]
    header += ["Lightning's share", "data's share", *(["compiled over ours"] if settings.compiled else [])]
    rows: list[list[Any]] = []
    for result in results:
        found = verdicts(result, settings.sizes[result.model].targets)
        peer = f"{result.best_peer}{' (nearest)' if result.is_nearest else ''}" if result.best_peer else EMPTY
        rows.append(
            [
                *(result.model, result.strategy, rate(result.positions_per_s(OURS)), peer),
                judged(*found["over_best_peer"], digits=2, at_least=True),
                judged(*found["share_of_limit"], digits=2, at_least=True),
                judged(*found["lightning_share"], digits=3, at_least=False),
                judged(*found["data_share"], digits=3, at_least=False),
                *([interval(result.gain_of_compiling(), 2)] if settings.compiled else []),
            ]
        )
    aligned = "llrl".ljust(len(header), "r")
    return View("comparison", "Ours against the fastest peer", "", header, aligned, rows)


def line(result: Result, settings: Speed) -> str:
    """A cell's row of the comparison, as it is done."""
    view = comparison([result], settings)
    size, strategy, speed, peer, over, limit, lightning, data, *compiled = map(plain, view.rows[0])
    gain = f"; compiled over ours {compiled[0]}" if compiled else ""
    return (
        f"{strategy} {size}: {speed} positions/s; over {peer} {over}; of the limit {limit}; "
        f"Lightning's share {lightning}; data's {data}{gain}{disturbed(result)}"
    )


def disturbed(result: Result) -> str:
    """A warning where the machine was not ours alone; else empty."""
    share = result.disturbance.share or 0.0
    return f"; noisy: others took {share:.0%} of the processors" if share > QUIET else ""


def contenders(results: Sequence[Result]) -> View:
    """A row per contender, so that a reader sees that all do the same work."""
    header = ["size", "strategy", "contender", "parameters", "FLOPs a position", "peak GB", "ms a step"]
    header += ["positions/s (middle half)", "over the fastest peer", "share of the limit"]
    rows: list[list[Any]] = []
    for result in results:
        for name in (OURS, COMPILED, *result.peers):
            step = result.step(name)
            if step is None or (facts := result.timed[name].facts) is None:
                continue
            over = result.over(name, result.best_peer) if result.best_peer else None
            rows.append(
                [
                    *(result.model, result.strategy, facts.what, amount(facts.parameters)),
                    *(power(facts.flops / facts.positions), f"{facts.peak_memory_bytes / 1e9:.1f}"),
                    f"{1e3 * step.median:.1f}",
                    rate(result.positions_per_s(name)),
                    *(interval(over, 2), interval(result.share_of_limit(name), 2)),
                ]
            )
    return View("contenders", "All contenders", "", header, "lllrrrrrrr", rows)


def profiles(results: Sequence[Result], settings: Speed) -> View:
    """Where a step of ours spends its time, and what the target would take: a row per cell."""
    rows: list[list[Any]] = []
    for result in (result for result in results if result.profile):
        shares = [f"{result.profile[share]:.0%}" for share in SHARES]
        must_go = _must_go(result, settings.sizes[result.model].targets)
        rows.append([result.model, result.strategy, *shares, must_go])
    header = ["size", "strategy", *SHARES, "of the last two, to be saved for the target"]
    return View("profiles", "Where a step spends its time", "", header, "ll" + "r" * (len(SHARES) + 1), rows)


def _must_go(result: Result, targets: Targets) -> str:
    """The share of what is neither product nor attention; above 1 the target is out of its reach."""
    aims = (
        (result.over_best_peer(), targets.over_best_peer),
        (result.share_of_limit(OURS), targets.share_of_limit),
    )
    for reached, target in aims:
        if reached is not None and target is not None:
            saved = max(0.0, 1 - reached.median / target)
            return f"{saved / (result.profile[OTHER] + result.profile[REST]):.0%}"
    return EMPTY


def savings(results: Sequence[Result]) -> View:
    """How many times as long a step takes without each saving: a row per size and saving."""
    strategies = list(dict.fromkeys(result.strategy for result in results))
    cells = {(result.model, result.strategy): result for result in results}
    rows: list[list[Any]] = []
    for model in dict.fromkeys(result.model for result in results):
        found = [cells.get((model, strategy)) for strategy in strategies]
        for name, words in ABLATIONS.items():
            gains = [cell.gain_of(name) if cell else None for cell in found]
            rows.append([model, words, *(interval(gain, 2) for gain in gains)])
    header = ["size", "done the plain way", *strategies]
    return View("savings", "What each saving gives", "", header, "ll" + "r" * len(strategies), rows)


def limits(results: Sequence[Result]) -> View:
    """The largest rate of products beside each cell, and what else the machine did."""
    rows: list[list[Any]] = []
    for result in results:
        step, facts = result.step(LIMIT), result.timed[LIMIT].facts
        if step and facts:
            rates = [facts.flops / seconds / 1e9 for seconds in (step.median, step.high, step.low)]
            rows.append([result.model, result.strategy, "{:,.0f} [{:,.0f}, {:,.0f}]".format(*rates)])
            share = result.disturbance.share
            rows[-1].append(EMPTY if share is None else f"{share:.0%}")
    return View(
        "limits", "The limit", "", ["size", "strategy", "GFLOP/s", "processors taken by others"], "llrr", rows
    )


def rate(spread: Spread | None) -> str:
    """`16,700 (16,500–16,900)`: the median and the middle half of the rounds."""
    if spread is None:
        return EMPTY
    return f"{spread.median:,.0f} ({spread.quarter:,.0f}–{spread.three_quarters:,.0f})"


def interval(spread: Spread | None, digits: int) -> str:
    """`1.42 [1.40, 1.45]`."""
    if spread is None:
        return EMPTY
    parts = [f"{x:.{digits}f}".replace("-", "−") for x in (spread.median, spread.low, spread.high)]
    return "{} [{}, {}]".format(*parts)


def judged(
    spread: Spread | None, target: float | None, verdict: Verdict, *, digits: int, at_least: bool
) -> str:
    """`1.42 [1.40, 1.45], met (≥ 1.3)`."""
    text = interval(spread, digits)
    return f"{text}, {verdict} ({SIGNS[at_least]} {target:g})" if verdict else text


def failures(results: Sequence[Result]) -> list[str]:
    """A line for each contender that could not be timed."""
    return [
        f"{result.model} {result.strategy}: {name} failed: {timed.failure}"
        for result in results
        for name, timed in result.timed.items()
        if timed.failure
    ]


def markdown(
    results: Sequence[Result], settings: Speed, machine: dict[str, str], command: str, n_cells: int
) -> str:
    """The page, with links to the files beside it."""
    n_rounds = min((len(result.seconds(OURS)) for result in results), default=0)
    views = [comparison(results, settings), contenders(results), limits(results), profiles(results, settings)]
    views += [savings(results)] if settings.ablations else []
    return template("speed.md.j2", is_html=False, plain=markdown_escape, table=markdown_table).render(
        s=settings,
        numbers=NUMBERS[settings.trainer.precision],
        machine=machine,
        command=command,
        views=views,
        failures=failures(results),
        noisy=[result for result in results if disturbed(result)],
        head_width=HEAD_WIDTH,
        n_cells=n_cells,
        n_done=len(results),
        n_rounds=n_rounds,
        level=LEVEL,
        covered=coverage(n_rounds, interval_rank(n_rounds)) if n_rounds > 1 else None,
        has_nearest=any(result.is_nearest for result in results),
    )


def table_csv(results: Sequence[Result]) -> str:
    """One row per contender of each cell, the timed parts of ours and the limit among them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for name in result.timed:
            writer.writerow(_csv_row(result, name))
    return file.getvalue()


def _csv_row(result: Result, name: str) -> dict[str, Any]:
    """Numbers where there are any; absent is absent."""
    timed = result.timed[name]
    row: dict[str, Any] = {"model": result.model, "strategy": result.strategy, "contender": name}
    row |= {"rounds": len(result.seconds(name)), "failure": timed.failure or ""}
    if timed.facts is not None:
        row |= {"what": timed.facts.what, "parameters": timed.facts.parameters}
        if timed.facts.positions:
            row["flops_per_position"] = f"{timed.facts.flops / timed.facts.positions:.6g}"
            row["peak_memory_gb"] = f"{timed.facts.peak_memory_bytes / 1e9:.4g}"
    if step := result.step(name):
        row["step_ms"] = f"{1e3 * step.median:.4g}"
    if name not in (OURS, COMPILED, *result.peers):
        return row
    if found := result.positions_per_s(name):
        keys = ("positions_per_s", "positions_per_s_q1", "positions_per_s_q3")
        values = (found.median, found.quarter, found.three_quarters)
        row |= {key: f"{value:.6g}" for key, value in zip(keys, values, strict=True)}
    if result.best_peer and (over := result.over(name, result.best_peer)):
        keys = ("over_best_peer", "over_best_peer_low", "over_best_peer_high")
        row |= {k: f"{v:.4g}" for k, v in zip(keys, (over.median, over.low, over.high), strict=True)}
    if share := result.share_of_limit(name):
        row["share_of_limit"] = f"{share.median:.4g}"
    return row


def record_json(
    results: Sequence[Result], settings: Speed, machine: dict[str, str], command: str, started_at: str
) -> str:
    """All that was measured, and where and how."""
    cells = [
        {
            "model": result.model,
            "strategy": result.strategy,
            "others_share": result.disturbance.share,
            "profile": result.profile,
            "contenders": {name: asdict(timed) for name, timed in result.timed.items()},
        }
        for result in results
    ]
    shown = asdict(settings) | {
        "nanogpt": settings.nanogpt and "PATH",
        "out": "PATH",
    }  # no place of this machine
    record = {"command": command, "started_at": started_at, "machine": machine, "settings": shown}
    return json.dumps(record | {"cells": cells}, indent=1) + "\n"


def targets_of(settings: Speed) -> dict[str, Targets]:
    """The targets of each size."""
    return {name: size.targets for name, size in settings.sizes.items()}
