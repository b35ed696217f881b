"""`bench speed experiment=NAME`: time our sweep against one script of Hugging Face's Trainer per cell.

All start from prepared data and do the same steps of the same batches, validations and tasks.
"""

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.analysis.format import EMPTY, View, markdown_escape, markdown_table
from bench.config.compose import compose_runs, refuse_several_studies
from bench.config.run_spec import RunSpec, now
from bench.data.prepare import prepare
from bench.data.signals import interrupted_by_signals
from bench.errors import ConfigError
from bench.records import checked, read_json, write_atomically
from bench.report.rendering import template
from bench.speed.command import command_of, machine_of, progress_bar
from bench.speed.interleave import busy_s
from bench.speed.page import QUIET
from bench.speed.settings import HUGGING_FACE, settings_of

OURS, SCRIPTS, PACKED = "ours", "scripts", "scripts_per_core"
DESCRIPTIONS = {
    OURS: "bench train -m, one worker per core",
    SCRIPTS: "a script per cell, one after another, each with all cores",
    PACKED: "a script per cell, one per core, each with one thread",
}
TARGET = 1 / 3  # of the scripts' time, at most
DEFAULT_ROUNDS = "rounds=3"  # few, since a round takes half an hour
POLL_S = 0.02
OWN = ("rounds", "seed", "out")  # settings of the measurement; all others belong to the sweep


@checked
@dataclass(frozen=True)
class Round:
    """The wall time of each contender, and the share of the processors that other processes used."""

    seconds: dict[str, float]
    others_share: float


@checked
@dataclass(frozen=True)
class Measurement:
    """All rounds so far, as stored in `study.json`."""

    command: str
    started_at: str
    machine: dict[str, str]
    runs: int
    rounds: list[Round]

    def earlier(self, path: Path, n_rounds: int) -> "Measurement":
        """Return the unfinished measurement of the same command and commit at `path`, or else this one."""
        try:
            found = read_json(Measurement, path.read_bytes())
        except (OSError, ValueError):  # missing or damaged
            return self
        is_same = found._identity() == self._identity()
        return found if is_same and len(found.rounds) < n_rounds else self

    def _identity(self) -> tuple[str, dict[str, str]]:
        commit = self.machine["commit"].removesuffix("-dirty")  # which the tracked file itself causes
        return self.command, self.machine | {"commit": commit}


def main(overrides: Sequence[str]) -> int:
    """Measure in rounds and write after each.

    Returns:
        0; 130 if stopped: the finished rounds are kept, and the same command continues after them.

    Raises:
        ConfigError: the sweep is invalid, or no stock class trains like one of its strategies.
    """
    own = [word for word in overrides if word.partition("=")[0] in OWN]
    sweep = [word for word in overrides if word not in own]
    has_rounds = any(word.startswith("rounds=") for word in own)
    settings = settings_of(own if has_rounds else [*own, DEFAULT_ROUNDS])
    specs = compose_runs(sweep, multirun=True)
    refuse_several_studies(specs)
    peers = {spec.strategy: _peer(spec, settings.peers) for spec in specs}
    for spec in specs:
        prepare(spec)
    folder = Path(settings.out)
    found = Measurement(command_of(overrides), now(), machine_of(specs[0], None), len(specs), [])
    found = found.earlier(folder / "study.json", settings.rounds)
    n_done, n_steps = len(found.rounds), 1 + 2 * len(specs)
    if n_done:
        print(f"continuing after round {n_done}", flush=True)
    with interrupted_by_signals(), suppress(KeyboardInterrupt), progress_bar() as shown:
        bar = shown.add_task("", total=settings.rounds * n_steps, completed=n_done * n_steps)
        done = partial(shown.advance, bar)
        contenders: dict[str, Callable[[Path], None]] = {
            OURS: lambda place: _sweep(sweep, place, done),
            SCRIPTS: lambda place: _scripts(specs, peers, place, done, side_by_side=1),
            PACKED: lambda place: _scripts(specs, peers, place, done, side_by_side=os.cpu_count() or 1),
        }
        for i in range(n_done, settings.rounds):
            draw = random.Random(f"{settings.seed} {i}")  # noqa: S311 -- no secret
            found.rounds.append(_round(contenders, draw.sample(list(contenders), len(contenders))))
            _keep(found, folder)
        print(folder / "study.md")
        return 0
    return 130


def _keep(found: Measurement, folder: Path) -> None:
    """Write all rounds so far, and print the times of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "study.json", json.dumps(asdict(found), indent=1) + "\n")
    write_atomically(folder / "study.md", markdown(found))
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.rounds[-1].seconds.items())
    print(f"round {len(found.rounds)}: {times}", flush=True)


def _peer(spec: RunSpec, peers: Mapping[str, Sequence[str]]) -> str | None:
    """Return the stock class that trains like the run; None for a run without pretraining."""
    if spec.config["strategy"]["modality"] == "none":
        return None
    strategy = spec.strategy.partition("[")[0]
    named = [name for name in peers.get(strategy, ()) if name in HUGGING_FACE]
    if not named:
        known = ", ".join(sorted(peers))
        raise ConfigError(f"strategy={strategy}: no stock class trains like it; choose from {known}")
    return named[0]


def _round(contenders: Mapping[str, Callable[[Path], None]], order: Sequence[str]) -> Round:
    seconds = {}
    began, busy_before_s = time.monotonic(), _others_s()
    for name in order:
        with TemporaryDirectory(prefix="bench-speed-") as folder:
            started = time.monotonic()
            contenders[name](Path(folder))
            seconds[name] = time.monotonic() - started
    available_s = (time.monotonic() - began) * (os.cpu_count() or 1)
    return Round(seconds, max(0.0, _others_s() - busy_before_s) / available_s)


def _others_s() -> float:
    """Return the busy processor seconds of all processes but the finished children of this one."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy_s() - own.ru_utime - own.ru_stime


def _sweep(overrides: Sequence[str], folder: Path, done: Callable[[], None]) -> None:
    command = [sys.executable, "-m", "bench.cli", "train", "-m", *overrides, f"paths.experiments={folder}"]
    _run([command], folder, os.environ, 1, done)


def _scripts(
    specs: Sequence[RunSpec],
    peers: Mapping[str, str | None],
    folder: Path,
    done: Callable[[], None],
    *,
    side_by_side: int,
) -> None:
    commands = []
    for spec in specs:
        path = folder / f"{spec.run_id}.json"
        path.write_text(spec.to_json(), encoding="utf-8")
        arguments = [str(path), str(folder / spec.run_id), *filter(None, [peers[spec.strategy]])]
        commands.append([sys.executable, "-m", "bench.speed.script", *arguments])
    environment = dict(os.environ)
    if side_by_side > 1:
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    _run(commands, folder, environment, side_by_side, done)


def _run(
    commands: Sequence[Sequence[str]],
    folder: Path,
    environment: Mapping[str, str],
    side_by_side: int,
    done: Callable[[], None],
) -> None:
    """Run all commands to their end, `side_by_side` at a time, and call `done` after each.

    Raises:
        ConfigError: a command failed; the message holds the last line of its output.
    """
    waiting, running = list(commands), list[subprocess.Popen[bytes]]()
    log = folder / "log.txt"
    with log.open("wb") as file:
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    process = subprocess.Popen(waiting.pop(0), stdout=file, stderr=file, env=environment)
                    running.append(process)
                time.sleep(POLL_S)
                for process in [process for process in running if process.poll() is not None]:
                    running.remove(process)
                    done()
                    if process.returncode:
                        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                        raise ConfigError(
                            f"experiment: {' '.join(lines[-1:])}; run it by bench train -m first"
                        )
        finally:
            for process in running:
                process.kill()


# The page


def comparison(rounds: Sequence[Round]) -> View:
    """Return a table with one row per contender."""
    header = ["contender", "wall time of each round, s", "ours over it"]
    rows: list[list[Any]] = []
    for name, description in DESCRIPTIONS.items():
        seconds = ", ".join(f"{one.seconds[name]:.0f}" for one in rounds)
        ratios = ", ".join(f"{ratio:.2f}" for ratio in ratios_over(name, rounds))
        rows.append([description, seconds, EMPTY if name == OURS else ratios])
    return View("study", "A whole study", "", header, "lrr", rows)


def ratios_over(name: str, rounds: Sequence[Round]) -> list[float]:
    """Return our time over another's in each round."""
    return [one.seconds[OURS] / one.seconds[name] for one in rounds]


def verdict(rounds: Sequence[Round]) -> str:
    """Judge the target of a third of the sequential scripts' time; rounds that disagree leave it open."""
    within = [ratio <= TARGET for ratio in ratios_over(SCRIPTS, rounds)]
    return "met" if all(within) else "open" if any(within) else "missed"


def markdown(found: Measurement) -> str:
    """Return the page as Markdown."""
    opened = template("speed_study.md.j2", is_html=False, plain=markdown_escape, table=markdown_table)
    n_noisy = sum(one.others_share > QUIET for one in found.rounds)
    return opened.render(
        found=found, view=comparison(found.rounds), verdict=verdict(found.rounds), n_noisy=n_noisy
    )
