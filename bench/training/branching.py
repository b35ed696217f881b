"""Which runs may share their beginning, known before any of them starts. No torch here.

Under warmup-stable-decay, budgets of compute differ in when the rate cools down alone (Haegele et al. 2024,
arXiv:2405.18392): one trunk is trained, and each budget's cooldown branches from it.
See `bench.training.shared_trunk`.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.config.run_spec import RunSpec
from bench.config.schema import COMPUTE, Budget
from bench.records import write_atomically

_BUDGETS = "budgets.json"  # in a trunk's folder: those that branch from it


def folder_of(spec: RunSpec, common: Any) -> Path:
    """Where the trunk of all runs lies that have this in common."""
    digest = sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
    return spec.folder.parent / f"trunk-{digest[:12]}"


def stable_trunk(spec: RunSpec) -> Path | None:
    """The folder of the stable phase that a run shares with other budgets; None where it shares none.

    A warmup that is a share of the run is longer in longer runs, which then have nothing in common.
    """
    optim = spec.config["optim"]
    has_stable_phase = optim["schedule"] == "wsd" and optim.get("warmup_tokens") is not None
    if spec.config["strategy"]["modality"] == "none" or not has_stable_phase:
        return None
    budget = {key: value for key, value in spec.science["budget"].items() if key not in COMPUTE}
    return folder_of(spec, spec.science | {"budget": budget})


def announce(specs: Iterable[RunSpec]) -> None:
    """Leave word for the runs that come first: which budgets will branch from their stable phases."""
    found: dict[Path, list[Mapping[str, Any]]] = {}
    for spec in specs:
        folder = stable_trunk(spec)
        if folder is not None:
            found.setdefault(folder, []).append({key: spec.config["budget"][key] for key in COMPUTE})
    for folder, budgets in found.items():
        known = _announced(folder)
        every = known + [budget for budget in budgets if budget not in known]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _BUDGETS, json.dumps(every) + "\n")


def branches(folder: Path) -> list[Budget]:
    """The compute budgets that branch from a trunk, as far as was announced."""
    return [Budget(**one) for one in _announced(folder)]


def _announced(folder: Path) -> list[dict[str, Any]]:
    path = folder / _BUDGETS
    return json.loads(path.read_text()) if path.exists() else []
