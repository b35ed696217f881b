"""Laws of costs and Pareto fronts, on records with values that can be checked by hand."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from matplotlib.collections import PathCollection
from toy_reports import FIGURES
from toy_runs import PROBE, ToyRun, make_run, tables_of

from bench.analysis.compare import most_spread
from bench.analysis.cost import front, joules, seconds
from bench.analysis.format import View, amount, plain
from bench.analysis.frames import Cell, Condition, Tables
from bench.config.build import build
from bench.records import Energy, EvaluationCost, Score, Spent
from bench.report.figures.base import Figure, render
from bench.report.figures.quality_vs_cost import places_of
from bench.report.tables.costs import cost, pareto

SEEDS = range(3)
JITTER = (-0.01, 0.0, 0.01)  # around a mean, the same in all cells: differences have no spread


def cells(flops: dict[str, tuple[float, float]], **changes: Any) -> list[ToyRun]:
    """Three seeds of each strategy with this compute and mean."""
    return [
        make_run(
            name, i, mean + JITTER[i], **({"spent": Spent(steps=1, flops=spent)} if spent else {}) | changes
        )
        for name, (spent, mean) in flops.items()
        for i in SEEDS
    ]


def fronted(tables: Tables, costs: dict[Cell, float]) -> list[tuple[str, bool | None]]:
    return [(member.cell.condition.strategy, member.is_clear) for member in front(tables, PROBE, costs)]


def by_flops(points: dict[str, tuple[float, float]]) -> list[str]:
    tables = tables_of(cells(points))
    costs = {Cell(Condition(name, ""), "tiny", "1kb"): spent for name, (spent, _) in points.items() if spent}
    return [name for name, _ in fronted(tables, costs)]


def column(view: View, name: str) -> list[str]:
    return [plain(row[view.header.index(name)]) for row in view.rows]


def test_the_front_is_what_no_cheaper_cell_matches():
    points = {"a": (1e9, 0.5), "b": (2e9, 0.4), "c": (3e9, 0.6), "d": (4e9, 0.6), "e": (5e9, 0.9)}
    assert by_flops(points) == ["a", "c", "e"]  # b and d cost more than what is as good or better


def test_of_cells_of_equal_cost_the_better_and_of_equals_in_both_all_are_on_the_front():
    assert by_flops({"a": (1e9, 0.5), "b": (1e9, 0.6)}) == ["b"]
    assert by_flops({"a": (1e9, 0.5), "b": (1e9, 0.5)}) == ["a", "b"]


def test_scratch_costs_nothing_and_dominates_what_is_worse():
    assert by_flops({"scratch": (0, 0.5), "a": (1e9, 0.4), "b": (2e9, 0.6)}) == ["scratch", "b"]


def test_a_cell_without_a_cost_takes_no_part():
    tables = tables_of(cells({"a": (1e9, 0.5), "b": (2e9, 0.9)}))
    assert fronted(tables, {Cell(Condition("a", ""), "tiny", "1kb"): 1.0}) == [("a", None)]


def test_the_front_turns_with_what_is_better():
    def error(strategy: str, spent: float, mean: float) -> list[ToyRun]:
        return [
            make_run(
                strategy,
                i,
                mean,
                scores=(Score("probe", "accuracy", mean + JITTER[i], None, 9, higher_is_better=False),),
                spent=Spent(steps=1, flops=spent),
            )
            for i in SEEDS
        ]

    tables = tables_of(error("a", 1e9, 0.5) + error("b", 2e9, 0.4) + error("c", 3e9, 0.6))
    view = pareto(tables)
    assert column(view, "strategy") == ["a", "b"]
    assert column(view, "gain") == ["–", "clear"]


def test_a_gain_that_the_seeds_do_not_show_is_marked():
    clear = [make_run("clm", i, v) for i, v in enumerate((0.60, 0.63, 0.66))]  # minus scratch: p 0.009
    spread = [
        make_run("mlm", i, v, spent=Spent(steps=1, flops=2e9)) for i, v in enumerate((0.60, 0.70, 0.62))
    ]  # 0.00 +0.07 -0.04 to clm
    scratch = [make_run("scratch", i, v) for i, v in enumerate((0.50, 0.52, 0.54))]
    view = pareto(tables_of([*scratch, *clear, *spread]))
    assert column(view, "strategy") == ["scratch", "clm", "mlm"]
    assert column(view, "gain") == ["–", "clear", "not clear"]
    assert column(view, "difference to the next cheaper row")[1].startswith("+0.110 [+0.049, +0.171]")
    assert column(view, "pretraining FLOPs") == ["0", "1.0×10⁹", "2.0×10⁹"]


# What it cost


def energy(joules: float, source: Any = "estimated", country: str = "USA") -> Energy:
    return Energy(joules, source, f"by {source}", joules / 3.6e6 * 0.4, country)  # 400 g a kWh


def metered(strategy: str, seed: int, spent: Energy | None, **changes: Any) -> ToyRun:
    used = Spent(steps=1, flops=1e9, pretrain_s=10.0 * (seed + 1), energy=spent)
    return make_run(strategy, seed, 0.5 + seed / 100, spent=used, **changes)


def test_costs_are_means_by_cell_and_sums_in_total_lost_runs_included():
    runs = [metered("clm", 0, energy(3.6e6)), metered("clm", 1, energy(7.2e6))]
    lost = replace(metered("clm", 2, energy(3.6e6)), status="diverged", results=())
    view = cost(tables_of([*runs, lost]))
    assert column(view, "runs") == ["3, 1 lost", "3"]
    assert column(view, "pretraining FLOPs") == ["1.0×10⁹", "3.0×10⁹"]
    assert column(view, "pretraining s") == ["15", "60"]
    assert column(view, "pretraining kWh") == ["1.5 estimated", "4 estimated"]
    assert column(view, "pretraining kg CO2") == ["0.6 estimated", "1.6 estimated"]
    assert "USA, 400 g CO2/kWh" in view.note
    assert "by estimated" in view.note
    assert "The total includes the lost runs (1)." in view.note


def test_a_lost_run_without_a_cost_makes_the_total_a_lower_bound():
    view = cost(tables_of([metered("clm", 0, None), make_run("clm", 1, None)]))
    assert column(view, "pretraining FLOPs")[-1] == "1.0×10⁹"
    assert "for 1 of them no cost is on record, so the true total is higher." in view.note
    assert "No run has its energy on record." in view.note


def test_measured_and_estimated_energy_are_never_added_up():
    runs = [metered("clm", 0, energy(3.6e6)), metered("clm", 1, energy(7.2e6, "measured"))]
    tables = tables_of(runs)
    assert column(cost(tables), "pretraining kWh") == ["2 measured; 1 estimated"] * 2
    clm = Cell(Condition("clm", ""), "tiny", "1kb")
    assert (joules(tables, "measured"), joules(tables, "estimated")) == ({clm: 7.2e6}, {clm: 3.6e6})


def test_evaluation_stands_apart_from_pretraining():
    run = metered("clm", 0, energy(3.6e6))
    done = replace(run.results[0], cost=EvaluationCost(5.0, 2e9, energy(1.8e6, country="FRA")))
    view = cost(tables_of([replace(run, results=(done,))]))
    assert column(view, "pretraining s") == ["10", "10"]
    assert column(view, "evaluation s") == ["5", "5"]
    assert column(view, "evaluation kWh")[-1] == "0.5 estimated"
    assert "FRA, 400 g CO2/kWh; USA, 400 g CO2/kWh" in view.note


def test_an_external_model_has_no_pretraining_cost_here():
    view = cost(tables_of([make_run("reference", 0, 0.9, budget=None, spent=Spent())]))
    assert column(view, "pretraining FLOPs") == ["–", "–"]


def test_amounts_are_written_without_a_dangling_exponent():
    assert [amount(v) for v in (3951.4, 12.34, 1234567.0, None)] == ["3,951", "12.3", "1.2×10⁶", "–"]


def test_what_a_shared_trunk_spares_is_stated_from_the_records():
    """Budgets of 0.5 to 8 M positions with cooldowns of a tenth: 15.5 M alone, 8.75 M with one trunk."""
    runs = []
    for i, millions in enumerate((0.5, 1, 2, 4, 8)):
        steps = int(1000 * millions)
        spent = Spent(steps=steps, forward_tokens=1000 * steps, flops=1e6 * steps)
        trunk = {} if millions == 8 else {"trunk": {"run_id": "longest", "steps": steps - steps // 10}}
        runs.append(make_run("clm", 0, 0.5, budget=f"{millions}", run_id=f"run{i}", spent=spent, data=trunk))
    view = cost(tables_of(runs))
    assert "4 runs branch from a trunk" in view.note
    assert "saved 43.5 % of the FLOPs" in view.note
    assert "trunk" not in cost(tables_of(runs[-1:])).note


# Figures


def figure(name: str, **options: Any) -> Figure:
    return build(FIGURES[name] | options, Figure, name)  # type: ignore[type-abstract]


def test_two_sources_of_energy_never_share_an_axis():
    runs = [metered("clm", i, energy(100.0)) for i in SEEDS]
    runs += [metered("mlm", i, energy(9000.0, "measured")) for i in SEEDS]
    runs += [metered("rtd", i, None) for i in SEEDS]
    tables, drawn = tables_of(runs), figure("quality_vs_energy")
    canvas = drawn.draw(tables)
    shown = [axes for axes in canvas.axes if axes.axison]
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in shown]
    assert [title.splitlines()[-1] for title in titles] == ["measured", "estimated"]
    (low, high), (low_2, high_2) = (axes.get_xlim() for axes in shown)
    assert low < 9000 < high
    assert low_2 < 100 < high_2 < low
    drawn_at = [
        [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)] for axes in shown
    ]
    places = [{x for offsets in found for x, _ in offsets} for found in drawn_at]
    assert [len(found) for found in places] == [1, 1]  # one cell each, and none without energy


def test_figures_of_a_cost_are_left_out_where_it_is_not_on_record():
    bare = tables_of([make_run("clm", i, 0.5) for i in SEEDS])
    assert seconds(bare) == {}
    assert not figure("quality_vs_time").applies(bare)
    assert not figure("quality_vs_energy").applies(bare)
    timed = tables_of([metered("clm", i, None) for i in SEEDS])
    assert figure("quality_vs_time").applies(timed)
    assert not figure("quality_vs_energy").applies(timed)


def many_tasks(n: int) -> Tables:
    """Task i: two strategies 0.1 x i apart, with the same spread over seeds."""

    def scores(high: float, seed: int) -> tuple[Score, ...]:
        return tuple(Score(f"t{i:02}", "accuracy", high * i * 0.1 + JITTER[seed], 0.0, 9) for i in range(n))

    runs = [make_run("a", s, 0.0, scores=scores(0.0, s)) for s in SEEDS]
    return tables_of(runs + [make_run("b", s, 0.0, scores=scores(1.0, s)) for s in SEEDS])


def test_cells_that_would_hide_one_another_stand_apart_in_the_order_of_their_cost():
    names = ("mlm", "clm", "clip")
    tables = tables_of([make_run(name, seed, 0.5) for name in names for seed in SEEDS])
    mlm, clm, clip = (next(c for c in tables.cells if c.condition.strategy == name) for name in names)
    places = places_of(tables, {mlm: 100.0, clm: 101.0, clip: 1000.0})
    assert places[clip] == pytest.approx(1000)  # nothing is near it
    assert places[mlm] < 100 < 101 < places[clm]
    assert places[mlm] * places[clm] == pytest.approx(100 * 101)
    assert places[clm] / places[mlm] == pytest.approx(10**0.02)  # a fiftieth of the decade that is drawn
    assert list(places_of(tables, dict.fromkeys((mlm, clm, clip), 7.0))) == [clip, clm, mlm]  # by name


def test_of_many_tasks_those_that_differ_most_are_drawn_and_the_rest_is_named():
    tables, drawn = many_tasks(11), figure("quality_vs_flops")
    assert [m.task for m in most_spread(tables, tables.headlines, 3)] == ["t08", "t09", "t10"]
    assert len([axes for axes in drawn.draw(tables).axes if axes.axison]) == 9
    assert "left out: t00, t01." in drawn.caption(tables)
    by_data = figure("quality_vs_data")
    assert len([axes for axes in by_data.draw(many_tasks(16)).axes if axes.axison]) == 15
    assert "left out: t00." in by_data.caption(many_tasks(16))
    assert "left out" not in by_data.caption(many_tasks(15))
    chosen = figure("quality_vs_flops", tasks=["t00"])
    assert "left out" not in chosen.caption(tables)
    assert render(partial(chosen.draw, tables), "one")["png"]


def test_a_caption_names_the_members_with_a_clear_gain_alone():
    spread = [
        make_run("mlm", i, v, spent=Spent(steps=1, flops=2e9)) for i, v in enumerate((0.60, 0.70, 0.62))
    ]
    clm = [make_run("clm", i, v) for i, v in enumerate((0.60, 0.63, 0.66))]
    scratch = [make_run("scratch", i, v) for i, v in enumerate((0.50, 0.52, 0.54))]
    caption = figure("quality_vs_flops").caption(tables_of([*scratch, *clm, *spread]))
    assert "clm, tiny, 1kb at 1.0×10⁹ FLOPs, +0.110 [+0.049, +0.171], 3 seeds each, p = 0.009" in caption
    assert "mlm, tiny" not in caption
