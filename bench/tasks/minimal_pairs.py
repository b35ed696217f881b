"""Minimal pairs: is a grammatical sentence likelier than its ungrammatical twin? (BLiMP, arXiv:1912.00582)

Reads any JSONL file in BLiMP's format, or a folder of them (its 67 phenomena). Without a path, pairs are made
from held-out sentences of the run's own text corpus, by rules that put one error into a sentence. The rules
cover those phenomena of BLiMP (sec. 3) that surface patterns can break reliably, without a parser: each rule
checks more context than it changes, and skips a sentence where the result might be grammatical ("if the array
were"; "the data are"; "an LSTM"). Ties count one half.
Shapes: N pairs.
"""

import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import SchemaValidator, ValidationError, core_schema
from typing_extensions import override

from bench.data.json_text import JsonError, parse_json
from bench.data.shards import TextData
from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import byte_ngrams, text_nats
from bench.tasks.likelihood import (
    Continuation,
    continuation_nll,
    normalised,
    whole_text,
)
from bench.tasks.options import MinimalPairsOptions

MOST_TOKENS = 2_000_000  # read from the test split, of which a large corpus has more than enough
N_SAMPLES = 5  # pairs with the largest and with the smallest margin, each

# Rules that corrupt sentences

MIN_WORDS, MAX_WORDS = 5, 25
# Words, whole numbers and commas with a full stop at the end: neither code nor markup.
SENTENCE = re.compile(r"[A-Z][a-z]*(?:[,;:]? (?:[A-Za-z]+(?:[-'][A-Za-z]+)*|\d+))+\.")
BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n")
# Subjects that may take either form of the verb, or whose usage varies.
EITHER = (
    "data|media|series|species|majority|minority|rest|remainder|number|set|group|family|team|pair|couple|variety"
    "|range|half|lot|crowd|police|staff|government|committee|public|company|audience|jury|press|people|statistics"
    "|mathematics|physics|news|men|women|children|feet|criteria|phenomena|following|former|latter|same|other"
    "|others|above|first|last|only|most|few|poor|rich|young|old|dead|wounded|british|french|english"
)
NOUN = rf"(?!(?:{EITHER})\b)[a-z]{{3,}}"
SINGULAR = rf"{NOUN}(?<!s)"
PLURAL = rf"{NOUN}(?<![siu])s"
OF_ONE = "[Tt]his|[Tt]hat|[Tt]he|[Aa]n?|[Ee]ach|[Ee]very"
OF_MANY = "[Tt]hese|[Tt]hose|[Tt]he|[Aa]ll|[Bb]oth|[Mm]any|[Ss]everal"
# Words after which the verb may be a subjunctive or an infinitive, or the noun part of a longer subject.
ELSEWHERE = re.compile(
    r"\b(?:if|If|wish\w*|though|unless|whether|lest|do|does|did|and|or|nor|Let|let|makes?|than)\b"
)
THIRD_PERSON = (
    "returns|computes|creates|takes|uses|provides|contains|allows|makes|gives|raises|represents|implements|holds"
    "|accepts|performs|applies|calculates|converts|finds|generates|works|requires|supports|stores|defines"
)
THINGS = (
    "function|method|class|module|object|attribute|argument|parameter|option|routine|property|value|array|matrix"
    "|vector|algorithm|example|operation|package|program|man|woman|book|day|year|country|bill|law|house|work"
    "|world|country|nation|report|plan|problem|question|story|city|time|war|money|school|state|way"
)
CONSONANT = "[bcdfgjklmnpqrstvwz]"
NO_NOUN = r"(?:times|plus|to|not|from|for|may|must|can|will|with|where|when|which|that|the|has|was|were)\b"
BEFORE_NOUN = "in|of|for|to|from|with|by|on|at|into|over|as|under|between|through|that"


@dataclass(frozen=True)
class Pair:
    """A grammatical sentence and its ungrammatical twin; `uid` names the paradigm, if it has a name.

    `groups` are wider: BLiMP's field (syntax) and phenomenon (island effects).
    """

    good: str
    bad: str
    uid: str | None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Replace the first match of `pattern` in a sentence by `error`.

    `error` refers to the pattern's groups as in `re.sub`. The rule does not apply if `unless` matches before.
    """

    uid: str
    pattern: re.Pattern[str]
    error: str
    unless: re.Pattern[str] | None = None

    def breaks(self, sentence: str) -> str | None:
        """Return the sentence with the error; None where the rule does not apply."""
        found = self.pattern.search(sentence)
        if found is None or (self.unless and self.unless.search(sentence[: found.start()])):
            return None
        return sentence[: found.start()] + found.expand(self.error) + sentence[found.end() :]


def agreement(singular: str, plural: str, uid: str = "subject_verb_agreement_auxiliary") -> list[Rule]:
    """Give a verb the wrong number, directly after a pronoun, or after a determiner and a noun."""
    one = re.compile(rf"\b({OF_ONE}) ({SINGULAR}) {singular}\b")
    many = re.compile(rf"\b({OF_MANY}) ({PLURAL}) {plural}\b")
    return [
        Rule(uid, one, rf"\1 \2 {plural}", ELSEWHERE),
        Rule(uid, many, rf"\1 \2 {singular}", ELSEWHERE),
        Rule(uid, re.compile(rf"\b([Ii]t|[Hh]e|[Ss]he) {singular}\b"), rf"\1 {plural}", ELSEWHERE),
        Rule(uid, re.compile(rf"\b([Tt]hey|[Ww]e) {plural}\b"), rf"\1 {singular}", ELSEWHERE),
    ]


def _third_person() -> list[Rule]:
    """Turn "This function returns" into "This function return"."""
    rules = []
    for verb in THIRD_PERSON.split("|"):
        plural = verb.removesuffix("ies") + "y" if verb.endswith("ies") else verb.removesuffix("s")
        pattern = re.compile(rf"\b([Tt]his|[Tt]he) ({THINGS}) {verb}\b")
        rules.append(Rule("subject_verb_agreement_verb", pattern, rf"\1 \2 {plural}", ELSEWHERE))
    return rules


RULES = [
    *agreement("is", "are"),
    *agreement("was", "were"),
    *agreement("has", "have"),
    *_third_person(),
    # The article depends on the sound, so u, h, y, eu, one and single letters are left out.
    Rule("article_a_an", re.compile(r"(^A|\ba)n (?=[aeio][a-z]{2})(?!eu|one|once)"), r"\1 "),
    Rule("article_a_an", re.compile(rf"(^A|\ba) (?={CONSONANT}[aeioulr][a-z])(?!{NO_NOUN})"), r"\1n "),
    Rule("determiner_noun_agreement", re.compile(rf"\b([Tt])his (?={THINGS}\b)(?!\w+ \w+s\b)"), r"\1hese "),
    Rule("determiner_noun_agreement", re.compile(rf"\b([Tt])hese (?=(?:{THINGS})s\b)"), r"\1his "),
    # "of the array" -> "of array the": a determiner cannot follow its noun there.
    Rule(
        "word_order_determiner_noun",
        re.compile(
            rf"\b({BEFORE_NOUN}) (the|an?|this|these) ([a-z]{{3,}})"
            rf"(?=[,.]| (?:{BEFORE_NOUN}|is|are|was|were)\b)"
        ),
        r"\1 \3 \2",
    ),
]


def sentences(document: str) -> Iterator[str]:
    """Yield complete sentences of plain words, in order; lines within a paragraph are joined.

    >>> list(sentences("See x[0].\\nThe array is\\n read here. A."))
    ['The array is read here.']
    """
    for piece in BREAK.split(document):
        sentence = " ".join(piece.split())
        if MIN_WORDS <= sentence.count(" ") + 1 <= MAX_WORDS and SENTENCE.fullmatch(sentence):
            yield sentence


def corrupted(good: Iterable[str]) -> Iterator[Pair]:
    """Yield all pairs that the rules make, sentence by sentence, rule by rule."""
    for sentence in good:
        done: set[str] = set()
        for rule in RULES:
            bad = None if rule.uid in done else rule.breaks(sentence)
            if bad is not None:
                done.add(rule.uid)
                yield Pair(sentence, bad, rule.uid)


# The task


class MinimalPairs(Task):
    """Measure the accuracy over all pairs, then by phenomenon."""

    Options = MinimalPairsOptions
    options: MinimalPairsOptions

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the share of pairs whose good sentence has the higher likelihood, normalised by length.

        Pairs with a sentence longer than the model reads are counted and left out, since cutting the sentence
        might remove the error.
        """
        pairs, good, bad, counts = self._encoded(setting)
        # Pairs of equal lengths first, so that both sentences share the random draws of a bound.
        order = sorted(range(len(pairs)), key=lambda i: (len(good[i]) != len(bad[i]), len(good[i]), i))
        nll = [continuation_nll(model, side, self.options, setting, order=order) for side in (good, bad)]
        return self._outcome(pairs, good, bad, nll, counts)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of an n-gram model of the training text."""
        pairs, good, bad, counts = self._encoded(setting)
        ngrams = byte_ngrams(setting)
        nll = [
            text_nats(ngrams, [("", text) for text in side])
            for side in zip(*((p.good, p.bad) for p in pairs), strict=True)
        ]
        return self._outcome(pairs, good, bad, nll, counts)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        pairs, good, bad, counts = self._encoded(setting)
        return self._outcome(pairs, good, bad, [np.zeros(len(pairs)), np.ones(len(pairs))], counts)

    def pairs(self, setting: Setting) -> list[Pair]:
        """Return all pairs, in a fixed order."""
        if self.options.path is not None:
            return read_blimp(Path(self.options.path).expanduser())
        found = list(corrupted(held_out_sentences(setting.text)))
        if not found:
            raise DataError(
                "task.*.path=null: no sentence of the text corpus' test split fits a rule; give a BLiMP file"
            )
        return found

    def _encoded(
        self, setting: Setting
    ) -> tuple[list[Pair], list[Continuation], list[Continuation], Mapping[str, int]]:
        found = self.pairs(setting)
        distinct = [pair for pair in found if pair.good != pair.bad]
        drawn = _spread(distinct, self.options.pairs_per_uid)
        encoded = [
            (pair, whole_text(pair.good, setting.tokenizer), whole_text(pair.bad, setting.tokenizer))
            for pair in drawn
        ]
        kept = [item for item in encoded if max(len(item[1]), len(item[2])) <= setting.sequence_length]
        if not kept:
            raise DataError(f"no pair fits in sequence_length={setting.sequence_length} tokens; raise it")
        counts = Counter(
            {
                "pair of two equal sentences": len(found) - len(distinct),  # BLiMP has a few
                "sentence longer than sequence_length": len(encoded) - len(kept),
            }
        )
        return [item[0] for item in kept], [item[1] for item in kept], [item[2] for item in kept], +counts

    def _outcome(
        self,
        pairs: Sequence[Pair],
        good: Sequence[Continuation],
        bad: Sequence[Continuation],
        nll: Sequence[NDArray[np.float64]],
        counts: Mapping[str, int],
    ) -> Outcome:
        how = self.options.length_normalisation
        margin = normalised(nll[1], bad, how) - normalised(nll[0], good, how)  # (N,)
        right = (np.sign(margin.round(5)) + 1) / 2  # a tie is a half
        items = {self._metric(): right}
        for group in sorted({group for pair in pairs for group in pair.groups}):
            items[self._metric(group)] = right[[group in pair.groups for pair in pairs]]
        for uid in sorted({pair.uid for pair in pairs if pair.uid is not None}):
            items[self._metric(uid)] = right[[pair.uid == uid for pair in pairs]]
        scores = [Measured(name, float(found.mean()), 0.5, len(found)) for name, found in items.items()]
        return Outcome(scores, items, counts, _samples(pairs, margin))

    def _metric(self, group: str | None = None) -> str:
        return f"accuracy_{self.options.kind}" + (f"_{group}" if group else "")


def read_blimp(path: Path) -> list[Pair]:
    """Read the pairs of a JSONL file in BLiMP's format, or of all `*.jsonl` files of a folder, by name.

    `sentence_good` and `sentence_bad` are required; `UID`, or else `field`, names the phenomenon; other
    fields (`linguistics_term`, `pairID`, ...) are ignored.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"task.*.path={path}: no JSONL file there; give a BLiMP-format file or folder")
    found = [pair for file in files for pair in _read_file(file)]
    if not found:
        raise DataError(f"{path}: no pairs; give a JSON object a line with sentence_good and sentence_bad")
    return found


_TEXT = core_schema.str_schema(strict=True, pattern=r"\S")  # not blank
_ROW = SchemaValidator(
    core_schema.typed_dict_schema(
        {
            "sentence_good": core_schema.typed_dict_field(_TEXT, required=True),
            "sentence_bad": core_schema.typed_dict_field(_TEXT, required=True),
            "UID": core_schema.typed_dict_field(core_schema.nullable_schema(_TEXT), required=False),
            "field": core_schema.typed_dict_field(core_schema.nullable_schema(_TEXT), required=False),
            "linguistics_term": core_schema.typed_dict_field(
                core_schema.nullable_schema(_TEXT), required=False
            ),
        }
    )
)


def _read_file(file: Path) -> Iterator[Pair]:
    for number, line in enumerate(re.split(b"\r\n|\r|\n", file.read_bytes()), start=1):
        if not line.removeprefix(BOM_UTF8).strip():
            continue
        try:
            parse_json(line)
            row = _ROW.validate_json(line.removeprefix(BOM_UTF8))
        except JsonError as error:
            raise DataError(
                f"{file}, line {number}: {error}; give an object with sentence_good and sentence_bad"
            ) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = ": ".join([*map(repr, first["loc"]), first["msg"]])
            raise DataError(
                f"{file}, line {number}: {problem}; give an object with sentence_good and sentence_bad"
            ) from None
        yield pair_of(row)


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return the pair in a row of BLiMP."""
    wider = (row.get("field"), row.get("linguistics_term")) if row.get("UID") else ()
    groups = tuple(dict.fromkeys(str(name) for name in wider if name))
    return Pair(row["sentence_good"], row["sentence_bad"], row.get("UID", row.get("field")), groups)


def held_out_sentences(text: TextData) -> list[str]:
    """Return the distinct sentences of the test split, in the order of its documents, which are shuffled."""
    split = text.test()
    ids = split.read(0, min(split.n_tokens, MOST_TOKENS))
    documents = [part[part != EOS].tolist() for part in np.split(ids, np.flatnonzero(ids == EOS) + 1)]
    decoded = text.tokenizer().decode_batch(documents, skip_special_tokens=False)
    return list(dict.fromkeys(sentence for document in decoded for sentence in sentences(document)))


def _spread(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Keep at most so many pairs of each phenomenon, spread evenly, in their order."""
    totals, seen, kept = Counter(pair.uid for pair in pairs), Counter[str | None](), []
    for pair in pairs:
        i, n = seen[pair.uid], totals[pair.uid]
        seen[pair.uid] += 1
        if n <= most or (i + 1) * most // n > i * most // n:
            kept.append(pair)
    return kept


def _samples(pairs: Sequence[Pair], margin: NDArray[np.float64]) -> list[dict[str, str]]:
    """Return the pairs with the largest and with the smallest margin."""
    order = np.argsort(margin, kind="stable")
    chosen = dict.fromkeys([*order[::-1][:N_SAMPLES].tolist(), *order[:N_SAMPLES].tolist()])
    return [
        {
            "phenomenon": pairs[i].uid or "",
            "good": pairs[i].good,
            "bad": pairs[i].bad,
            "margin in nats, normalised": f"{margin[i]:+.3f}",
        }
        for i in chosen
    ]
