"""Show the progress of a sweep on the terminal: one bar for all runs and one for each active run.

It reads the runs' status files, so it also shows runs of other processes. Without a terminal, it prints one
line when a run starts and one when it ends, each with the time since the sweep started.
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from typing_extensions import override

from bench.config.run_spec import STATUS_FILE, RunSpec
from bench.errors import printable

BAR_WIDTH = 16
NUMBERS_WIDTH = 52  # steps, tokens/s, elapsed and remaining time, with separators


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's status file; None if there is none yet or it is damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state


class _Remaining(ProgressColumn):
    """The remaining time: of a run from its own speed, of the sweep from the runs finished so far."""

    @override
    def render(self, task: Task) -> Text:
        seconds = task.fields.get("remaining_s")
        if seconds is None and task.fields.get("done_here") and task.elapsed and task.total is not None:
            seconds = task.elapsed / task.fields["done_here"] * (task.total - task.completed)
        return Text(f"ETA {seconds // 60:.0f}:{seconds % 60:02.0f}" if seconds is not None else "")


class Display:
    """Display of a sweep while it runs; use it as a context manager."""

    def __init__(self, n_runs: int, n_done: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            _Remaining(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.n_runs, self.n_done, self._started_s = n_runs, n_done, time.monotonic()
        self.bars: dict[str, TaskID] = {}
        self.whole = self.progress.add_task("all runs", total=n_runs, completed=n_done, rate="", done_here=0)

    def __enter__(self) -> "Display":
        self.progress.start()
        if self.n_done:
            self.say(f"{self.n_done} of {self.n_runs} runs are done already")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _elapsed(self) -> str:
        """Return the time since the display was made, such as `0:02:05`."""
        return str(timedelta(seconds=int(time.monotonic() - self._started_s)))

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self.console.print(printable(message), markup=False, soft_wrap=True)

    def update(self, spec: RunSpec) -> None:
        """Show the current status of an active run."""
        state = read_status(spec.folder)
        if state is None or state["status"] != "running":
            return
        if spec.run_id not in self.bars:
            self.bars[spec.run_id] = self.progress.add_task("", total=None, rate="")
            if not self.console.is_terminal:
                self.say(f"{self._elapsed()} run started: {spec.label}  {spec.run_id}")
        speed = state["tokens_per_s"]
        self.progress.update(
            self.bars[spec.run_id],
            description=self._name(spec.label, state["phase"]),
            completed=state["step"],
            total=state["total_steps"] or None,
            rate=f"{speed:,.0f} tokens/s" if speed else "",
            remaining_s=state.get("seconds_left"),
        )

    def queue(self, n_queued: int) -> None:
        """Show how many runs are still queued."""
        queued = f", {n_queued} queued" if n_queued else ""
        self.progress.update(self.whole, description=f"all runs{queued}")

    def _name(self, label: str, phase: str) -> str:
        """Shorten a label in its middle to leave room for the numbers; strategy and seed stay visible."""
        room = max(8, self.console.width - BAR_WIDTH - NUMBERS_WIDTH - len(phase) - 2)
        if len(label) > room:
            label = f"{label[: room - room // 3 - 1]}…{label[-(room // 3) :]}"
        return printable(f"{label}  {phase}")

    def finish(self, spec: RunSpec, status: str) -> None:
        """Print the outcome of a run and remove its bar; a run that is `busy` elsewhere is not finished."""
        if spec.run_id in self.bars:
            self.progress.remove_task(self.bars.pop(spec.run_id))
        if status == "busy":
            return
        self.n_done += 1
        done_here = self.progress.tasks[0].fields["done_here"] + 1
        self.progress.update(self.whole, completed=self.n_done, done_here=done_here)
        record = spec.recorded() if status in ("finished", "diverged", "failed") else None
        detail = ""
        if record:
            spent_s = record.spent.pretrain_s + sum(r.cost.seconds or 0.0 for r in spec.results().values())
            detail = spec.why_lost() or f"{spent_s:.1f} s"
            detail = "; ".join(filter(None, [detail, record.retried]))
        when = "" if self.console.is_terminal else f"{self._elapsed()} "
        self.say(f"{when}[{self.n_done}/{self.n_runs}] {status:<11} {spec.label}  {spec.run_id}  {detail}")
