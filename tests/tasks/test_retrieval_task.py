"""Retrieval pays for the passes that it makes through a vision tower."""

from dataclasses import replace

import pytest
from colour_squares import FIT, Seer, make_setting, make_task

from bench.models.flops import vision_flops
from bench.tasks.base import Setting
from bench.tasks.meter import Meter


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("squares"))


def test_passes_through_a_vision_tower_are_counted(setting: Setting) -> None:
    seer = Seer(setting)
    tower = vision_flops(seer.shapes.model, seer.shapes.image_size)
    n_test = len(setting.pairs.test())
    n_fit = 3 * FIT["steps"] * FIT["batch_size"]  # backward is twice forward
    for name, fit, n_passes in (
        ("retrieval_zero_shot", {}, n_test),
        ("retrieval_fitted", FIT, n_test + n_fit),
    ):
        metered = replace(setting, meter=Meter())
        make_task(name, **fit).evaluate(seer, metered)
        assert metered.meter.flops == n_passes * tower
