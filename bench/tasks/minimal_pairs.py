"""Minimal pairs: is a grammatical sentence likelier than its ungrammatical twin? (BLiMP, arXiv:1912.00582)

Any JSONL file in BLiMP's format, or a folder of them (its 67 phenomena); without a path, pairs made of
held-out sentences of the run's own text corpus by the rules of `bench.tasks.corruptions`. Ties count a half.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from tokenizers import Tokenizer

from bench.data.shards import TextData
from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.corruptions import Pair, corrupted, sentences
from bench.tasks.likelihood_ranking import (
    Continuation,
    LikelihoodOptions,
    continuation_nats,
    normalised,
    require_positive,
)

MOST_TOKENS = 2_000_000  # of the test split; a large corpus need not be read whole
N_SHOWN = 5  # pairs of each outcome among the samples


class MinimalPairs(Task):
    """Accuracy over all pairs, then by phenomenon."""

    @dataclass(frozen=True)
    class Options(LikelihoodOptions):
        """Which pairs, and what makes a sentence the likelier."""

        path: str | None = MISSING  # BLiMP-format JSONL, or a folder of them; null: of the text corpus
        pairs_per_uid: int = MISSING  # at most, of each phenomenon; spread evenly over its pairs

        def __post_init__(self) -> None:
            super().__post_init__()
            require_positive(self, "pairs_per_uid")

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Share of pairs whose good sentence has fewer nats, by the declared likelihood and normalisation.

        Sentences longer than the model reads are counted, never cut: what differs could be cut off.
        """
        pairs, good, bad, counts = self._encoded(setting)
        # Pairs of equal lengths first: both sentences then have a bound's draws in common.
        order = sorted(range(len(pairs)), key=lambda i: (len(good[i]) != len(bad[i]), len(good[i]), i))
        nats = [continuation_nats(model, side, self.options, setting, order=order) for side in (good, bad)]
        return self._outcome(pairs, good, bad, nats, counts)

    def ceiling(self, setting: Setting) -> Outcome:
        """Only the bad sentences surprise."""
        pairs, good, bad, counts = self._encoded(setting)
        return self._outcome(pairs, good, bad, [np.zeros(len(pairs)), np.ones(len(pairs))], counts)

    def pairs(self, setting: Setting) -> list[Pair]:
        """All there are, in a fixed order."""
        if self.options.path is not None:
            return read_blimp(Path(self.options.path).expanduser())
        found = list(corrupted(held_out_sentences(setting.text)))
        if not found:
            raise DataError(
                "task.*.path=null: the text corpus' test split has no sentence to corrupt; give a BLiMP file"
            )
        return found

    def _encoded(
        self, setting: Setting
    ) -> tuple[list[Pair], list[Continuation], list[Continuation], Mapping[str, int]]:
        drawn = _spread(self.pairs(setting), self.options.pairs_per_uid)
        encoded = [
            (pair, _sentence(pair.good, setting.tokenizer), _sentence(pair.bad, setting.tokenizer))
            for pair in drawn
        ]
        kept = [item for item in encoded if max(len(item[1]), len(item[2])) <= setting.sequence_length]
        if not kept:
            raise DataError(f"no pair fits in sequence_length={setting.sequence_length} tokens; raise it")
        counts = Counter({"sentence longer than sequence_length": len(encoded) - len(kept)})
        return [item[0] for item in kept], [item[1] for item in kept], [item[2] for item in kept], +counts

    def _outcome(
        self,
        pairs: Sequence[Pair],
        good: Sequence[Continuation],
        bad: Sequence[Continuation],
        nats: Sequence[NDArray[np.float64]],
        counts: Mapping[str, int],
    ) -> Outcome:
        how = self.options.length_normalisation
        margin = normalised(nats[1], bad, how) - normalised(nats[0], good, how)  # (N,)
        right = (np.sign(margin.round(5)) + 1) / 2  # a tie is a half
        items = {self._metric(): right}
        for uid in sorted({pair.uid for pair in pairs if pair.uid is not None}):
            items[self._metric(uid)] = right[[pair.uid == uid for pair in pairs]]
        scores = [Measured(name, float(found.mean()), 0.5, len(found)) for name, found in items.items()]
        return Outcome(scores, items, counts, _shown(pairs, margin))

    def _metric(self, uid: str | None = None) -> str:
        return f"accuracy_{self.options.kind}" + (f"_{uid}" if uid else "")


def read_blimp(path: Path) -> list[Pair]:
    """Pairs of a JSONL file in BLiMP's format, or of all `*.jsonl` of a folder, by name.

    `sentence_good` and `sentence_bad` are needed; `UID`, or else `field`, names the phenomenon; other fields
    (`linguistics_term`, `pairID`, ...) are let be.

    Raises:
        ConfigError: nothing there.
        DataError: a line that is no such pair; names file and line.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"task.*.path={path}: no JSONL file there; give a BLiMP-format file or folder")
    found = [pair for file in files for pair in _read_file(file)]
    if not found:
        raise DataError(f"{path}: no pairs; give a JSON object a line with sentence_good and sentence_bad")
    return found


def _read_file(file: Path) -> Iterator[Pair]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; convert it") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _read_line(line, f"{file}, line {number}")


def _read_line(line: str, where: str) -> Pair:
    row: Any
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); correct it") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object; give sentence_good and sentence_bad")
    values: dict[str, Any] = row
    for key in ("sentence_good", "sentence_bad"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise DataError(f"{where}: {key!r} is no text; BLiMP has sentence_good and sentence_bad")
    if values["sentence_good"] == values["sentence_bad"]:
        raise DataError(f"{where}: both sentences are the same; correct or remove it")
    uid = values.get("UID", values.get("field"))
    if uid is not None and not (isinstance(uid, str) and uid.strip()):
        raise DataError(f"{where}: 'UID' is no name; give a text or leave it out")
    return Pair(values["sentence_good"], values["sentence_bad"], uid)


def held_out_sentences(text: TextData) -> list[str]:
    """Sentences of the test split, each once, in the order of its documents, which are shuffled."""
    split = text.test()
    ids = split.read(0, min(split.n_tokens, MOST_TOKENS))
    documents = [part[part != EOS].tolist() for part in np.split(ids, np.flatnonzero(ids == EOS) + 1)]
    decoded = text.tokenizer().decode_batch(documents, skip_special_tokens=False)
    return list(dict.fromkeys(sentence for document in decoded for sentence in sentences(document)))


def _spread(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most so many of each phenomenon, spread evenly over its pairs; in the order that they have."""
    totals, seen, kept = Counter(pair.uid for pair in pairs), Counter[str | None](), []
    for pair in pairs:
        i, n = seen[pair.uid], totals[pair.uid]
        seen[pair.uid] += 1
        if n <= most or (i + 1) * most // n > i * most // n:
            kept.append(pair)
    return kept


def _sentence(text: str, tokenizer: Tokenizer) -> Continuation:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return Continuation((), tuple(ids), len(text.encode()))


def _shown(pairs: Sequence[Pair], margin: NDArray[np.float64]) -> list[dict[str, str]]:
    """The surest hits and the worst misses."""
    order = np.argsort(margin, kind="stable")
    chosen = dict.fromkeys([*order[::-1][:N_SHOWN].tolist(), *order[:N_SHOWN].tolist()])
    return [
        {
            "phenomenon": pairs[i].uid or "",
            "good": pairs[i].good,
            "bad": pairs[i].bad,
            "margin in nats, normalised": f"{margin[i]:+.3f}",
        }
        for i in chosen
    ]
