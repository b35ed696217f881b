"""Which pretraining strategy should I use? Controlled comparisons with measured verdicts.

    import bench

    study = bench.load("quickstart")              # records -> DataFrames; needs no torch
    study.runs, study.scores, study.curves        # one row per run, score, point of a curve
    study.items("library_probe")                  # outcomes by test item
    study.compare("mlm", "clm")                   # effect, interval, p, n and verdict by task
    study.claims(); study.plot("quality_vs_flops")

    specs = bench.compose(["strategy=clm", "model=0.2m"])         # the runs of a command line
    bench.train(["strategy=clm,mlm", "study=mine"], multirun=True)   # do them: status by run id
    bench.evaluate(["study=mine", "task=[qc_probe]"])             # more tasks for finished runs

Nothing is imported before its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.config.compose import compose_runs as compose
    from bench.report.study import Study, load
    from bench.sweep.sweep import evaluate, train

__all__ = ["Study", "compose", "evaluate", "load", "train"]

_PLACES = {
    "Study": "bench.report.study:Study",
    "compose": "bench.config.compose:compose_runs",
    "evaluate": "bench.sweep.sweep:evaluate",
    "load": "bench.report.study:load",
    "train": "bench.sweep.sweep:train",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """Return the public names, for completion in a shell."""
    return sorted({*globals(), *__all__})
