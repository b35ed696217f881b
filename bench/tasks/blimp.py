"""BLiMP whole (Warstadt et al. 2020, arXiv:1912.00582): 67 paradigms of 1,000 minimal pairs.

Scores are reported over all pairs, and by field (morphology, syntax, ...), phenomenon (island effects, ...)
and paradigm.
"""

from pathlib import Path

from typing_extensions import override

from bench.errors import ConfigError
from bench.tasks.base import Setting
from bench.tasks.hub import bench_data, read_rows
from bench.tasks.minimal_pairs import MinimalPairs, Pair, pair_of, read_blimp
from bench.tasks.options import BlimpOptions


class Blimp(MinimalPairs):
    """Prefer the grammatical sentence of each of BLiMP's pairs."""

    Options = BlimpOptions
    options: BlimpOptions
    packages = ("datasets",)

    @override
    def check(self, key: str) -> None:
        super().check(key)
        self._read()

    @override
    def pairs(self, setting: Setting) -> list[Pair]:
        return self._read()

    def _read(self) -> list[Pair]:
        options = self.options
        folder = Path(options.path).expanduser() if options.path else bench_data(options.name)
        if folder is not None:
            return read_blimp(folder)
        from datasets import get_dataset_config_names

        try:
            names = get_dataset_config_names(options.name, revision=options.revision)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"task.*.name={options.name}: the hub cannot be reached ({type(error).__name__}); give a "
                "folder with BLiMP's JSONL files by task.*.path, or by BENCH_DATA"
            ) from error
        rows = (read_rows(options.name, config=name, revision=options.revision) for name in sorted(names))
        return [pair_of(row) for part in rows for row in part]
