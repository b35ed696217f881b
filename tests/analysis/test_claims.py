"""Laws of claims.yaml and of the verdicts on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_runs import ToyRun, make_run, results_from, tables_of, toy_runs, toy_tables

from bench.analysis.claims import Claims, Side, Sweep, plan, read_claims
from bench.analysis.format import plain
from bench.analysis.frames import Tables, load
from bench.analysis.inference import Estimate
from bench.analysis.judging import Judged, Place, judge, superiority_verdict
from bench.errors import ConfigError
from bench.records import EvaluationRecord, Score, items_path, write_evaluation, write_record
from bench.report.tables.claims import claims

GOOD: dict[str, Any] = {
    "statement": "clm is better than scratch.",
    "source": "a test",
    "test": "superiority",
    "left": {"strategy": "clm"},
    "right": {"strategy": "scratch"},
    "task": "probe",
    "metric": "accuracy",
    "smallest_effect": 0.03,
    "reason": "a tenth of the lead over chance",
}


def write(folder: Path, **changes: Any) -> Claims:
    """The good claim with some keys changed, or without those set to None, read back."""
    claim = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    text = yaml.safe_dump({"written": "2026-11-25", "claims": {"first": claim}})
    (folder / "claims.yaml").write_text(text, encoding="utf-8")
    found = read_claims(folder)
    assert found is not None
    return found


def verdict(folder: Path, **changes: Any) -> Judged:
    return judge(tables_of(toy_runs()), write(folder, **changes))[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"smalest_effect": 0.03}, "smalest_effect"),
        ({"smallest_effect": "much"}, "smallest_effect"),
        ({"smallest_effect": 0.0}, "smallest_effect"),
        ({"reason": None}, "reason: missing"),
        (
            {"test": "slope", "axis": "linear", "levels": [{"at": 0, "strategy": "clm"}]},
            "three or more levels",
        ),
        (
            {"test": "slope", "axis": "log2", "levels": [{"at": i, "strategy": "clm"} for i in range(3)]},
            "logarithm",
        ),
        ({"test": "slope", "axis": "labels"}, "linear, log2"),
        ({"task": None}, "task"),
        ({"statement": None}, "statement"),
        ({"test": "superiorty"}, "did you mean superiority"),
        ({"left": {}}, "left.strategy"),
        ({"left": {"strategy": "clm", "seeds": [0, 1]}}, "right.seeds"),
        ({"better": "more"}, "better"),
        ({"test": "crossover", "between": [1, 2]}, "axis"),
        ({"test": "crossover", "axis": "labels"}, "between"),
        ({"test": "variance_ratio", "smallest_effect": 1.0}, "a ratio above 1"),
    ],
)
def test_a_bad_claim_is_one_line_with_file_claim_and_key(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as error:
        write(tmp_path, **changes)
    text = str(error.value)
    assert "claims.yaml" in text
    assert "claims.first" in text
    assert named in text
    assert "\n" not in text


def test_a_study_without_the_file_has_no_claims(tmp_path: Path) -> None:
    assert read_claims(tmp_path) is None


def test_a_side_takes_the_shared_wishes_where_it_has_none() -> None:
    assert Side("clm", model="1m").within(Side(model="2m", budget="1kb")) == Side("clm", None, "1m", "1kb")


def test_a_clear_lead_is_supported_and_its_mirror_contradicted(tmp_path: Path) -> None:
    assert verdict(tmp_path).verdict == "supported"
    sides = {"left": GOOD["right"], "right": GOOD["left"]}
    assert verdict(tmp_path, **sides).verdict == "opposite direction"


def test_a_lead_smaller_than_the_smallest_effect_is_equivalent(tmp_path: Path) -> None:
    assert verdict(tmp_path, smallest_effect=0.5).verdict == "too small to matter"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "prob"}, "did you mean probe"),
        ({"metric": "acuracy"}, "did you mean accuracy"),
        ({"left": {"strategy": "clmm"}}, "did you mean clm"),
        ({"cells": {"budget": "9kb"}}, "budget=9kb"),
    ],
)
def test_what_the_study_lacks_is_not_run_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    found = verdict(tmp_path, **changes)
    assert found.verdict == "not run"
    assert reason in found.evidence.why_not


def test_a_lost_run_is_never_support(tmp_path: Path) -> None:
    tables = tables_of([*toy_runs(), make_run("clm", 3, None)])
    found = judge(tables, write(tmp_path))[0]
    assert (found.verdict, found.p_adjusted) == ("not run", None)
    assert "1 of 4 runs" in found.evidence.why_not


def test_seeds_that_a_claim_lists_have_to_be_run(tmp_path: Path) -> None:
    sides = {side: GOOD[side] | {"seeds": [0, 1, 7]} for side in ("left", "right")}
    found = verdict(tmp_path, **sides)
    assert found.verdict == "not run"
    assert "seed 7" in found.evidence.why_not


def study(values: dict[tuple[str, str], list[float]], **changes: Any) -> list[ToyRun]:
    """Runs by strategy and model; a value per seed."""
    return [
        make_run(strategy, seed, value, model=model, run_id=f"{strategy}-{model}-{seed}", **changes)
        for (strategy, model), own in values.items()
        for seed, value in enumerate(own)
    ]


def test_a_small_encoder_may_be_held_against_a_larger_decoder(tmp_path: Path) -> None:
    runs = study({("mlm", "1m"): [0.62, 0.63, 0.64], ("clm", "2m"): [0.51, 0.52, 0.53]})
    sides = {"left": {"strategy": "mlm", "model": "1m"}, "right": {"strategy": "clm", "model": "2m"}}
    found = judge(tables_of(runs), write(tmp_path, **sides))[0]
    assert found.verdict == "supported"
    assert [cell.model for cell in found.evidence.pairs[0]] == ["1m", "2m"]


def test_a_strategy_may_be_held_against_itself_under_other_seeds(tmp_path: Path) -> None:
    runs = study({("clm", "1m"): [0.60, 0.63, 0.66, 0.50, 0.52, 0.54]})
    sides = {
        "left": {"strategy": "clm", "seeds": [0, 1, 2]},
        "right": {"strategy": "clm", "seeds": [3, 4, 5]},
    }
    found = judge(tables_of(runs), write(tmp_path, **sides))[0]
    assert found.evidence.estimate is not None
    assert found.evidence.estimate.mean == pytest.approx(0.11)


def tuned(folder: Path, n_fits: int) -> Tables:
    """Nine seeds whose fine-tunings spread by 0.001 with clm and by 0.03 with mlm."""
    rng = np.random.default_rng(0)
    for strategy, sd in (("clm", 0.001), ("mlm", 0.03)):
        for seed in range(9):
            fits = np.clip(0.5 + rng.normal(0, sd, (n_fits, 1)) + rng.normal(0, 0.1, (1, 40)), 0, 1)
            run = make_run(strategy, seed, float(fits.mean()))
            write_record(run.record(), folder / "toy/records")
            evaluation = EvaluationRecord("e0", run.run_id, "toy", run.results)
            write_evaluation(evaluation, folder / "toy/evaluations")
            np.savez(items_path(folder / "toy/evaluations", evaluation), **{"probe/accuracy": fits})
    return load("toy", folder)[0]


def test_a_steadier_side_is_seen_by_the_spread_of_its_fits(tmp_path: Path) -> None:
    tables = tuned(tmp_path, 5)
    asked = {"test": "variance_ratio", "smallest_effect": 2.0, "right": {"strategy": "mlm"}}
    found = judge(tables, write(tmp_path, **asked))[0]
    assert found.verdict == "supported"
    assert found.evidence.estimate is not None
    assert found.evidence.estimate.mean == pytest.approx(np.log(900), abs=1.0)
    turned = asked | {"left": {"strategy": "mlm"}, "right": {"strategy": "clm"}}
    assert judge(tables, write(tmp_path, **turned))[0].verdict == "opposite direction"
    view = claims(tables, tmp_path)
    assert view is not None
    assert plain(view.rows[0][2]).startswith("variance × 0.00")


def test_a_claim_on_stability_takes_five_fits(tmp_path: Path) -> None:
    asked = {"test": "variance_ratio", "smallest_effect": 2.0, "right": {"strategy": "mlm"}}
    found = judge(tuned(tmp_path, 4), write(tmp_path, **asked))[0]
    assert found.verdict == "not run"
    assert "needs 5 fits of each checkpoint; clm tiny 1kb has 4" in found.evidence.why_not


def shares(slope: float, trunk: bool) -> Tables:
    """Three variants of a strategy, 0.1 apart for each seed, whose runs share a trunk or do not."""
    noise = np.random.default_rng(0).normal(0, 0.002, (3, 6))
    return tables_of(
        [
            make_run(
                "clm",
                seed,
                0.4 + 0.1 * seed + slope * share + noise[i, seed],
                variant=f"share={share}",
                run_id=f"{share}-{seed}",
                data={"trunk": {"run_id": f"trunk-{seed}", "steps": 5}} if trunk else {},
            )
            for i, share in enumerate((0.0, 0.5, 1.0))
            for seed in range(6)
        ]
    )


SLOPE = {
    **{"test": "slope", "axis": "linear", "left": None, "right": None},
    "levels": [{"at": x, "strategy": "clm", "variant": f"share={x}"} for x in (0.0, 0.5, 1.0)],
}


def test_a_slope_is_estimated_within_seeds_of_one_trunk(tmp_path: Path) -> None:
    found = judge(shares(0.08, True), write(tmp_path, **SLOPE))[0]
    assert found.evidence.estimate is not None
    assert found.evidence.estimate.mean == pytest.approx(0.08, abs=0.005)
    assert (found.verdict, found.evidence.is_paired) == ("supported", True)
    assert judge(shares(-0.08, True), write(tmp_path, **SLOPE))[0].verdict == "opposite direction"
    assert judge(shares(0.0, True), write(tmp_path, **SLOPE))[0].verdict == "too small to matter"


def test_a_slope_over_unrelated_runs_has_the_error_of_all_seeds(tmp_path: Path) -> None:
    found = judge(shares(0.08, False), write(tmp_path, **SLOPE))[0]
    assert (found.verdict, found.evidence.is_paired) == ("undecided", False)
    view = claims(shares(0.08, False), tmp_path)
    assert view is not None
    row = dict(zip(view.header, map(plain, view.rows[0]), strict=True))
    assert row["smallest effect of interest"] == "0.030 per unit"
    assert "clm [share=0.0] → clm [share=0.5] → clm [share=1.0]" in row["left − right"]
    assert "a slope of" in row["power"]


def test_a_slope_whose_level_was_not_run_says_so(tmp_path: Path) -> None:
    levels = [*SLOPE["levels"], {"at": 2.0, "strategy": "clm", "variant": "share=2.0"}]
    found = judge(shares(0.08, True), write(tmp_path, **SLOPE | {"levels": levels}))[0]
    assert "no variant of clm 'share=2.0'" in found.evidence.why_not


def test_primary_claims_have_most_of_the_error_rate(tmp_path: Path) -> None:
    nodes = {f"c{i}": GOOD | {"primary": i < 2} for i in range(5)}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"written": "2026-12-01", "claims": nodes}))
    found = judge(toy_tables(), read_claims(tmp_path) or Claims("", {}))
    assert [round(1 - one.level, 5) for one in found] == [0.02, 0.02, 0.00333, 0.00333, 0.00333]
    many = {f"c{i}": GOOD | {"primary": True} for i in range(7)}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"written": "2026-12-01", "claims": many}))
    with pytest.raises(ConfigError, match="7 primary claims; name at most 6"):
        read_claims(tmp_path)


def test_an_amendment_is_shown_with_the_claims(tmp_path: Path) -> None:
    text = {"written": "2026-12-01", "amendments": {"2026-12-09": "a side was wrong"}, "claims": {"a": GOOD}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(text))
    view = claims(toy_tables(), tmp_path)
    assert view is not None
    assert "Amended on 2026-12-09: a side was wrong." in view.note


def test_no_worse_by_the_margin_and_equal_within_it(tmp_path: Path) -> None:
    tables = tables_of(study({("clm", "1m"): [0.519, 0.52, 0.521], ("mlm", "1m"): [0.52, 0.519, 0.521]}))
    for test in ("non_inferiority", "equivalence"):
        asked = {"test": test, "right": {"strategy": "mlm"}}
        assert judge(tables, write(tmp_path, **asked))[0].verdict == "supported"
        strict = asked | {"smallest_effect": 0.0005}
        assert judge(tables, write(tmp_path, **strict))[0].verdict == "undecided"


def curves(n_seeds: int) -> list[ToyRun]:
    """clm ahead of scratch with 10 labels, level in between and behind with 100."""
    runs = []
    for strategy, few, many in (("clm", 0.6, 0.5), ("scratch", 0.5, 0.6)):
        for seed in range(n_seeds):
            scores = [
                Score("probe", "accuracy", value + 0.001 * seed, 0.25, 100, n_labels=n)
                for n, value in ((10, few), (100, many))
            ]
            runs.append(make_run(strategy, seed, 0.0, scores=scores))
    return runs


def test_a_crossover_is_held_against_the_range_that_is_claimed(tmp_path: Path) -> None:
    asked = {"test": "crossover", "axis": "labels", "smallest_effect": None}
    tables = tables_of(curves(9))
    inside = judge(tables, write(tmp_path, between=[20, 50], **asked))[0]
    assert inside.verdict == "supported"
    assert inside.evidence.crossing is not None
    assert inside.evidence.crossing.at == pytest.approx(10**1.5)  # half way in log labels
    assert judge(tables, write(tmp_path, between=[60, 90], **asked))[0].verdict == "contradicted"


def test_two_seeds_decide_no_claim(tmp_path: Path) -> None:
    asked = {"test": "crossover", "axis": "labels", "between": [20, 50], "smallest_effect": None}
    for changes in (asked, {"n_labels": 10}):
        found = judge(tables_of(curves(2)), write(tmp_path, **changes))[0]
        assert (found.verdict, found.evidence.why_not) == (
            "not run",
            "2 seeds: a test takes 3 or more of each side",
        )


def test_a_metric_that_only_describes_takes_a_direction(tmp_path: Path) -> None:
    runs = [
        make_run(
            strategy, seed, 0.0, scores=[Score("probe", "length", value, None, 9, higher_is_better=None)]
        )
        for strategy, own in (("clm", (6.0, 6.3, 6.6)), ("scratch", (5.0, 5.2, 5.4)))
        for seed, value in enumerate(own)
    ]
    tables, asked = tables_of(runs), {"metric": "length", "smallest_effect": 0.3}
    assert "only describes" in judge(tables, write(tmp_path, **asked))[0].evidence.why_not
    assert judge(tables, write(tmp_path, better="higher", **asked))[0].verdict == "supported"
    assert judge(tables, write(tmp_path, better="lower", **asked))[0].verdict == "opposite direction"


def test_what_is_open_says_what_it_takes(tmp_path: Path) -> None:
    write(tmp_path, smallest_effect=0.0005, test="equivalence", right={"strategy": "scratch"})
    tables = tables_of(study({("clm", "1m"): [0.50, 0.52, 0.51], ("scratch", "1m"): [0.51, 0.50, 0.51]}))
    view = claims(tables, tmp_path)
    assert view is not None
    row = dict(zip(view.header, map(plain, view.rows[0]), strict=True))
    assert row["verdict"] == "? undecided"
    assert "an effect of 0.001 needs" in row["power"]
    assert row["reason for the smallest effect"] == GOOD["reason"]


def test_the_plan_names_what_the_sweep_lacks_and_the_seeds_it_takes(tmp_path: Path) -> None:
    asked = write(tmp_path)
    whole = Sweep({"clm", "scratch"}, {"1kb", None}, {"probe"}, range(6), fine_tuned={"probe"})
    assert plan(asked, whole) == ["1 claim to be judged, 6 seeds"]
    [first, second] = plan(asked, whole._replace(strategies={"clm"}, tasks=set(), seeds=range(2)))
    assert "a test takes 3 or more" in first
    assert second == "claim first: strategy scratch, task probe not in this sweep"
    with pytest.raises(
        ConfigError, match=r"first\.right\.strategy=scratch: probe keeps .* is random_features"
    ):
        plan(asked, whole._replace(fine_tuned=()))


def test_a_claim_names_the_baseline_that_its_task_has(tmp_path: Path) -> None:
    tuned = toy_runs()
    frozen = [replace(run, results=results_from(run.results[0].scores, "probe")) for run in tuned]
    features = {"right": {"strategy": "random_features"}}
    [as_scratch] = judge(tables_of(tuned), write(tmp_path))
    with pytest.raises(ConfigError, match=r"claims\.first\.right\.strategy=scratch: .*is random_features"):
        judge(tables_of(frozen), write(tmp_path))
    with pytest.raises(ConfigError, match=r"strategy=random_features: probe trains .* is scratch"):
        judge(tables_of(tuned), write(tmp_path, **features))
    [as_features] = judge(tables_of(frozen), write(tmp_path, **features))
    assert as_features.evidence.estimate == as_scratch.evidence.estimate
    view = claims(tables_of(frozen), tmp_path)
    assert view is not None
    assert plain(view.rows[0][view.header.index("left − right")]) == "clm − random features"


ESTIMATES = [  # of 100 seeds with a standard error of 0.01, whose 95 % interval is ±0.02 around the mean
    (0.06, "supported"),
    (0.04, "supported in direction only"),
    (0.0, "too small to matter"),
    (0.005, "too small to matter"),
    (-0.005, "too small to matter"),
    (-0.015, "not as large as claimed"),
    (-0.04, "opposite direction"),
]


@pytest.mark.parametrize(("mean", "verdict"), ESTIMATES)
def test_a_verdict_is_the_place_of_the_interval(mean: float, verdict: str) -> None:
    place = Place(Estimate(mean, 0.1, 0.0, 99, 100), 0.03, 0.025)
    assert superiority_verdict(place) == verdict


def test_an_interval_that_holds_the_effect_and_nought_decides_nothing() -> None:
    place = Place(Estimate(0.015, 0.1, 0.0, 99, 100), 0.03, 0.025)
    assert superiority_verdict(place) == "undecided"


def test_the_interval_that_is_printed_is_the_one_that_decides(tmp_path: Path) -> None:
    for effect in (0.05, 0.085, 0.0851, 0.134, 0.2):
        found = verdict(tmp_path, smallest_effect=effect)
        assert found.evidence.estimate is not None
        low, high = found.evidence.estimate.bounds(found.level)
        where = "supported" if low > effect else "too small to matter" if high < effect else None
        assert found.verdict == (where or "supported in direction only")
