"""`bench speed`: settings -> one contest per cell -> tables and figure, written after each cell."""

import platform
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.config.run_spec import RunSpec, now
from bench.data.signals import ignoring_signals, interrupted_by_signals
from bench.errors import printable
from bench.records import replacing, write_atomically
from bench.report.figures.base import render
from bench.speed import page
from bench.speed.interleave import Contest
from bench.speed.profile import shares
from bench.speed.settings import OURS, Cell, Speed, plan, settings_of
from bench.speed.timings import Result
from bench.training.memory import check_machine
from bench.training.process import environment

PACKAGES = ("transformers", "accelerate")  # recorded here, in addition to those of every record
PATHS = ("nanogpt", "out")  # settings that are paths of this machine
CPUINFO = Path("/proc/cpuinfo")


def main(overrides: Sequence[str]) -> int:
    """Measure all cells and write after each; Ctrl-C keeps the finished rounds of the current cell.

    Returns:
        0; 1 if a contender failed; 130 if stopped.

    Raises:
        ConfigError: invalid settings.
    """
    settings = settings_of(overrides)
    cells = plan(settings)
    check_machine(cells[0].tasks[0].spec.typed())
    command = command_of(overrides)
    machine, started_at = machine_of(cells[0].tasks[0].spec, settings.threads), now()
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []

    def keep(result: Result) -> None:
        results.append(result)
        print(printable(page.line(result, settings)), flush=True)
        texts = {
            "md": page.markdown(results, settings, machine, command, len(cells)),
            "csv": page.table_csv(results),
            "json": page.record_json(results, settings, machine, command, started_at),
        }
        targets = {name: size.targets for name, size in settings.sizes.items()}
        _write(folder, texts, render(partial(page.draw, results, targets), "speed"))

    is_finished = _measure(cells, settings, keep)
    lost = page.failures(results)
    print("".join(f"{printable(line)}\n" for line in lost), end="")
    if results:
        print(folder / "speed.md")
    return min(1, len(lost)) if is_finished else 130


def _measure(cells: Sequence[Cell], settings: Speed, keep: Callable[[Result], None]) -> bool:
    """Time one cell after another; return False if stopped."""
    n_blocks = sum(len(cell.tasks) for cell in cells) * (settings.rounds + 1)
    with progress_bar() as shown:
        bar = shown.add_task("", total=n_blocks)
        for cell in cells:
            on_block = partial(_advance, shown, bar, f"{cell.strategy} {cell.model}")
            try:
                with interrupted_by_signals(), Contest(cell.tasks, settings.seed) as contest:
                    is_nearest = cell.strategy in settings.nearest
                    profile = shares(cell.tasks[0])
                    try:
                        contest.run(settings.rounds, on_block)
                    finally:
                        measured = (contest.timed, contest.others_share, profile)
                        result = Result(cell.strategy, cell.model, is_nearest, *measured)
                        if result.seconds(OURS) or page.failures([result]):
                            with ignoring_signals():
                                keep(result)
            except KeyboardInterrupt:
                return False
    return True


def progress_bar() -> Progress:
    """Return a progress bar, which is disabled without a terminal."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)


def _advance(shown: Progress, bar: TaskID, cell: str, contender: str) -> None:
    shown.update(bar, advance=1, description=f"{cell}: {contender}")


def _write(folder: Path, texts: dict[str, str], images: dict[str, bytes]) -> None:
    for suffix, text in texts.items():
        write_atomically(folder / f"speed.{suffix}", text)
    for suffix, image in images.items():
        path = folder / f"speed.{suffix}"
        partial_path = path.with_suffix(".partial")
        with replacing(path, partial_path):
            partial_path.write_bytes(image)


def machine_of(spec: RunSpec, threads: int | None) -> dict[str, str]:
    """Return the environment of every record, with the processor's name and the versions for peers."""
    found = environment(spec.typed().trainer)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if threads:
        found["threads"] = str(threads)
    return found | {"cpu": _cpu()}


def _cpu() -> str:
    """Return the processor's name, if the system gives it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command_of(overrides: Sequence[str]) -> str:
    """Return the command without paths of this machine."""
    keys = [override.partition("=")[0] for override in overrides]
    words = [f"{k}=PATH" if k in PATHS else o for k, o in zip(keys, overrides, strict=True)]
    return shlex.join(["bench", "speed", *words])
