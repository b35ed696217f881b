"""The console script `bench`; it imports torch only when a run starts or a model is loaded."""

import argparse
import gc
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from bench.config.compose import compose_config, compose_evaluations, compose_runs
from bench.config.overrides import CONF, plain_settings
from bench.config.run_spec import RunSpec
from bench.errors import BenchError, ConfigError, printable
from bench.records import AuditCheck
from bench.sweep import status
from bench.sweep.sweep import launch, planned
from bench.sweep.validate import check_settings

EPILOG = """\
examples:
  bench train strategy=clm model=0.5m budget=1mb           one run
  bench train -m experiment=quickstart                     a study: strategies x sizes x budgets x seeds
  bench train -m strategy=mlm strategy.mask_rate=0.15,0.4  a sweep of your own (study=adhoc)
  bench status study=quickstart                            list runs: done, running, failed
  bench evaluate study=quickstart task=[qc_probe]          more tasks for finished runs
  bench audit experiment=quickstart                        check that the tasks measure something
  bench report study=quickstart                            tables, figures and page in reports/quickstart
  bench verify study=quickstart                            check that the report matches the records
  bench compare quickstart@HEAD~5 quickstart               differences in scores and settings
  bench advise task=ner data=4MB flops=1e13                recommend a strategy and a model
  bench scale gpus=[64] models=[1b] > plan.md               estimate hours, energy, memory (conf/scale.yaml)
  bench speed strategies=[clm] nanogpt=PATH                compare training steps (conf/speed.yaml)
  bench export run=0f67c5                                  write a folder that transformers loads
  bench fill model=exports/0f67c56e5297 text="Return the [MASK] of x."
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if a run failed or diverged, 2 for a config or data error, 130 if interrupted.
    """
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        return int(arguments.command(arguments))
    except BenchError as error:
        if arguments.traceback:
            traceback.print_exc()
        _complain(error)
        return 2
    except BrokenPipeError:  # `bench ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - so that the last flush is silent
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        if arguments.traceback:
            traceback.print_exc()
        what = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        _complain(f"{what}; free space or fix paths.* and run again")
        return 2
    except KeyboardInterrupt:
        _complain("stopped")
        return 130


def _complain(what: object) -> None:
    """Print one line on stderr, with control characters escaped."""
    print(f"bench: {printable(str(what))}", file=sys.stderr)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse flags and overrides in any order, which argparse alone does not allow."""
    flags = [word for word in argv if word.startswith("-")]
    words = [word for word in argv if not word.startswith("-")]
    return _parser().parse_args([*words[:1], *flags, *words[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Which pretraining strategy should I use? Controlled comparisons with measured verdicts.",
        epilog=EPILOG + "\n" + _choices(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        title="commands",
        required=True,
        metavar="{" + ",".join(name for name, _, _ in COMMANDS) + "}",
    )
    for name, function, text in COMMANDS:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=parser.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        command.add_argument("overrides", nargs="*", help="Hydra overrides: key=value, group=choice")
        command.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        if name == "train":
            command.add_argument("-m", "--multirun", action="store_true", help="sweep: a=1,2 and experiments")
            command.add_argument("--cfg", action="store_true", help="print the runs' configs and stop")
        if name == "compare":
            command.add_argument("--all", action="store_true", help="show every measure, not only headlines")
    return parser


def _choices() -> str:
    """List the config groups with their choices."""
    lines = ["choices:"]
    for folder in sorted(path for path in CONF.rglob("*") if path.is_dir()):
        stems = sorted(path.stem for path in folder.glob("*.yaml"))
        if stems:
            group = f"  {folder.relative_to(CONF).as_posix()}="
            lines += textwrap.wrap(
                " | ".join(stems),
                width=100,
                initial_indent=group,
                subsequent_indent=" " * len(group),
            )
    return "\n".join(lines)


def _train(arguments: argparse.Namespace) -> int:
    specs = compose_runs(arguments.overrides, multirun=arguments.multirun)
    if arguments.cfg:
        for spec in specs:
            print(f"# {spec.run_id}  {spec.label}\n{OmegaConf.to_yaml(OmegaConf.create(spec.config))}")
        return 0
    for line in planned(specs) if arguments.multirun else ():
        print(printable(line))
    return _do(specs)


def _do(specs: Sequence[RunSpec]) -> int:
    """Run what is left to do of these runs and return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)  # stop as Ctrl-C does: workers save
    statuses = launch(specs)
    status.print_outcome(specs, statuses)
    if "interrupted" in statuses.values():
        return 130
    return 0 if set(statuses.values()) <= {"finished", "busy", "queued"} else 1


def _evaluate(arguments: argparse.Namespace) -> int:
    specs = compose_evaluations(arguments.overrides)
    gone = [spec for spec in specs if spec.pending_tasks() and not spec.can_be_evaluated()]
    specs = [spec for spec in specs if spec not in gone]
    for spec in gone:
        _complain(f"{spec.label}: its weights are gone ({spec.weights})")
    if gone:
        _complain(f"{len(gone)} runs cannot be evaluated; `bench train` does them again")
    status = _do(specs) if specs else 2
    return status or (1 if gone else 0)


def _audit(arguments: argparse.Namespace) -> int:
    specs = compose_runs(arguments.overrides, multirun=True)
    check_settings(specs)
    from bench.tasks.audit import audit  # torch, for this command only

    def say(check: AuditCheck) -> None:
        print(printable(f"  {check.verdict:<14} {check.task}: {check.check}: {check.detail}"), flush=True)

    found = audit(specs, say)
    failed = sum(check.verdict == "failed" for check in found.checks)
    print(f"{len(found.checks)} checks, {failed} failed; report: bench report study={specs[0].study}")
    return 1 if failed else 0


def _report(arguments: argparse.Namespace) -> int:
    from bench.report import write  # scipy and matplotlib, for this command only

    gc.disable()  # records and tables live to the end; collecting garbage among them is slow
    print(write.main(compose_config("report", arguments.overrides)))
    gc.freeze()  # skip the collection at exit as well
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from bench.report import verify

    return verify.main(compose_config("report", arguments.overrides))


def _compare(arguments: argparse.Namespace) -> int:
    sides = [word for word in arguments.overrides if "=" not in word]
    given = plain_settings([w for w in arguments.overrides if "=" in w], to="", experiments_dir="experiments")
    if len(sides) != 2:
        raise ConfigError(
            f"compare takes two studies, not {len(sides)}; each NAME or NAME@REVISION: "
            "bench compare quickstart@HEAD~5 quickstart"
        )
    from bench.report import side_by_side  # scipy, for this command only

    to = Path(given["to"]) if given["to"] else None
    side_by_side.main(sides[0], sides[1], Path(given["experiments_dir"]), to=to, every=arguments.all)
    return 0


def _advise(arguments: argparse.Namespace) -> int:
    names = {"data": "", "flops": "", "study": "", "experiments_dir": "experiments"}
    given = plain_settings(arguments.overrides, task=None, **names)
    from bench.analysis.advise import advise  # scipy, for this command only

    folder = Path(given["experiments_dir"])
    found = advise(given["task"], given["data"], given["flops"], given["study"], folder)
    for warning in found.warnings:
        _complain(warning)
    for line in found.lines:
        print(printable(line))
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from bench.speed.scale import page  # torch, for this command only

    print(page(arguments.overrides), end="")
    return 0


def _speed(arguments: argparse.Namespace) -> int:
    from bench.speed import command, whole_study  # torch and matplotlib, for this command only

    is_study = any(word.startswith("experiment=") for word in arguments.overrides)
    status = (whole_study if is_study else command).main(arguments.overrides)
    if status == 130:
        _complain("stopped; what was measured is kept")
    return status


def _status(arguments: argparse.Namespace) -> int:
    status.main(compose_config("report", arguments.overrides))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    given = plain_settings(arguments.overrides, run=None, to="", experiments_dir="experiments")
    from bench.sweep.export import export_run  # torch and transformers, for these commands only

    to = Path(given["to"]) if given["to"] else None
    folder, auto = export_run(given["run"], to=to, experiments=Path(given["experiments_dir"]))
    print(f"{folder}\nload it by: transformers.{auto}.from_pretrained({str(folder)!r})")
    return 0


def _fill(arguments: argparse.Namespace) -> int:
    given = plain_settings(arguments.overrides, model=None, text=None, k="5")
    if not given["k"].isdecimal() or int(given["k"]) < 1:
        raise ConfigError(f"k={given['k']}: use a whole number, 1 or more")
    from bench.models.fill import fill

    for candidates in fill(Path(given["model"]), given["text"], int(given["k"])):
        print("\n".join(f"{c.probability:6.1%}  {c.token!r}" for c in candidates))
    return 0


COMMANDS: Sequence[tuple[str, Callable[[argparse.Namespace], int], str]] = (
    ("train", _train, "run one run, or with -m all unfinished runs of a sweep"),
    ("evaluate", _evaluate, "evaluate a study's finished runs on more tasks: study=NAME task=[A,B]"),
    ("audit", _audit, "check that tasks measure something, from chance level to ceiling: experiment=NAME"),
    ("report", _report, "rebuild the report of a study, or of all studies, from its records"),
    ("verify", _verify, "check that a study's report matches its records: study=NAME"),
    ("compare", _compare, "compare two studies, or two git revisions: A[@REV] B[@REV] [to=X.md|.html|.csv]"),
    ("advise", _advise, "recommend what to pretrain: task=NAME [data=2MB] [flops=1e13] [study=NAME]"),
    ("scale", _scale, "estimate the cost of a study on many GPUs: [models=[1b]] [gpus=[64]]"),
    (
        "speed",
        _speed,
        "time training steps against other implementations: [strategies=[clm]] [nanogpt=PATH]; "
        "or a whole study against Trainer scripts: experiment=NAME [rounds=2]",
    ),
    ("status", _status, "list the runs of a study, or all studies"),
    ("export", _export, "export a run's model to transformers: run=ID [to=DIR] [experiments_dir=DIR]"),
    ("fill", _fill, "fill in masked tokens: model=DIR text='... [MASK] ...' [k=5]"),
)


if __name__ == "__main__":
    sys.exit(main())
