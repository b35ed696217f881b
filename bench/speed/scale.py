"""`bench scale`: settings -> planned runs, built on torch's meta device -> a Markdown page.

Every run is composed as `bench train` composes it and its strategy is built without weights, so parameters,
tokens and FLOPs are those that its record would contain.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

from bench.analysis.text import amount, power
from bench.config.checks import validate
from bench.config.compose import compose_runs
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.models.flops import text_parameters
from bench.report.rendering import template
from bench.speed import estimates
from bench.speed.estimates import Planned, Scale
from bench.speed.settings import compose_settings

GIGA = 1e9
DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True)
class Cost:
    """The cost of FLOPs on a number of GPUs."""

    gpu_hours: float
    hours: float
    kwh: float
    co2_kg: float


def settings_of(overrides: Sequence[str]) -> Scale:
    """Compose `conf/scale.yaml` with overrides; raise ConfigError for an invalid value."""
    settings = compose_settings("scale", Scale, overrides)
    estimates.validate(settings)
    return settings


def plan(settings: Scale) -> list[Planned]:
    """Plan each strategy at each size, in the order of sizes.

    Raises:
        ConfigError: an unknown strategy or model, a strategy without pretraining, or inconsistent sizes.
    """
    shared = [  # without tasks, which cost no pretraining and take long to compose
        *("task=[]", "optim=wsd_trunk", f"optim.tokens_per_step={settings.tokens_per_step}"),
        *(f"tokenizer.vocab_size={settings.vocab_size}", f"sequence_length={settings.sequence_length}"),
        *(f"caption_length={settings.caption_length}", "trainer=gpu", "trainer.precision=bf16-mixed"),
    ]
    found = []
    for model in settings.models:
        for strategy in settings.strategies:
            line = [f"strategy={strategy}", f"model={model}", *shared]
            (spec,) = compose_runs(line, multirun=False)
            found.append(planned(spec, vocab_size=settings.vocab_size, image_size=settings.image_size))
    return found


def planned(spec: RunSpec, *, vocab_size: int, image_size: int) -> Planned:
    """Return a run's parameters and the cost of its steps, computed without weights or data."""
    import torch  # late, since `settings_of` needs no torch

    from bench.models.heads import PredictionHead
    from bench.objectives.combined import Combined
    from bench.training.pretrain import build_objective

    config = spec.typed()
    validate(config)
    if config.strategy["modality"] == "none":
        raise ConfigError(f"strategies: {spec.strategy} has no pretraining to plan; remove it")
    with torch.device("meta"):
        objective = build_objective(spec, vocab_size=vocab_size, image_size=image_size)
    cost = objective.step_cost(config.optim.tokens_per_step)
    parts = [objective.part(name) for name in objective.names] if isinstance(objective, Combined) else []
    peaks = [part.step_cost(config.optim.tokens_per_step).predicted_tokens for part in parts]
    heads = [head for head in objective.modules() if isinstance(head, PredictionHead)]
    return Planned(
        strategy=spec.strategy,
        model_name=spec.model,
        model=config.model,
        parameters=sum(p.numel() for p in objective.parameters()),
        vocab_size=max((head.decoder.out_features for head in heads), default=0),
        cost=cost,
        peak_targets=max([cost.predicted_tokens, *peaks]),
        cooldown_share=config.optim.cooldown_share,
        has_phases=objective.trunk_share is not None,
    )


def budget_tokens(run: Planned, per_parameter: float, settings: Scale) -> float:
    """Return the budget of a run in tokens, the same for all strategies of a size."""
    return per_parameter * text_parameters(run.model, settings.vocab_size)


def layout(run: Planned, n_gpus: int, settings: Scale) -> estimates.Layout | None:
    """Return the layout in which the run fits the settings' GPUs, if any."""
    return estimates.fitting(run, n_gpus, settings.memory_share * settings.gpu.memory_gb * GIGA)


def cost_of(run: Planned, flops: float, n_gpus: int, mfu: float, settings: Scale) -> Cost | None:
    """Return the cost of these FLOPs of a run on `n_gpus`; None if the run does not fit."""
    chosen = layout(run, n_gpus, settings)
    if chosen is None:
        return None
    utilisation = mfu * estimates.efficiency(n_gpus, settings.loss_per_doubling)
    hours = estimates.gpu_hours(flops, settings.gpu.peak_flops, utilisation, recompute=chosen.recompute)
    energy = estimates.kwh(hours, settings.gpu.watts, settings.pue)
    return Cost(hours, hours / n_gpus, energy, energy * settings.co2_kg_per_kwh)


def budget_flops(run: Planned, settings: Scale) -> list[float]:
    """Return the FLOPs of one run at each budget."""
    return [run.flops(budget_tokens(run, k, settings)) for k in settings.tokens_per_parameter]


def family_flops(run: Planned, settings: Scale, *, branched: bool) -> float:
    """Return the FLOPs of all budgets of one seed; `branched`: as branches of one trunk, where possible."""
    each = budget_flops(run, settings)
    if branched and not run.has_phases:
        return estimates.branched(each, run.cooldown_share)
    return estimates.separately(each)


def study(
    runs: Sequence[Planned], n_gpus: int, mfu: float, settings: Scale, *, branched: bool
) -> Cost | None:
    """Return the cost of the whole study, run after run; None if a run does not fit."""
    parts = [
        cost_of(r, settings.seeds * family_flops(r, settings, branched=branched), n_gpus, mfu, settings)
        for r in runs
    ]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Cost(*(sum(getattr(part, f.name) for part in known) for f in fields(Cost)))


# Rows of the page's tables, as text


def size_rows(runs: Sequence[Planned], settings: Scale) -> list[list[str]]:
    """Return the parameters and costs of each run, and its FLOPs relative to 6 N D."""
    rows = []
    for run in runs:
        per_token = run.cost.flops / run.cost.forward_tokens
        rule = 6 * text_parameters(run.model, settings.vocab_size)
        targets = run.cost.predicted_tokens / run.cost.forward_tokens
        rows.append(
            [
                *(run.model_name, run.strategy, power(run.parameters), amount(run.cost.rows)),
                *(f"{targets:.0%}", power(per_token), f"{per_token / rule:.2f}"),
            ]
        )
    return rows


def memory_rows(runs: Sequence[Planned], settings: Scale) -> list[list[str]]:
    """Return the GB on each GPU under DDP, and the first layout that fits."""
    rows = []
    for run in runs:
        row = [run.model_name, run.strategy]
        for n in settings.gpus:
            needs = estimates.memory(run, n, estimates.LAYOUTS[0])
            chosen = layout(run, n, settings)
            parts = " + ".join(f"{x / GIGA:.0f}" for x in (needs.states, needs.activations, needs.logits))
            row.append(f"{parts} = {needs.total / GIGA:.0f}: {chosen.name if chosen else DOES_NOT_FIT}")
        rows.append(row)
    return rows


def run_rows(runs: Sequence[Planned], settings: Scale) -> list[list[str]]:
    """Return the cost of one run of each strategy, size and budget, at the expected utilisation."""
    rows = []
    for run in runs:
        for k, flops in zip(settings.tokens_per_parameter, budget_flops(run, settings), strict=True):
            tokens = budget_tokens(run, k, settings)
            found = [cost_of(run, flops, n, settings.mfu.expected, settings) for n in settings.gpus]
            known = [part for part in found if part is not None]
            rows.append(
                [
                    *(run.model_name, run.strategy, f"{k:g}"),
                    *(amount(run.steps(tokens)), power(tokens), power(flops)),
                    *(amount(part and part.hours) for part in found),
                    *(
                        spread([getattr(part, key) for part in known])
                        for key in ("gpu_hours", "kwh", "co2_kg")
                    ),
                ]
            )
    return rows


def study_rows(runs: Sequence[Planned], settings: Scale, *, branched: bool) -> list[list[str]]:
    """Return the cost of the study on each number of GPUs, expected and at highest and lowest utilisation."""
    rows = []
    mfu = settings.mfu
    for n in settings.gpus:
        found = [study(runs, n, m, settings, branched=branched) for m in (mfu.expected, mfu.high, mfu.low)]
        known = [part for part in found if part is not None]
        cells = [[getattr(part, f.name) for part in known] for f in fields(Cost)]
        units = (1, 24, 1000, 1000)  # GPU-hours, days, MWh, t
        rows.append(
            [amount(n), *(ranged([x / unit for x in c]) for c, unit in zip(cells, units, strict=True))]
        )
    return rows


def saving_rows(runs: Sequence[Planned], settings: Scale) -> list[list[str]]:
    """Return the FLOPs of the study by size, with separate runs and with budgets as branches of a trunk."""
    rows = []
    for name in [*settings.models, "all"]:
        own = [run for run in runs if name in (run.model_name, "all")]
        n_runs = len(own) * settings.seeds * len(settings.tokens_per_parameter)
        alone, shared = (
            settings.seeds * sum(family_flops(run, settings, branched=b) for run in own)
            for b in (False, True)
        )
        rows.append([name, amount(n_runs), power(alone), power(shared), f"{1 - shared / alone:.0%}"])
    return rows


def spread(values: Sequence[float]) -> str:
    """Format the range of values, or one value if both ends read the same."""
    ends = [amount(end) for end in (min(values), max(values))] if values else [amount(None)]
    return "–".join(dict.fromkeys(ends))


def ranged(values: Sequence[float]) -> str:
    """Format the first value with the range of the others in brackets."""
    return f"{amount(values[0])} ({spread(values[1:])})" if values else DOES_NOT_FIT


def page(overrides: Sequence[str]) -> str:
    """Return the planning document; raise ConfigError for invalid settings."""
    settings = settings_of(overrides)
    runs = plan(settings)
    return template("scale.md.j2", is_html=False, amount=amount, power=power).render(
        command=shlex.join(["bench", "scale", *overrides]),
        s=settings,
        scale=estimates,
        runs=runs,
        n_runs=len(runs) * settings.seeds * len(settings.tokens_per_parameter),
        sizes=size_rows(runs, settings),
        memories=memory_rows(runs, settings),
        each=run_rows(runs, settings),
        alone=study_rows(runs, settings, branched=False),
        branched=study_rows(runs, settings, branched=True),
        savings=saving_rows(runs, settings),
        phased=[run.strategy for run in runs[: len(settings.strategies)] if run.has_phases],
    )
