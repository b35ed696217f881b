"""Ratios and verdicts of `bench speed`, by hand: round against round, and all of an interval decides."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bench.analysis.text import EMPTY
from bench.speed import page
from bench.speed.interleave import Timed
from bench.speed.settings import ABLATIONS, Facts, Speed, Targets, settings_of
from bench.speed.timings import Result, Spread, coverage, interval_rank, verdict, verdicts


def result(**seconds: list[float]) -> Result:
    """Steps of 10 positions and 4 FLOPs; the limit tells the seconds of one FLOP."""
    timed = {name: Timed(Facts(name, 1, 10, 4.0), values) for name, values in seconds.items()}
    if "limit" in timed:
        timed["limit"].facts = Facts("limit", 0, 0, 1.0)
    return Result("toy", "64x4", False, timed, 0.0)


def test_ratios_are_taken_round_by_round_against_the_peer_of_the_least_median():
    toy = result(ours=[2, 2, 4], slow=[9, 9, 9], quick=[4, 3, 5], limit=[0.25, 0.25, 0.5])
    assert toy.best_peer == "quick"
    assert toy.over_best_peer() == Spread.of([2, 1.5, 1.25])
    assert toy.tokens_per_s("ours") == Spread.of([5, 5, 2.5])
    assert toy.share_of_limit("ours") == Spread.of([0.5, 0.5, 0.5])


def test_a_peer_that_trains_in_another_way_is_compared_by_its_flops():
    toy = replace(result(ours=[2, 2], other=[2, 2]), is_nearest=True)
    toy.timed["other"].facts = Facts("other", 1, 10, 8.0)
    assert toy.over_best_peer() == Spread.of([0.5, 0.5])


def test_shares_of_a_step_are_what_a_small_one_takes_beyond_a_bare_loop_and_what_data_alone_take():
    toy = result(ours=[2, 4], ours_small=[0.75, 1.5], bare_small=[0.25, 0.5], data=[0.5, 0.4])
    assert toy.lightning_share() == Spread.of([0.25, 0.25])
    assert toy.data_share() == Spread.of([0.25, 0.1])


def test_a_contender_that_failed_and_rounds_that_not_all_have_done_count_for_nothing():
    toy = result(ours=[2, 2, 2], quick=[1], slow=[4, 4])
    toy.timed["quick"].failure = "out of memory"
    assert toy.peers == ["slow"]
    assert toy.seconds("ours") == [2, 2]
    assert verdicts(result(ours=[2.0]), Targets(1.3))["over_best_peer"] == (None, 1.3, "")


def test_an_interval_leaves_out_as_many_rounds_as_95_percent_allow():
    assert [interval_rank(n) for n in (1, 5, 7, 8, 9, 20)] == [0, 0, 0, 0, 1, 5]
    assert coverage(9, 1) == pytest.approx(1 - 2 * (1 + 9) / 2**9)
    assert Spread.of([9, 1, 2, 3, 4, 5, 6, 7, 0]) == Spread(4, 1, 7, 2, 6, True)


@pytest.mark.parametrize(
    ("low", "high", "at_least", "expected"),
    [
        (1.3, 1.5, True, "met"),
        (1.2, 1.5, True, "open"),
        (1.0, 1.2, True, "missed"),
        (0.01, 0.02, False, "met"),
        (1.2, 1.5, False, "open"),
        (1.4, 1.5, False, "missed"),
    ],
)
def test_a_target_is_decided_by_the_whole_interval(low: float, high: float, at_least: bool, expected: str):
    assert verdict(Spread(low, low, high, low, high, True), 1.3, at_least=at_least) == expected
    assert verdict(Spread(low, low, high, low, high, False), 1.3, at_least=at_least) == "open"


def test_compiling_is_judged_against_ours_as_it_is_and_is_no_peer():
    toy = result(ours=[2, 2, 4], ours_compiled=[1, 2, 2], quick=[4, 4, 4])
    assert toy.over("ours_compiled", "ours") == Spread.of([2, 1, 2])
    assert toy.best_peer == "quick"
    assert page.comparison([toy], settings_of(["compiled=true"])).rows[0][-1] == "2.00 [1.00, 2.00]"


def test_a_saving_gives_what_a_step_without_it_takes_longer_and_is_no_peer():
    toy = result(ours=[2, 2, 4], whole_logits=[3, 2, 5], quick=[4, 4, 4])
    assert toy.over("ours", "whole_logits") == Spread.of([1.5, 1, 1.25])
    assert toy.over("ours", "rope_by_autograd") is None
    assert toy.best_peer == "quick"
    shown = {row[1]: row[2] for row in page.optimisations([toy]).rows}
    assert list(shown) == list(ABLATIONS.values())
    assert shown[ABLATIONS["whole_logits"]] == "1.25 [1.00, 1.50]"
    assert shown[ABLATIONS["rope_by_autograd"]] == EMPTY


SPEED = Path(__file__).resolve().parents[2] / "reports" / "speed"
PAGES = [  # the page in gpu/ was written before contenders of ours were renamed
    path for path in sorted(SPEED.glob("**/speed.json")) if path.parent.name != "gpu"
]


def read_results(record: Mapping[str, Any], nearest: Mapping[str, Any]) -> list[Result]:
    found = []
    for cell in record["cells"]:
        timed = {
            name: Timed(Facts(**one["facts"]) if one["facts"] else None, one["seconds"], one["failure"])
            for name, one in cell["contenders"].items()
        }
        measured = (cell["strategy"] in nearest, timed, cell["others_share"], cell["profile"])
        found.append(Result(cell["strategy"], cell["model"], *measured))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_committed_pages_are_what_their_measurements_say(path: Path):
    record = json.loads(path.read_text())
    stated = {"ablations": False} | record["settings"]  # the first pages are older than ablations
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Speed), stated))
    assert isinstance(settings, Speed)
    results = read_results(record, settings.nearest)
    n_cells = len(settings.models) * len(settings.strategies)
    written = page.markdown(results, settings, record["machine"], record["command"], n_cells)
    assert path.with_name("speed.md").read_text(encoding="utf-8") == written
    assert path.with_name("speed.csv").read_text(encoding="utf-8") == page.table_csv(results)
