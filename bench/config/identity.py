"""The identity of a run: a hash of the settings that could change its weights. No torch here.

Where a run happens, where its files lie, how it is logged and which tasks measure it are left out. A strategy
and a corpus count by the name of their YAML file and by their options, not by their class, so moving or
renaming a class changes no id. Runs that were recorded before this rule keep their ids; they are found by the
identity of their recorded settings. The ids of all committed runs, old and new:

    python -m bench.config.identity experiments > experiments/run_ids.csv
"""

import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.errors import ConfigError
from bench.records import CHOICE, PRETRAINING_ONLY, by_choice, read_records, studies

NOT_SCIENCE = (
    *("study", "task", "trainer", "energy", "logger", "callbacks", "launcher", "sweeper", "paths"),
    "tuned",  # its rates are in `optim`
)
_UNUSED = {"retries_on_divergence": 0, "warmup_tokens": None, "name": "adamw"}  # of `optim`; left out
_ACROSS = "attention_across_documents"
_NAMED = ("strategy", "corpus", "task")  # parts of a config whose classes follow from names
_TARGET = "_target_"


def science_of(config: Mapping[str, Any], strategy: str, corpus: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of a config that may change weights; it holds no class.

    Args:
        config: All settings of a run.
        strategy: The strategy as tables name it, such as `mlm[mask_rate=0.15]`.
        corpus: The YAML stem of each corpus, by kind.
    """
    trainer = config["trainer"]
    science = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    science["precision"] = trainer["precision"]
    # How often and on how much the loss is measured decides which losses the record's curve holds.
    science["validation"] = {key: trainer[key] for key in ("n_validations", "validation_batches")}
    # How a server is reached and paid does not change its answers.
    science["strategy"] = {key: value for key, value in config["strategy"].items() if key != "access"}
    # An unused setting changes nothing, and ids stay those of before the setting existed.
    optim = config["optim"].items()
    science["optim"] = {key: value for key, value in optim if key not in _UNUSED or value != _UNUSED[key]}
    # True is how rows have always been read; only text has such rows.
    if config.get(_ACROSS, True) or config["strategy"]["modality"] != "text":
        science.pop(_ACROSS, None)
    # Without pretraining, budget and optimizer cannot change the weights.
    is_pretrained = config["strategy"]["modality"] != "none"
    used = {key: value for key, value in science.items() if is_pretrained or key not in PRETRAINING_ONLY}
    return by_choice(used, strategy, corpus)


def identity_of(science: Mapping[str, Any]) -> str:
    """Return the id of a run with these settings."""
    text = json.dumps(science, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def known_ids(records_dir: Path) -> dict[str, str]:
    """Return the id under which each identity is recorded in a study; a finished run takes precedence."""
    records, _ = read_records(records_dir)
    records.sort(key=lambda record: record.status == "finished")
    return {identity_of(record.config): record.run_id for record in records}


def targets_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of every strategy, corpus and task of a config, by dotted key."""
    return {key: str(target) for part in _NAMED for key, target in _targets(config.get(part), part)}


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name == _TARGET:
            yield f"{key}.{name}", value
        else:
            yield from _targets(value, f"{key}.{name}")


def refuse_hidden(config: Mapping[str, Any], usual: Mapping[str, str]) -> None:
    """Refuse settings that an identity would not see: another class under a name of conf/.

    Args:
        config: All settings of a run.
        usual: `targets_of` the config without the values set on the command line.

    Raises:
        ConfigError: Names the key, and how to choose another class.
    """
    for key, target in targets_of(config).items():
        part, name, *_ = key.split(".")
        is_new_task = part == "task" and f"task.{name}.{_TARGET}" not in usual
        if usual.get(key) != target and not is_new_task:
            group = f"{part}/{name}" if part == "corpus" else part
            raise ConfigError(
                f"{key}={target!r}: a run's id would not show it; choose {group}=NAME, "
                f"or write a file of your own in conf/{group}"
            )
    for key, node in {"strategy": config["strategy"], **config["corpus"]}.items():
        if isinstance(node, Mapping) and CHOICE in node:
            where = key if key == "strategy" else f"corpus.{key}"
            raise ConfigError(f"{where}.{CHOICE}: this name is reserved; give the option another one")


def relocated(node: Any, usual: Any) -> Any:
    """Return recorded settings of a strategy or corpus with the classes of today.

    Args:
        node: The recorded settings.
        usual: The settings that its YAML file has today; a class that it does not name stays as recorded.
    """
    if not isinstance(node, dict):
        return node
    usual = usual if isinstance(usual, Mapping) else {}
    own = {key: relocated(value, usual.get(key)) for key, value in node.items() if key != CHOICE}
    return own | ({_TARGET: usual[_TARGET]} if _TARGET in usual else {})


def run_ids(experiments_dir: Path) -> Iterator[tuple[str, str, str]]:
    """Yield study, recorded id and identity of each record, in order."""
    for study in studies(experiments_dir):
        records, _ = read_records(experiments_dir / study / "records")
        yield from ((study, record.run_id, identity_of(record.config)) for record in records)


def main(experiments_dir: Path) -> None:
    """Print the table of recorded ids and identities as CSV."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("study", "old_id", "new_id"))
    table.writerows(run_ids(experiments_dir))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
