"""Timings -> the page of `bench speed`: tables as Markdown, CSV and JSON, its figure, and terminal lines."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.text import EMPTY, View, amount, markdown_escape, markdown_table, plain, power
from bench.report.figures.base import COLOURS, GREY, MARKERS, panels
from bench.report.rendering import template
from bench.speed.profile import ATTENTION, OTHER, PRODUCTS, REST
from bench.speed.settings import ABLATIONS, COMPILED, HEAD_WIDTH, LIMIT, OURS, Speed, Targets
from bench.speed.timings import LEVEL, Result, Spread, Verdict, coverage, interval_rank, verdicts

QUIET = 0.05  # the share of the processors that other processes may use before a cell counts as noisy
SHARES = (PRODUCTS, ATTENTION, OTHER, REST)
NUMBERS = {"32-true": "float32", "bf16-mixed": "float32 with products in bf16 (autocast)"}
SIGNS = {True: "≥", False: "<"}
ROW_IN = 0.22  # height of a strategy in the figure
APART = 0.11  # distance of a strategy's contenders, in rows
Measure = Callable[[Result, str], Spread | None]
COLUMNS = [
    *("model", "strategy", "contender", "what", "parameters", "flops_per_token", "peak_memory_gb"),
    *("rounds", "step_ms"),
    *("tokens_per_s", "tokens_per_s_q1", "tokens_per_s_q3"),
    *("over_best_peer", "over_best_peer_low", "over_best_peer_high", "share_of_limit", "failure"),
]


def comparison(results: Sequence[Result], settings: Speed) -> View:
    """Return the main table, one row per cell: our speed against the fastest peer and the limit."""
    header = ["size", "strategy", "tokens/s", "fastest peer", "ours over it", "share of the limit"]
    header += ["Lightning's share", "data's share", *(["compiled over ours"] if settings.compiled else [])]
    rows: list[list[Any]] = []
    for result in results:
        found = verdicts(result, settings.sizes[result.model].targets)
        peer = f"{result.best_peer}{' (nearest)' if result.is_nearest else ''}" if result.best_peer else EMPTY
        rows.append(
            [
                *(result.model, result.strategy, rate(result.tokens_per_s(OURS)), peer),
                judged(*found["over_best_peer"], digits=2, at_least=True),
                judged(*found["share_of_limit"], digits=2, at_least=True),
                judged(*found["lightning_share"], digits=3, at_least=False),
                judged(*found["data_share"], digits=3, at_least=False),
                *([interval(result.over(COMPILED, OURS), 2)] if settings.compiled else []),
            ]
        )
    aligned = "llrl".ljust(len(header), "r")
    return View("comparison", "Our speed against the fastest peer", "", header, aligned, rows)


def line(result: Result, settings: Speed) -> str:
    """Return the cell's row of the comparison as a line for the terminal."""
    view = comparison([result], settings)
    size, strategy, speed, peer, over, limit, lightning, data, *compiled = map(plain, view.rows[0])
    gain = f"; compiled over ours {compiled[0]}" if compiled else ""
    return (
        f"{strategy} {size}: {speed} tokens/s; over {peer} {over}; of the limit {limit}; "
        f"Lightning's share {lightning}; data's share {data}{gain}{noise(result)}"
    )


def noise(result: Result) -> str:
    """Return a warning if other processes were busy, else an empty string."""
    share = result.others_share or 0.0
    return f"; noisy: other processes used {share:.0%} of the processors" if share > QUIET else ""


def contenders(results: Sequence[Result]) -> View:
    """Return a table with one row per contender, which shows that all do the same work."""
    header = ["size", "strategy", "contender", "parameters", "FLOPs per token", "peak GB", "ms per step"]
    header += ["tokens/s (middle half)", "over the fastest peer", "share of the limit"]
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
                    *(power(facts.flops / facts.tokens), f"{facts.peak_memory_bytes / 1e9:.1f}"),
                    f"{1e3 * step.median:.1f}",
                    rate(result.tokens_per_s(name)),
                    *(interval(over, 2), interval(result.share_of_limit(name), 2)),
                ]
            )
    return View("contenders", "All contenders", "", header, "lllrrrrrrr", rows)


def profiles(results: Sequence[Result], settings: Speed) -> View:
    """Return a table of where our step spends its time, and what the target requires: a row per cell."""
    rows: list[list[Any]] = []
    for result in (result for result in results if result.profile):
        shares = [f"{result.profile[share]:.0%}" for share in SHARES]
        required = _required_saving(result, settings.sizes[result.model].targets)
        rows.append([result.model, result.strategy, *shares, required])
    header = ["size", "strategy", *SHARES, "share of the last two to save for the target"]
    return View("profiles", "Where a step spends its time", "", header, "ll" + "r" * (len(SHARES) + 1), rows)


def _required_saving(result: Result, targets: Targets) -> str:
    """Return the share of the rest of a step to save for the target; above 100 % it is out of reach."""
    aims = (
        (result.over_best_peer(), targets.over_best_peer),
        (result.share_of_limit(OURS), targets.share_of_limit),
    )
    for reached, target in aims:
        if reached is not None and target is not None:
            saved = max(0.0, 1 - reached.median / target)
            return f"{saved / (result.profile[OTHER] + result.profile[REST]):.0%}"
    return EMPTY


def optimisations(results: Sequence[Result]) -> View:
    """Return a table of how many times as long a step takes without each optimisation."""
    strategies = list(dict.fromkeys(result.strategy for result in results))
    cells = {(result.model, result.strategy): result for result in results}
    rows: list[list[Any]] = []
    for model in dict.fromkeys(result.model for result in results):
        found = [cells.get((model, strategy)) for strategy in strategies]
        for name, description in ABLATIONS.items():
            gains = [cell.over(OURS, name) if cell else None for cell in found]
            rows.append([model, description, *(interval(gain, 2) for gain in gains)])
    header = ["size", "replaced by", *strategies]
    return View(
        "optimisations", "What each optimisation saves", "", header, "ll" + "r" * len(strategies), rows
    )


def limits(results: Sequence[Result]) -> View:
    """Return a table of the largest rate of products and the load of other processes for each cell."""
    rows: list[list[Any]] = []
    for result in results:
        step, facts = result.step(LIMIT), result.timed[LIMIT].facts
        if step and facts:
            rates = [facts.flops / seconds / 1e9 for seconds in (step.median, step.high, step.low)]
            rows.append([result.model, result.strategy, "{:,.0f} [{:,.0f}, {:,.0f}]".format(*rates)])
            share = result.others_share
            rows[-1].append(EMPTY if share is None else f"{share:.0%}")
    return View(
        "limits", "The limit", "", ["size", "strategy", "GFLOP/s", "processors used by others"], "llrr", rows
    )


def rate(spread: Spread | None) -> str:
    """Format the median and the middle half of the rounds: `16,700 (16,500–16,900)`."""
    if spread is None:
        return EMPTY
    return f"{spread.median:,.0f} ({spread.quarter:,.0f}–{spread.three_quarters:,.0f})"


def interval(spread: Spread | None, digits: int) -> str:
    """Format a median and its interval: `1.42 [1.40, 1.45]`."""
    if spread is None:
        return EMPTY
    parts = [f"{x:.{digits}f}".replace("-", "−") for x in (spread.median, spread.low, spread.high)]
    return "{} [{}, {}]".format(*parts)


def judged(
    spread: Spread | None, target: float | None, verdict: Verdict, *, digits: int, at_least: bool
) -> str:
    """Format an interval with its verdict: `1.42 [1.40, 1.45], met (≥ 1.3)`."""
    text = interval(spread, digits)
    return f"{text}, {verdict} ({SIGNS[at_least]} {target:g})" if verdict else text


def failures(results: Sequence[Result]) -> list[str]:
    """Return a line for each contender that failed."""
    return [
        f"{result.model} {result.strategy}: {name} failed: {timed.failure}"
        for result in results
        for name, timed in result.timed.items()
        if timed.failure
    ]


def markdown(
    results: Sequence[Result], settings: Speed, machine: dict[str, str], command: str, n_cells: int
) -> str:
    """Return the page, with links to the files beside it."""
    n_rounds = min((len(result.seconds(OURS)) for result in results), default=0)
    views = [comparison(results, settings), contenders(results), limits(results), profiles(results, settings)]
    views += [optimisations(results)] if settings.ablations else []
    return template("speed.md.j2", is_html=False, plain=markdown_escape, table=markdown_table).render(
        s=settings,
        numbers=NUMBERS[settings.trainer.precision],
        machine=machine,
        command=command,
        views=views,
        failures=failures(results),
        noisy=[result for result in results if noise(result)],
        head_width=HEAD_WIDTH,
        n_cells=n_cells,
        n_done=len(results),
        n_rounds=n_rounds,
        level=LEVEL,
        covered=coverage(n_rounds, interval_rank(n_rounds)) if n_rounds > 1 else None,
        has_nearest=any(result.is_nearest for result in results),
    )


def table_csv(results: Sequence[Result]) -> str:
    """Return a CSV table with one row per contender of each cell, including our parts and the limit."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for name in result.timed:
            writer.writerow(_csv_row(result, name))
    return file.getvalue()


def _csv_row(result: Result, name: str) -> dict[str, Any]:
    """Return a row without the values that were not measured."""
    timed = result.timed[name]
    row: dict[str, Any] = {"model": result.model, "strategy": result.strategy, "contender": name}
    row |= {"rounds": len(result.seconds(name)), "failure": timed.failure or ""}
    if timed.facts is not None:
        row |= {"what": timed.facts.what, "parameters": timed.facts.parameters}
        if timed.facts.tokens:
            row["flops_per_token"] = f"{timed.facts.flops / timed.facts.tokens:.6g}"
            row["peak_memory_gb"] = f"{timed.facts.peak_memory_bytes / 1e9:.4g}"
    if step := result.step(name):
        row["step_ms"] = f"{1e3 * step.median:.4g}"
    if name not in (OURS, COMPILED, *result.peers):
        return row
    if found := result.tokens_per_s(name):
        keys = ("tokens_per_s", "tokens_per_s_q1", "tokens_per_s_q3")
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
    """Return all measurements with the settings and the machine as JSON."""
    cells = [
        {
            "model": result.model,
            "strategy": result.strategy,
            "others_share": result.others_share,
            "profile": result.profile,
            "contenders": {name: asdict(timed) for name, timed in result.timed.items()},
        }
        for result in results
    ]
    # Paths of this machine are left out.
    shown = asdict(settings) | {"nanogpt": settings.nanogpt and "PATH", "out": "PATH"}
    record = {"command": command, "started_at": started_at, "machine": machine, "settings": shown}
    return json.dumps(record | {"cells": cells}, indent=1) + "\n"


# The figure


def draw(results: Sequence[Result], targets: dict[str, Targets]) -> Figure:
    """Draw medians over rounds with their intervals, and our targets as dotted lines.

    Args:
        results: of at least one cell.
        targets: of each size.
    """
    models = list(dict.fromkeys(result.model for result in results))
    strategies = list(dict.fromkeys(result.strategy for result in results))
    names = [OURS, *dict.fromkeys(name for result in results for name in result.peers)]
    canvas, grid = panels(2, len(models), 0.9 + ROW_IN * len(strategies), sharey=True)
    rows: list[tuple[str, str, Measure]] = [
        ("speed, fastest peer = 1", "over_best_peer", _over_best),
        ("share of the limit", "share_of_limit", lambda result, name: result.share_of_limit(name)),
    ]
    for axes_row, (label, target, measure) in zip(grid, rows, strict=True):
        for axes, model in zip(axes_row, models, strict=True):
            own = [result for result in results if result.model == model]
            _panel(axes, own, strategies, names, measure)
            goal = getattr(targets[model], target)
            for level, dash in ((1.0, "-"), (goal, ":")):
                if level is not None:
                    axes.axvline(level, color=GREY, linestyle=dash, linewidth=0.9)
            axes.set_title(model)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
    has_target = any(getattr(targets[model], key) is not None for model in models for _, key, _ in rows)
    canvas.legend(
        handles=_handles(names, has_target=has_target),
        loc="outside upper center",
        ncols=min(len(names) + 1, 7),
    )
    return canvas


def _over_best(result: Result, name: str) -> Spread | None:
    return None if result.best_peer is None else result.over(name, result.best_peer)


def _panel(
    axes: Axes, results: Sequence[Result], strategies: list[str], names: list[str], measure: Measure
) -> None:
    """Draw one row per strategy and one mark per contender."""
    for name, colour, marker in zip(names, cycle(COLOURS), cycle(MARKERS)):
        for result in results:
            spread = measure(result, name) if name == OURS or name in result.peers else None
            if spread is None:
                continue
            contenders = [OURS, *result.peers]
            shift = APART * (contenders.index(name) - (len(contenders) - 1) / 2)
            y = strategies.index(result.strategy) + shift
            axes.plot([spread.low, spread.high], [y, y], color=colour, linewidth=0.9)
            axes.plot(spread.median, y, marker=marker, color=colour, linestyle="none")
    axes.set_yticks(range(len(strategies)), strategies)
    axes.set_ylim(len(strategies) - 0.4, -0.6)


def _handles(names: list[str], *, has_target: bool) -> list[Line2D]:
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=name)
        for name, colour, marker in zip(names, cycle(COLOURS), cycle(MARKERS))
    ]
    target = Line2D([], [], color=GREY, linestyle=":", linewidth=0.9, label="target")
    return [*marks, target] if has_target else marks
