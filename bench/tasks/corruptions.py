"""Minimal pairs out of plain text: a sentence as someone wrote it, and one error put into it by rule.

The phenomena are those of BLiMP (arXiv:1912.00582, sec. 3) that surface patterns can break for certain,
without a parser: each rule asks for more context than it changes, and leaves a sentence alone where the error
could be no error ("if the array were"; "the data are"; "an LSTM").
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIN_WORDS, MAX_WORDS = 5, 25
# Words, whole numbers and commas, and at the end a full stop: no code, no markup.
SENTENCE = re.compile(r"[A-Z][a-z]*(?:[,;:]? (?:[A-Za-z]+(?:[-'][A-Za-z]+)*|\d+))+\.")
BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n")
# Subjects after which usage differs, or that may take either form of the verb.
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
# What makes a following form a subjunctive, an infinitive or part of a longer subject.
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
    """A grammatical sentence and its ungrammatical twin; `uid` names the phenomenon, None: unnamed."""

    good: str
    bad: str
    uid: str | None


@dataclass(frozen=True)
class Rule:
    """A phenomenon: where `pattern` is first found in a sentence, `error` is put in its place.

    `error` refers to the pattern's groups as in `re.sub`; `unless` is what must not stand before the place.
    """

    uid: str
    pattern: re.Pattern[str]
    error: str
    unless: re.Pattern[str] | None = None

    def breaks(self, sentence: str) -> str | None:
        """The sentence with the error; None where the rule does not apply."""
        found = self.pattern.search(sentence)
        if found is None or (self.unless and self.unless.search(sentence[: found.start()])):
            return None
        return sentence[: found.start()] + found.expand(self.error) + sentence[found.end() :]


def agreement(singular: str, plural: str, uid: str = "subject_verb_agreement_auxiliary") -> list[Rule]:
    """A subject right before its verb, a pronoun or a determiner and noun, gets that of the other number."""
    one = re.compile(rf"\b({OF_ONE}) ({SINGULAR}) {singular}\b")
    many = re.compile(rf"\b({OF_MANY}) ({PLURAL}) {plural}\b")
    return [
        Rule(uid, one, rf"\1 \2 {plural}", ELSEWHERE),
        Rule(uid, many, rf"\1 \2 {singular}", ELSEWHERE),
        Rule(uid, re.compile(rf"\b([Ii]t|[Hh]e|[Ss]he) {singular}\b"), rf"\1 {plural}", ELSEWHERE),
        Rule(uid, re.compile(rf"\b([Tt]hey|[Ww]e) {plural}\b"), rf"\1 {singular}", ELSEWHERE),
    ]


def _third_person() -> list[Rule]:
    """ "This function returns" -> "This function return"."""
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
    # The article goes by sound: u, h, y, eu, one and single letters are left out.
    Rule("article_a_an", re.compile(r"(^A|\ba)n (?=[aeio][a-z]{2})(?!eu|one|once)"), r"\1 "),
    Rule("article_a_an", re.compile(rf"(^A|\ba) (?={CONSONANT}[aeioulr][a-z])(?!{NO_NOUN})"), r"\1n "),
    Rule("determiner_noun_agreement", re.compile(rf"\b([Tt])his (?={THINGS}\b)(?!\w+ \w+s\b)"), r"\1hese "),
    Rule("determiner_noun_agreement", re.compile(rf"\b([Tt])hese (?=(?:{THINGS})s\b)"), r"\1his "),
    # "of the array" -> "of array the": no reading has a determiner behind its noun there.
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
    """Whole sentences of plain words, in order; lines within a paragraph are joined.

    >>> list(sentences("See x[0].\\nThe array is\\n read here. A."))
    ['The array is read here.']
    """
    for piece in BREAK.split(document):
        sentence = " ".join(piece.split())
        if MIN_WORDS <= sentence.count(" ") + 1 <= MAX_WORDS and SENTENCE.fullmatch(sentence):
            yield sentence


def corrupted(good: Iterable[str]) -> Iterator[Pair]:
    """All pairs that the rules make, sentence by sentence, rule by rule."""
    for sentence in good:
        done: set[str] = set()
        for rule in RULES:
            bad = None if rule.uid in done else rule.breaks(sentence)
            if bad is not None:
                done.add(rule.uid)
                yield Pair(sentence, bad, rule.uid)
