"""Energy used, with its source and method, by codecarbon without a network.

If the processor has no readable energy counter (virtual machines), codecarbon multiplies its load by an
assumed power: the record says `estimated`, and how. The power of the memory is a constant of the machine, so
concurrent runs each count it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bench.config.installation import is_installed
from bench.config.schema import EnergySettings
from bench.records import JOULES_PER_KWH, Energy

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker


class EnergyMeter:
    """Measure the energy of one piece of work at a time, if the settings and the installation allow it."""

    def __init__(self, settings: EnergySettings) -> None:
        self.settings = settings
        wanted = settings.metered
        self.is_on = is_installed("codecarbon") if wanted is None else wanted

    @contextlib.contextmanager
    def measured(self) -> Iterator[Callable[[], Energy | None]]:
        """Measure a block; the yielded function returns its energy afterwards, None if not measured."""
        if not self.is_on:
            yield lambda: None
            return
        found: list[Energy] = []
        tracker = _tracker(self.settings.country)
        tracker.start_task()
        try:
            yield lambda: found[0] if found else None
        finally:
            data = tracker.stop_task()
            if data is not None:
                found.append(_energy(data, _method(tracker), self.settings.country))


def _energy(data: Any, method: tuple[bool, str], country: str) -> Energy:
    is_measured, how = method
    return Energy(
        joules=data.energy_consumed * JOULES_PER_KWH,
        source="measured" if is_measured else "estimated",
        method=how,
        co2_kg=data.emissions,
        country=country,
    )


@lru_cache(maxsize=1)  # detecting the counters takes 1.5 s: once per worker
def _tracker(country: str) -> "OfflineEmissionsTracker":
    from codecarbon import OfflineEmissionsTracker  # late: only where energy is metered

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    return OfflineEmissionsTracker(
        country_iso_code=country,
        save_to_file=False,
        log_level="critical",
        tracking_mode="process",
        allow_multiple_runs=True,
    )


def _method(tracker: "OfflineEmissionsTracker") -> tuple[bool, str]:
    """Return whether all but the memory is read from counters, and a description."""
    parts = {type(part).__name__: getattr(part, "_mode", None) for part in tracker._hardware}
    mode = str(parts.get("CPU") or "no CPU")
    is_measured = mode in ("intel_rapl", "intel_power_gadget", "windows_emi", "apple_powermetrics")
    by = "counters" if is_measured else f"{mode.replace('_', ' ')} x assumed power"
    also = ", GPU by NVML" if "GPU" in parts else ""
    return is_measured, f"codecarbon {metadata.version('codecarbon')}: CPU by {by}{also}, memory a constant"
