"""Runs that share their beginning (the trunk): which ones, and the folder where it is kept. No torch here.

Runs that differ only in `strategy.shares` share their first phase. Under warmup-stable-decay, runs with other
compute budgets differ only in when the rate cools down (Haegele et al. 2024, arXiv:2405.18392): one stable
phase is trained, and each budget's cooldown branches from it. `bench.training.callbacks.Trunk` trains and
saves it.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.config.run_spec import RunSpec
from bench.config.schema import COMPUTE, Budget
from bench.records import write_atomically

ENTERED = "trunk.json"  # in a run's folder: where it branched off
_BUDGETS = "budgets.json"  # in a trunk's folder: the budgets that branch from it


def trunk_folder(spec: RunSpec, common: Any) -> Path:
    """Return the folder of the trunk of all runs that have `common` in common."""
    digest = sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
    return spec.folder.parent / f"trunk-{digest[:12]}"


def stable_phase_folder(spec: RunSpec) -> Path | None:
    """Return the folder of the stable phase that a run shares with other budgets; None if it shares none.

    With a warmup that is a share of the run, longer runs have a longer warmup and share nothing.
    """
    optim = spec.config["optim"]
    has_stable_phase = optim["schedule"] == "wsd" and optim.get("warmup_tokens") is not None
    if spec.config["strategy"]["modality"] == "none" or not has_stable_phase:
        return None
    budget = {key: value for key, value in spec.science["budget"].items() if key not in COMPUTE}
    return trunk_folder(spec, spec.science | {"budget": budget})


def announce(specs: Iterable[RunSpec]) -> None:
    """Write which budgets will branch from each stable phase, for the runs that are trained first."""
    by_folder: dict[Path, list[Mapping[str, Any]]] = {}
    for spec in specs:
        folder = stable_phase_folder(spec)
        if folder is not None:
            by_folder.setdefault(folder, []).append({key: spec.config["budget"][key] for key in COMPUTE})
    for folder, budgets in by_folder.items():
        known = _announced(folder)
        every = known + [budget for budget in budgets if budget not in known]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _BUDGETS, json.dumps(every) + "\n")


def announced_budgets(folder: Path) -> list[Budget]:
    """Return the compute budgets that branch from a trunk, as far as they were announced."""
    return [Budget(**one) for one in _announced(folder)]


def _announced(folder: Path) -> list[dict[str, Any]]:
    path = folder / _BUDGETS
    return json.loads(path.read_text()) if path.exists() else []


def entered(folder: Path) -> dict[str, Any]:
    """Return {"trunk": the run that trained it and its steps} for the record; {} if there is none."""
    path = folder / ENTERED
    return {"trunk": json.loads(path.read_text())} if path.exists() else {}
