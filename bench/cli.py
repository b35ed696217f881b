"""The console script `bench`; it imports torch only when a run starts or a model is loaded."""

import argparse
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from typing_extensions import override

from bench.config.command_settings import split_settings
from bench.config.completion import described, listed, script, suggestions
from bench.config.compose import compose_config, compose_evaluations, compose_runs, refuse_several_studies
from bench.config.installation import version
from bench.config.overrides import SEARCH_PATH, plain_settings, refuse_flag, split_folders
from bench.config.run_spec import RunSpec
from bench.config.search_path import groups, searching
from bench.errors import BenchError, ConfigError, printable
from bench.records import AuditCheck
from bench.sweep import status
from bench.sweep.search import is_search, search
from bench.sweep.sweep import check, evaluable, launch, planned
from bench.sweep.validate import check_settings

ROOTS = {  # the root config of each command that takes Hydra's overrides
    **dict.fromkeys(("train", "evaluate", "audit", "plan", "tune"), "config"),
    **dict.fromkeys(("report", "verify", "status"), "report"),
    **{"scale": "scale", "speed": "speed"},
}
OWN = ("plan", "tune")  # commands with settings of their own, in conf/NAME.yaml
PLAIN: dict[str, dict[str, str | None]] = {  # settings of the other commands, None where one is required
    "compare": {"to": "", "experiments_dir": "experiments"},
    "advise": {"task": None, "data": "", "flops": "", "study": "", "experiments_dir": "experiments"},
    "export": {"run": None, "to": "", "experiments_dir": "experiments"},
    "fill": {"model": None, "text": None, "k": "5"},
}
EPILOG = """\
  bench train strategy=clm model=0.5m budget=1mb           one run
  bench train -m experiment=quickstart                     a study: strategies x sizes x budgets x seeds
  bench train -m strategy=mlm strategy.mask_rate=0.15,0.4  a sweep of your own (study=adhoc)
  bench train -m experiment=quickstart,aa --list           the runs of two studies, without starting them
  bench plan experiment=quickstart plan.pilot=quickstart   power and hours of a study, before its runs
  bench tune experiment=quickstart                         equal learning-rate search for all its strategies
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
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] in (["-sc"], ["--shell-completion"]):
            return _complete(words[1:])
        arguments = _parse(words)
        with searching(_folders(arguments)):
            return int(arguments.command(arguments))
    except BenchError as error:
        if "--traceback" in words:
            traceback.print_exc()
        _complain(error)
        return 2
    except BrokenPipeError:  # `bench ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - so that the last flush is silent
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        if "--traceback" in words:
            traceback.print_exc()
        what = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        _complain(f"{what}; free space or fix paths.* and run again")
        return 2
    except KeyboardInterrupt:
        _complain("stopped")
        return 130


def _complete(words: Sequence[str]) -> int:
    """Print the completion script of a shell, or what can follow the command line in COMP_LINE."""
    shell = words[0].removeprefix("install=") if words else ""
    if not shell.startswith("query="):
        print(script(shell), end="")
        return 0
    *before, word = os.environ.get("COMP_LINE", "").split(" ")[1:] or [""]
    before = [other for other in before if other]
    if not before:
        found = [f"{name} " for name, _, _ in COMMANDS if name.startswith(word)]
    elif before[0] in PLAIN:
        found = [f"{key}=" for key in PLAIN[before[0]] if key.startswith(word)]
    else:
        found = suggestions(before[1:], word, ROOTS.get(before[0], "config"))
        found += suggestions([], word, before[0]) if before[0] in OWN else []
    print("\n".join(found))
    return 0


def _folders(arguments: argparse.Namespace) -> list[str]:
    """Return the folders of --config-dir and hydra.searchpath; the former become the latter, for records."""
    for folder in arguments.config_dir:
        quoted = folder.replace("\\", "\\\\").replace("'", "\\'")
        arguments.overrides.append(f"{SEARCH_PATH}=['{quoted}']")
    return split_folders(arguments.overrides)[0]


def _complain(what: object) -> None:
    """Print one line on stderr, with control characters escaped."""
    print(f"bench: {printable(str(what))}", file=sys.stderr)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse flags and overrides in any order, which argparse alone does not allow."""
    joined = _joined(argv)
    flags = [word for word in joined if word.startswith("-")]
    words = [word for word in joined if not word.startswith("-")]
    for flag in flags:
        refuse_flag(flag)
    return _parser().parse_args([*words[:1], *flags, *words[1:]])


def _joined(argv: Sequence[str]) -> list[str]:
    """Join a flag with its value: `--config-dir DIR` and `--cfg job`."""
    joined: list[str] = []
    for word in argv:
        last = joined[-1] if joined else ""
        if last in ("--config-dir", "-cd"):
            joined[-1] = f"--config-dir={word}"
        elif last in ("--cfg", "-c") and word in ("job", "hydra", "all"):
            joined[-1] = f"--cfg={word}"
        else:
            joined.append(word)
    return ["--cfg=job" if word in ("--cfg", "-c") else word for word in joined]


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with what its command takes, which is looked up only for that help."""

    def format_help(self) -> str:
        """Return the help, with examples, choices and settings of the command."""
        name = self.prog.partition(" ")[2]
        lines = [line for line in EPILOG.splitlines() if line.startswith(f"  bench {name}".rstrip())]
        self.epilog = "\n".join(["examples:", *lines])
        if name in ROOTS:
            self.epilog += "\n" + (described(name) + "\n" if name in OWN else "") + described(ROOTS[name])
        elif name in PLAIN:
            keys = (f"  {key}={'' if value is None else value}" for key, value in PLAIN[name].items())
            self.epilog += "\n" + "\n".join(["settings:", *keys])
        else:
            self.epilog += (
                "\n" + listed(groups()) + "\n`bench COMMAND --help` shows the settings of a command."
            )
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bench",
        description="Which pretraining strategy should I use? Controlled comparisons with measured verdicts.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and stop")
    commands = parser.add_subparsers(
        title="commands",
        required=True,
        metavar="{" + ",".join(name for name, _, _ in COMMANDS) + "}",
    )
    for name, function, text in COMMANDS:
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(command=function, config_dir=[])
        command.add_argument("overrides", nargs="*", help="Hydra overrides: key=value, group=choice")
        command.add_argument("--traceback", action="store_true", help="show the traceback of an error")
        if name in ROOTS:
            command.add_argument(
                *("--config-dir", "-cd"), action="append", metavar="DIR", help="add YAML files of your own"
            )
        if name == "train":
            command.add_argument("-m", "--multirun", action="store_true", help="sweep: a=1,2 and experiments")
            command.add_argument("--cfg", metavar="job", help="print the runs' configs and stop")
            command.add_argument("--resolve", action="store_true", help="with --cfg, which always resolves")
            command.add_argument("--list", action="store_true", help="print one line per run and stop")
        if name == "compare":
            command.add_argument("--all", action="store_true", help="show every measure, not only headlines")
    return parser


class _ShowVersion(argparse.Action):
    """Print the version; argparse's own action would call git for every command."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"bench {version()}")
        parser.exit()


def _train(arguments: argparse.Namespace) -> int:
    if arguments.cfg not in (None, "job"):
        raise ConfigError(f"--cfg {arguments.cfg}: only the settings of runs are used; write --cfg job")
    if arguments.resolve and not arguments.cfg:
        raise ConfigError("--resolve belongs to --cfg, which prints resolved values; add --cfg")
    if is_search(arguments.overrides):
        return _search(arguments)
    specs = compose_runs(arguments.overrides, multirun=arguments.multirun)
    if arguments.cfg:
        for spec in specs:
            print(f"# {spec.run_id}  {spec.label}\n{OmegaConf.to_yaml(OmegaConf.create(spec.config))}")
        return 0
    if arguments.list:
        print("\n".join(map(printable, status.listing(specs))))
        return 0
    return _train_studies(specs, with_claims=arguments.multirun)


def _search(arguments: argparse.Namespace) -> int:
    """Do an exploratory search and print each trial, and the best one."""
    if not arguments.multirun:
        raise ConfigError("sweeper=optuna runs several trials: add -m")
    if arguments.cfg or arguments.list:
        raise ConfigError(
            "sweeper=optuna: its runs are not known before they are proposed; leave out --cfg, --list"
        )
    _stop_as_by_ctrl_c()
    ended = []
    for trial in search(arguments.overrides):
        ended.append(trial)
        value = "no result" if trial.value is None else f"{trial.value:.6g}"
        print(printable(f"trial {len(ended)}: {value}  {trial.label}"), flush=True)
    done = [(trial.value, trial.label) for trial in ended if trial.value is not None]
    if done:
        print(printable(f"best: {min(done)[0]:.6g}  {min(done)[1]} (exploratory; lower is better)"))
    return 0 if done else 1


def _stop_as_by_ctrl_c() -> None:
    """Stop at a signal as at Ctrl-C, so that workers save; a background shell has SIGINT ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _train_studies(specs: Sequence[RunSpec], *, with_claims: bool) -> int:
    """Run one study after the other, each by the launcher of its own settings."""
    names = dict.fromkeys(spec.study for spec in specs)
    studies = [[spec for spec in specs if spec.study == name] for name in names]
    for runs in studies if len(studies) > 1 else ():
        check(runs)  # a mistake in the second study is found before the first has taken hours
    worst = 0
    for runs in studies:
        for line in planned(runs) if with_claims else ():
            print(printable(line))
        code = _do(runs)
        if code == 130:
            return code
        worst = max(worst, code)
    return worst


def _do(specs: Sequence[RunSpec]) -> int:
    """Run what is left to do of these runs and return the exit code."""
    _stop_as_by_ctrl_c()
    statuses = launch(specs)
    status.print_outcome(specs, statuses)
    if "interrupted" in statuses.values():
        return 130
    return 0 if set(statuses.values()) <= {"finished", "busy", "queued"} else 1


def _evaluate(arguments: argparse.Namespace) -> int:
    specs, gone = evaluable(compose_evaluations(arguments.overrides))
    for spec in gone:
        _complain(f"{spec.label}: its weights are gone ({spec.weights})")
    if gone:
        _complain(f"{len(gone)} runs cannot be evaluated; `bench train` does them again")
    status = _do(specs) if specs else 2
    return status or (1 if gone else 0)


def _audit(arguments: argparse.Namespace) -> int:
    specs = compose_runs(arguments.overrides, multirun=True)
    refuse_several_studies(specs)
    check_settings(specs)
    from bench.tasks.audit import audit  # torch, for this command only

    def say(check: AuditCheck) -> None:
        print(printable(f"  {check.verdict:<14} {check.task}: {check.check}: {check.detail}"), flush=True)

    found = audit(specs, say)
    failed = sum(check.verdict == "failed" for check in found.checks)
    print(f"{len(found.checks)} checks, {failed} failed; report: bench report study={specs[0].study}")
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> int:
    from bench.sweep.plan import Plan, lines  # scipy, for this command only

    settings, words = split_settings("plan", Plan, arguments.overrides)
    print("\n".join(map(printable, lines(words, settings))))
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    from bench.sweep.tune import Tune, table, tune

    settings, words = split_settings("tune", Tune, arguments.overrides)
    _stop_as_by_ctrl_c()
    choices = tune(words, settings, lambda line: print(printable(line), flush=True))
    print("\n".join(map(printable, table(choices))))
    return 0


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
    given = plain_settings([w for w in arguments.overrides if "=" in w], **PLAIN["compare"])
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
    given = plain_settings(arguments.overrides, **PLAIN["advise"])
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
    given = plain_settings(arguments.overrides, **PLAIN["export"])
    from bench.sweep.export import export_run  # torch and transformers, for these commands only

    to = Path(given["to"]) if given["to"] else None
    folder, auto = export_run(given["run"], to=to, experiments=Path(given["experiments_dir"]))
    print(f"{folder}\nload it by: transformers.{auto}.from_pretrained({str(folder)!r})")
    return 0


def _fill(arguments: argparse.Namespace) -> int:
    given = plain_settings(arguments.overrides, **PLAIN["fill"])
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
    ("plan", _plan, "power and cost of a study, before its runs: experiment=NAME [plan.pilot=STUDY]"),
    ("tune", _tune, "choose each strategy's learning rate by an equal search: experiment=NAME"),
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
