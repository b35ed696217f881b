"""`bench plan`: what a study can decide and what it costs, before its runs. No torch.

Power comes from `bench.analysis.plan`. Hours come from records of runs of the same shape; where there are
none, from the FLOPs per second of recorded runs on the same device, or from the GPU of conf/scale.yaml.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from omegaconf import MISSING, OmegaConf

from bench.analysis.claims import VARIANCE_RATIO, Claim, Claims, read_claims
from bench.analysis.frames import Tables, load
from bench.analysis.plan import Outlook, detectable_by_size, outlooks, smallest_detectable, weak
from bench.config.compose import SHARED, TUNED, compose_runs, refuse_several_studies
from bench.config.installation import CONF
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.models import flops
from bench.records import (
    CHOICE,
    RunRecord,
    TaskResult,
    finished,
    read_evaluations,
    read_records,
    results_of,
    studies,
)
from bench.speed.estimates import gpu_hours

TRAINING_PASSES = 6  # FLOPs for each parameter and token, forward and backward (Kaplan et al. 2020, sec. 2.1)


@dataclass
class Plan:
    """Settings of the plan, in conf/plan.yaml."""

    pilot: str | None = None
    seeds: list[int] = MISSING
    items: list[float] = MISSING


@dataclass(frozen=True)
class Hours:
    """Hours of the runs one after the other, and what they are taken from."""

    pretraining: float
    tasks: float
    sources: Sequence[str]
    unknown: Sequence[str] = field(default_factory=list)  # tasks and runs without a recorded time


def lines(words: Sequence[str], settings: Plan) -> list[str]:
    """Return the plan of an experiment as lines of text.

    Raises:
        ConfigError: the study has no claims, or the pilot has no records.
    """
    if any(n < 1 for n in settings.seeds) or any(x <= 0 for x in settings.items):
        raise ConfigError("plan.seeds and plan.items: give numbers above 0")
    specs = _runs(words)
    folder = specs[0].records.parent
    asked = read_claims(folder)
    if asked is None:
        raise ConfigError(
            f"{folder}/claims.yaml: there is no such file; write the study's claims (docs/claims.md)"
        )
    found = outlook(asked, specs, settings.pilot)
    kind = "primary claims" if any(own.claim.primary for own in found) else "claims"
    text = [f"{specs[0].study}: {len(specs)} runs, {len(found)} {kind}", *_powers(found)]
    for own in found:
        if own.spread is not None:
            text += ["", *_sizes(own, settings)]
    return [*text, "", *_costs(hours(specs), len(specs))]


def _runs(words: Sequence[str]) -> list[RunSpec]:
    """Return the experiment's runs, at the shared rate where rates are not tuned yet."""
    try:
        specs = compose_runs(words, multirun=True)
    except ConfigError as error:
        if not str(error).startswith(f"{TUNED}="):
            raise
        specs = compose_runs([*words, f"{TUNED}={SHARED}"], multirun=True)
    refuse_several_studies(specs)
    return specs


def outlook(asked: Claims, specs: Sequence[RunSpec], pilot: str | None = None) -> list[Outlook]:
    """Return an outlook on each primary claim of a study that is about to run.

    Args:
        asked: the study's claims.
        specs: its runs.
        pilot: a study with the same tasks; None: the one that the claims name, if any.

    Raises:
        ConfigError: the pilot has no records.
    """
    pilot = pilot or asked.pilot
    tables: Tables | None = load(pilot, specs[0].records.parents[1])[0] if pilot else None
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for spec in specs:
        seeds[spec.strategy, spec.variant].add(spec.seed)
    return outlooks(asked, {name: _n_seeds(claim, seeds) for name, claim in asked.claims.items()}, tables)


def _n_seeds(claim: Claim, seeds: Mapping[tuple[str, str], set[int]]) -> int:
    """Return the seeds of the side of a claim that has fewest."""
    counts = []
    for side in claim.levels or (claim.left, claim.right):
        own = seeds.get((side.recorded, side.variant or ""), set())
        counts.append(len(own if side.seeds is None else own & set(side.seeds)))
    return min(counts)


def warning(asked: Claims, specs: Sequence[RunSpec]) -> str:
    """Return a line that names the claims whose known power is below 80 %; "" if there are none."""
    if asked.pilot is None and all(claim.assumed is None for claim in asked.claims.values()):
        return ""
    try:
        found = weak(outlook(asked, specs))
    except ConfigError:  # the pilot was removed; a warning never stops a study
        return ""
    named = ", ".join(f"{own.name} ({own.power:.0%})" for own in found)
    return f"less than 80 % power at the smallest effect: {named}; see bench plan" if named else ""


def _powers(found: Sequence[Outlook]) -> list[str]:
    rows = [("claim", "test", "D", "error rate", "seeds", "items", "power", "detectable", "seeds for 80 %")]
    notes = []
    for own in found:
        planned, effect = own.planned, f"{own.claim.smallest_effect:g}" if own.claim.smallest_effect else ""
        known = own.spread is not None
        rows.append(
            (
                own.name,
                own.claim.test,
                effect,
                f"{own.alpha:.2%}",
                str(own.n_seeds),
                str((planned.n_items if planned else None) or ""),
                "unknown" if own.power is None else f"{own.power:.0%}",
                f"{smallest_detectable(own.claim, planned, own.alpha):.3g}" if planned else "",
                ("" if not known else str(own.seeds_for_power or "none: more items")),
            )
        )
        if own.spread is not None:
            of = own.spread.estimate
            items = f"; standard error of items {of.item_se:.3g}" if of.item_se else ""
            notes.append(f"{own.name}: spread over seeds {of.seed_sd:.3g}{items} ({own.spread.source})")
        else:
            notes.append(f"{own.name}: {own.why_not}")
    return [*_aligned(rows), *notes]


def _sizes(own: Outlook, settings: Plan) -> list[str]:
    """Return the table of smallest detectable effects of one claim."""
    assert own.spread is not None
    n_items = own.spread.estimate.n_items if own.spread.estimate.item_se else None
    shares = settings.items if n_items else [1.0]
    found = detectable_by_size(own, settings.seeds, shares)
    unit = "ratio" if own.claim.test == VARIANCE_RATIO else "effect"
    heads = [f"{round(n_items * x)} items" for x in shares] if n_items else ["items not counted"]
    rows = [
        ("seeds", *heads),
        *((str(n), *(f"{value:.3g}" for value in values)) for n, values in found.items()),
    ]
    return [f"{own.name}: smallest {unit} found with 80 % power", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def hours(specs: Sequence[RunSpec]) -> Hours:
    """Return the hours of runs, one after the other, by the recorded speed of runs of the same shape."""
    by_shape, by_flops, by_task = _recorded(specs[0].records.parents[1])
    device = specs[0].config["trainer"]["accelerator"]
    pretraining, tasks, sources, unknown = 0.0, 0.0, set(), set()
    for spec in specs:
        if spec.config["strategy"]["modality"] != "none":
            found = _pretraining(spec, by_shape, by_flops[device])
            pretraining += found[0]
            sources.add(found[1])
            unknown.update([f"pretraining of {spec.strategy}"] if found[1] == UNKNOWN else [])
        for task in spec.config["task"]:
            known = by_task.get((task, spec.model, spec.strategy)) or by_task.get((task, spec.model, ""))
            tasks += median(known) if known else 0.0
            unknown.update([] if known else [task])
    return Hours(pretraining / 3600, tasks / 3600, sorted(sources - {UNKNOWN}), sorted(unknown))


RECORDED, SAME_DEVICE, PAPER = "runs of the same shape", "FLOPs per second of other runs", "conf/scale.yaml"
UNKNOWN = "unknown"
CPUS = ("", "x86_64", "AMD64", "aarch64", "arm64", "i686", None)  # what `platform.machine` says
Shape = tuple[str, str, int, int, str]


def _pretraining(
    spec: RunSpec, by_shape: Mapping[Shape, Sequence[float]], by_flops: Sequence[float]
) -> tuple[float, str]:
    """Return the seconds of a run's pretraining, and where they come from."""
    config = spec.typed()
    parameters = flops.text_parameters(config.model, config.tokenizer.vocab_size)
    tokens = config.budget.tokens or (config.budget.flops or 0.0) / (TRAINING_PASSES * parameters)
    shape = (
        spec.strategy.partition("[")[0],
        spec.model.partition("[")[0],
        config.sequence_length,
        config.optim.tokens_per_step,
        config.trainer.accelerator,
    )
    if tokens and shape in by_shape:
        return tokens * median(by_shape[shape]), RECORDED
    total = config.budget.flops or TRAINING_PASSES * parameters * tokens
    if total and by_flops:
        return total / median(by_flops), SAME_DEVICE
    if total and config.trainer.accelerator == "gpu":
        paper = OmegaConf.load(CONF / "scale.yaml")
        return 3600 * gpu_hours(total, float(paper.gpu.peak_flops), float(paper.mfu.expected)), PAPER
    return 0.0, UNKNOWN


def _recorded(
    experiments: Path,
) -> tuple[dict[Shape, list[float]], dict[str, list[float]], dict[tuple[str, str, str], list[float]]]:
    """Return seconds per token by shape, FLOPs per second by device, and seconds of tasks."""
    by_shape: dict[Shape, list[float]] = defaultdict(list)
    by_flops: dict[str, list[float]] = defaultdict(list)
    by_task: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for study in studies(experiments):
        records = {
            record.run_id: record for record in finished(read_records(experiments / study / "records")[0])
        }
        for record in records.values():
            spent, device = record.spent, _device(record)
            if spent.pretrain_s and spent.forward_tokens and not record.data.get("trunk"):
                by_shape[_shape(record, device)].append(spent.pretrain_s / spent.forward_tokens)
                by_flops[device].append(spent.flops / spent.pretrain_s)
        evaluations = read_evaluations(experiments / study / "evaluations")[0]
        for run_id, own in evaluations.items():
            if run_id in records:
                _add_tasks(by_task, records[run_id], results_of(own).values())
    return by_shape, by_flops, by_task


def _add_tasks(
    by_task: dict[tuple[str, str, str], list[float]], run: RunRecord, results: Iterable[TaskResult]
) -> None:
    for result in results:
        seconds = result.cost.seconds
        if seconds:
            by_task[result.task, run.model, run.strategy].append(seconds)
            by_task[result.task, run.model, ""].append(seconds)


def _shape(record: RunRecord, device: str) -> Shape:
    config = record.config
    optim = config.get("optim", {})
    return (
        str(config["strategy"][CHOICE]),
        record.model.partition("[")[0],
        config["sequence_length"],
        optim.get("tokens_per_step", 0),
        device,
    )


def _device(record: RunRecord) -> str:
    return "cpu" if record.environment.get("device") in CPUS else "gpu"


def _costs(found: Hours, n_runs: int) -> list[str]:
    total = found.pretraining + found.tasks
    text = [
        f"cost: {total:.2g} hours for {n_runs} runs one after the other "
        f"({found.pretraining:.2g} pretraining, {found.tasks:.2g} tasks)"
    ]
    text += [f"  pretraining by {', '.join(found.sources)}"] if found.sources else []
    return [
        *text,
        *([f"  not counted, since no run has recorded it: {', '.join(found.unknown)}"] * bool(found.unknown)),
    ]
