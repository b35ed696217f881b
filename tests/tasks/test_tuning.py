"""Fine-tuning: what is kept, which rate is chosen, when it stops, what counts as failed."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from toy_models import SHAPES, generator, make_strategy, with_features

from bench.errors import ConfigError
from bench.objectives.base import Objective
from bench.tasks import finetune
from bench.tasks.base import Setting
from bench.tasks.finetune import PlateauSchedule, Tuned, Tuning, descend, fine_tune
from bench.tasks.probe import hits, text_features

D = SHAPES.model.d_model
Row = list[float | None]
ONE = Tuning(steps=4, batch_size=4, lr_grid=[1e-3], n_fits=1, validate_every=1, patience=4)


def bare_setting(seed: int) -> Setting:
    """Fine-tuning looks at no data of its own."""
    nothing: Any = None
    return Setting(nothing, 16, nothing, nothing, Path(), seed, keep_going=lambda: None)


def one_word_task(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """The class is told by one of two words, somewhere among others."""
    tokens = torch.randint(10, 20, (n, 8), generator=generator(seed))
    labels = torch.arange(n) % 2
    tokens[torch.arange(n), torch.arange(n) // 2 % 8] = 5 + labels
    return tokens, labels


def zeros() -> nn.Module:
    linear = nn.Linear(D, 2)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def tuned(model: Objective, seed: int, **changes: Any) -> list[Tuned]:
    """Fine-tunings of the task of one word, validated on other texts."""
    tokens, labels = one_word_task(128, seed=0)
    held, expected = one_word_task(64, seed=1)

    def loss(model: Objective, head: nn.Module, index: Tensor) -> Tensor:
        return F.cross_entropy(head(model.features(tokens[index])), labels[index])

    def validate(model: Objective, head: nn.Module) -> float:
        return float(hits(head(text_features(model, held)), expected).mean())

    plan = {
        "steps": 80,
        "batch_size": 32,
        "lr_grid": [5e-3],
        "n_fits": 1,
        "validate_every": 20,
        "patience": 4,
    }
    return fine_tune(
        model,
        head=zeros,
        loss=loss,
        validate=validate,
        n_items=128,
        tuning=Tuning(**plan | changes),  # type: ignore[arg-type]
        setting=bare_setting(seed),
        floor=0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("stem", with_features())
def test_fine_tuning_learns_and_leaves_the_model_as_it_was(stem: str):
    model = make_strategy(stem)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    (fit,) = tuned(model, seed=0)
    assert fit.validation > 0.95
    assert not fit.failed
    assert not fit.model.training
    assert not fit.head.training
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in [*model.parameters(), *fit.model.parameters()])


def test_fits_differ_and_repeat_themselves_whatever_the_global_state():
    model, few = make_strategy("scratch"), {"steps": 8, "n_fits": 2, "validate_every": 8}
    first = tuned(model, 0, **few)
    assert not torch.equal(first[0].head.weight, first[1].head.weight)  # type: ignore[arg-type]
    torch.manual_seed(99)
    for fit, again in zip(first, tuned(model, 0, **few), strict=True):
        assert_close(fit.head.state_dict(), again.head.state_dict(), rtol=0, atol=0)
        assert_close(fit.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(tuned(model, 1, **few)[0].head.weight, first[0].head.weight)  # type: ignore[arg-type]


def test_a_head_is_drawn_by_the_fit_and_of_all_rates_alike(monkeypatch: pytest.MonkeyPatch):
    drawn: list[Tensor] = []

    def head() -> nn.Module:
        linear = nn.Linear(D, 2)
        drawn.append(linear.weight.detach().clone())
        return linear

    script = Scripted(monkeypatch, {1e-3: [[0.6] * 4, [0.6] * 4], 2e-3: [[0.6] * 4]})
    script.fits(head=head)
    first, of_another_rate, second_fit = drawn
    assert torch.equal(first, of_another_rate)
    assert not torch.equal(first, second_fit)


# With validation scores given by hand


class Scripted:
    """Fine-tunings of `scratch` whose validation scores and divergences are given.

    `scores[lr]` holds a row per fit: the score of each validation; None: its loss is not finite from then on.
    The first fit is made at every rate, the others at the chosen one alone.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, scores: dict[float, list[list[float | None]]]
    ) -> None:
        firsts = [rows[0] for rows in scores.values()]
        self.rows: Iterator[Row] = iter([*firsts, *(row for rows in scores.values() for row in rows[1:])])
        self.states: list[list[dict[str, Tensor]]] = []
        self.setting = bare_setting(0)
        plain = finetune.descend

        def begun(*args: Any, **kwargs: Any) -> Iterator[int]:
            self.row = list(next(self.rows))
            self.states.append([])
            return plain(*args, **kwargs)

        monkeypatch.setattr(finetune, "descend", begun)
        self.plan = replace(ONE, lr_grid=list(scores), n_fits=max(map(len, scores.values())))

    def loss(self, model: Objective, head: nn.Module, index: Tensor) -> Tensor:
        broken = bool(self.row) and self.row[0] is None
        features = model.features(index[:, None] + 5)
        return F.cross_entropy(head(features), index % 2) * (float("nan") if broken else 1.0)

    def validate(self, model: Objective, head: nn.Module) -> float:
        assert not torch.is_grad_enabled()
        assert not head.training
        self.states[-1].append(copy.deepcopy(head.state_dict()))
        score = self.row.pop(0)
        assert score is not None
        return score

    def fits(self, floor: float = 0.5, head: Any = zeros, **changes: Any) -> list[Tuned]:
        return fine_tune(
            make_strategy("scratch"),
            head=head,
            loss=self.loss,
            validate=self.validate,
            n_items=8,
            tuning=replace(self.plan, **changes),
            setting=self.setting,
            floor=floor,
        )


def test_the_best_state_is_kept_and_the_first_of_equals(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-3: [[0.6, 0.8, 0.8, 0.7]]})
    (fit,) = script.fits()
    assert (fit.validation, fit.steps, fit.failed, fit.lr_at_64) == (0.8, 4, False, 1e-3)
    assert_close(fit.head.state_dict(), script.states[0][1], rtol=0, atol=0)
    assert not torch.equal(script.states[0][1]["weight"], script.states[0][3]["weight"])


def test_a_fit_cools_down_after_so_many_validations_without_gain(monkeypatch: pytest.MonkeyPatch):
    scores = [0.6, 0.7, 0.7, 0.7, 0.9]  # a gain in the cooldown is kept
    script = Scripted(monkeypatch, {1e-3: [[*scores, 1.0]]})
    (fit,) = script.fits(steps=100, patience=2)
    assert fit.course.curve == list(enumerate(scores, start=1))
    assert (fit.course.stopped, fit.validation) == ("plateau", 0.9)


def test_a_fit_that_still_improves_cools_down_within_the_cap_and_says_so(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-3: [[0.5 + i / 100 for i in range(1, 13)]]})
    (fit,) = script.fits(steps=12, patience=3)
    assert (fit.course.stopped, fit.steps) == ("cap", 12)


def test_the_last_state_before_and_after_the_cooldown_are_validated(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-3: [[0.6, 0.7, 0.8, 0.9]]})
    (fit,) = script.fits(steps=7, validate_every=3)
    assert [step for step, _ in fit.course.curve] == [3, 5, 6]


def test_the_rate_rises_stays_and_falls_to_nothing():
    schedule = PlateauSchedule(warmup=4)
    assert [schedule(step) for step in (0, 3, 50)] == [0.25, 1.0, 1.0]
    assert schedule.cool_down(100) == 120
    assert [schedule(step) for step in (100, 110, 120)] == [1.0, 0.5, 0.0]


def test_the_rate_is_chosen_by_the_first_fit_and_the_others_are_made_at_it(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(
        monkeypatch, {1e-3: [[0.6] * 4], 2e-3: [[0.8] * 4, [0.9] * 4, [0.7] * 4], 4e-3: [[0.7] * 4]}
    )
    fits = script.fits()
    assert [fit.lr_at_64 for fit in fits] == [2e-3] * 3
    assert [fit.validation for fit in fits] == [0.8, 0.9, 0.7]
    tried = [(fit.lr_at_64, fit.chosen, fit.stopped, fit.curve[0]) for fit in script.setting.fits]
    assert tried == [
        (1e-3, False, "cap", (1, 0.6)),
        (2e-3, True, "cap", (1, 0.8)),
        (4e-3, False, "cap", (1, 0.7)),
        (2e-3, True, "cap", (1, 0.9)),
        (2e-3, True, "cap", (1, 0.7)),
    ]


def test_of_equal_rates_the_first_is_chosen(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {2e-3: [[0.8] * 4], 1e-3: [[0.8] * 4]})
    assert script.fits()[0].lr_at_64 == 2e-3


def test_a_fit_at_the_floor_has_failed_and_is_as_it_started(monkeypatch: pytest.MonkeyPatch):
    (fit,) = Scripted(monkeypatch, {1e-3: [[0.3, 0.5, 0.4, 0.5]]}).fits(floor=0.5)
    assert (fit.validation, fit.failed) == (0.5, True)
    assert not fit.head.weight.any()  # type: ignore[union-attr,operator]
    assert_close(fit.model.state_dict(), make_strategy("scratch").state_dict(), rtol=0, atol=0)


def test_a_diverged_fit_keeps_its_best_state_and_has_failed(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-3: [[0.6] * 4, [0.7, None]]})
    sound, diverged = script.fits()
    assert (diverged.failed, diverged.validation) == (True, 0.7)
    assert_close(diverged.head.state_dict(), script.states[1][0], rtol=0, atol=0)
    assert (sound.failed, sound.validation) == (False, 0.6)
    assert [fit.stopped for fit in script.setting.fits] == ["cap", "diverged"]


def test_a_rate_at_which_the_fit_diverges_is_left_out(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-2: [[0.9, None]], 1e-3: [[0.4] * 4]})
    (fit,) = script.fits(floor=0.5)
    assert (fit.lr_at_64, fit.failed) == (1e-3, True)  # although it scored 0.9 before


def test_an_error_and_no_score_where_the_fit_diverges_at_all_rates(monkeypatch: pytest.MonkeyPatch):
    script = Scripted(monkeypatch, {1e-2: [[0.9, None]], 1e-3: [[float("nan")]]})
    with pytest.raises(FloatingPointError, match="lr_grid"):
        script.fits()


@pytest.mark.parametrize("key", ["steps", "batch_size", "n_fits", "validate_every", "patience"])
def test_a_count_below_one_names_its_key(key: str):
    with pytest.raises(ConfigError, match=rf"task\.\*\.{key}=0"):
        replace(ONE, **{key: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [[], [0.0], [1e-3, -1.0], [float("nan")], [float("inf")]])
def test_a_grid_without_rates_names_its_key(grid: list[float]):
    with pytest.raises(ConfigError, match=r"task\.\*\.lr_grid"):
        replace(ONE, lr_grid=grid)


def test_a_first_validation_after_the_last_step_names_its_key():
    with pytest.raises(ConfigError, match=r"task\.\*\.validate_every=5"):
        replace(ONE, validate_every=5)


# Descent


def test_every_item_is_seen_once_before_any_twice_and_each_seed_has_its_order():
    def order(seed: int) -> list[int]:
        seen: list[int] = []
        weight = nn.Parameter(torch.zeros(1))

        def loss(index: Tensor) -> Tensor:
            seen.extend(index.tolist())
            return (weight**2).sum()

        for _ in descend(
            loss,
            [weight],
            n_items=12,
            steps=6,
            batch_size=4,
            lr_peak=1e-3,
            schedule=lambda step: 1.0,
            generator=generator(seed),
            keep_going=lambda: None,
        ):
            pass
        return seen

    seen = order(0)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    assert order(0) == seen != order(1)
