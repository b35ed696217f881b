"""Check all settings of a sweep before data are prepared. No torch, except for classes of the user's own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config.bounds import Checked, OptionError
from bench.config.build import build, find_class, find_options, listed_options, refuse_target
from bench.config.checks import check_first_step, validate
from bench.config.run_spec import RunSpec
from bench.config.schema import Config
from bench.data.corpora.base import Corpus, PairCorpus, TextCorpus

ROOMS = {"strategy": "bench.objectives", "task": "bench.tasks"}
CORPORA: dict[str, type[Corpus]] = {"text": TextCorpus, "pairs": PairCorpus}


def check_settings(specs: Sequence[RunSpec]) -> None:
    """Check every setting of every run, except those of the launcher, and look for the corpora.

    Raises:
        BenchError: A setting cannot work, or a corpus is not there; names the key as it is typed.
    """
    configs = [spec.typed() for spec in specs]
    seen: dict[str, Any] = {}  # runs of a sweep share most parts
    for config in configs:
        validate(config)
        check_first_step(config)
        for key, options in _parts(config, seen):
            if isinstance(options, Checked):
                _check_run(options, config, key)
    for config in configs:
        _find_corpora(config, seen)


def _check_run(options: Checked, config: Config, key: str) -> None:
    try:
        options.check_run(config)
    except OptionError as error:
        raise (error.moved(options.usual_key, key) if error.key else error) from None


def _parts(config: Config, seen: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the checked options of strategy, corpora and tasks by their keys."""
    nodes = {"strategy": config.strategy} | {f"corpus.{kind}": vars(config.corpus)[kind] for kind in CORPORA}
    nodes |= {f"task.{name}": node for name, node in config.task.items()}
    for key, node in nodes.items():
        text = f"{key} {json.dumps(node, sort_keys=True)}"
        if text not in seen:
            seen[text] = find_options(_options_class(key, node), node, key)
        yield key, seen[text]


def _options_class(key: str, node: Mapping[str, Any]) -> type[Any]:
    """Return the options of the class of a part, without torch if they are listed."""
    part, _, kind = key.partition(".")
    if part == "corpus":
        return find_class(node, CORPORA[kind], key).Options  # type: ignore[attr-defined]
    room = ROOMS[part]
    if listed := listed_options(node, room):
        return listed
    refuse_target(node, room, key)
    from bench.objectives.base import Objective
    from bench.tasks.base import Task

    base = Objective if part == "strategy" else Task
    return find_class(node, base, key).Options  # type: ignore[type-abstract, attr-defined]


def _find_corpora(config: Config, seen: dict[str, Any]) -> None:
    """Look for the content of both corpora; raise DataError if there is none."""
    for kind, base in CORPORA.items():
        node = vars(config.corpus)[kind]
        text = f"content of {kind} {json.dumps(node, sort_keys=True)}"
        if text not in seen:
            corpus = build(node, base, f"corpus.{kind}")
            corpus.keep_downloads_in(Path(config.paths.data))
            seen[text] = corpus.fingerprint()
