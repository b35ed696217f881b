"""Energy is measured where codecarbon is installed, unless the settings say otherwise."""

import sys

import pytest

from bench.config.schema import EnergySettings
from bench.training.energy import EnergyMeter


def test_without_codecarbon_energy_is_absent_by_default(monkeypatch: pytest.MonkeyPatch):
    settings = EnergySettings(metered=None, country="USA")
    assert EnergyMeter(settings).is_on
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with EnergyMeter(settings).measured() as energy:
        pass
    assert energy() is None
