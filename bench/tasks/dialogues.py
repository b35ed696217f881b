"""Conversations between people, as exchanges: what was said, and what was said next.

`overheard`: Overheard in New York, of NLTK's webtext: thousands of short ones, real and often coarse.
`chatterbot`: the English part of the package chatterbot-corpus (BSD licence): some hundreds of questions to a
chatbot with an answer each, and few conversations; it is there wherever the benchmark is.
"""

import importlib.util
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.data.corpora.nltk import corpus_reader
from bench.errors import ConfigError, DataError

SPOKEN = re.compile(r"[^:]{1,60}: (.*)")  # "Guy #1: So this ..."
SEED = 0  # of distractors, which are the same for every strategy and every seed of it
# chatterbot: code, and ten sentences copied a hundred times each.
NO_DIALOGUES = ("coding", "tech_support")
# chatterbot: where a list is a conversation. Elsewhere what follows the first answer are other answers.
OF_TURNS = ("conversations", "health")


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation with those before it; `group` must not straddle a split."""

    context: tuple[str, ...]  # turns, the last one said last
    response: str
    group: str

    def key(self) -> tuple[str, str]:
        """What two exchanges are the same by."""
        return normal(" ".join(self.context)), normal(self.response)


def read_exchanges(corpus: str, context_turns: int) -> tuple[list[Exchange], Counter[str]]:
    """All exchanges of a corpus, each once, in a fixed order; and what was left out, by the reason.

    Args:
        corpus: a key of CORPORA.
        context_turns: at most, before the response.

    Raises:
        DataError: the corpus is not there.
    """
    found: dict[tuple[str, str], Exchange] = {}
    left_out: Counter[str] = Counter()
    for turns in CORPORA[corpus]():
        if len(turns) < 2:
            left_out["conversation of less than two turns, or not one turn a line"] += 1
        for i in range(1, len(turns)):
            exchange = Exchange(tuple(turns[max(0, i - context_turns) : i]), turns[i], normal(turns[0]))
            if not all(exchange.key()):
                left_out["turn without words"] += 1
            elif exchange.key() in found:
                left_out["exchange that is there already"] += 1
            else:
                found[exchange.key()] = exchange
    return list(found.values()), left_out


def normal(text: str) -> str:
    """What two texts are equal by: their words in lower case.

    >>> normal("Oh, YEAH...")
    'oh yeah'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def candidates(
    items: Sequence[Exchange], known: Sequence[Exchange], n_candidates: int
) -> list[tuple[str, ...]]:
    """For each item its own response and distractors: responses of the other items, as often as they occur.

    No distractor is in words equal to the response, to another distractor, or to any response that is known
    to follow the same last turn; none is of the same conversation.

    Args:
        items: of one split.
        known: of all splits.
        n_candidates: the response, which comes first, included.

    Raises:
        DataError: too few responses.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for exchange in known:
        answers[normal(exchange.context[-1])].add(normal(exchange.response))
    rng = random.Random(SEED)  # noqa: S311 - a draw, not a secret
    found = []
    for item in items:
        right = answers[normal(item.context[-1])] | {normal(item.response)}
        drawn: dict[str, str] = {}
        for other in rng.sample(items, len(items)):
            words = normal(other.response)
            if other.group != item.group and words not in right and words not in drawn:
                drawn[words] = other.response
            if len(drawn) == n_candidates - 1:
                break
        else:
            raise DataError(f"task.*.n_candidates={n_candidates}: too few different responses; lower it")
        found.append((item.response, *drawn.values()))
    return found


def _overheard() -> Iterator[list[str]]:
    text = str(corpus_reader("webtext", "task.*.corpus").raw("overheard.txt"))
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        spoken = [SPOKEN.fullmatch(line) for line in lines]
        if lines:
            yield [turn[1].strip() for turn in spoken if turn] if all(spoken) else []


def _chatterbot() -> Iterator[list[str]]:
    import yaml

    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("task.*.corpus=chatterbot: run `pip install chatterbot-corpus`")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "english"
    for path in sorted(folder.glob("*.yml")):
        if path.stem not in NO_DIALOGUES:
            # The base loader: `Yes` and `1963` stay what they are.
            read = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
            for turns in read["conversations"]:
                yield turns if path.stem in OF_TURNS else turns[:2]


CORPORA: dict[str, Callable[[], Iterator[list[str]]]] = {"overheard": _overheard, "chatterbot": _chatterbot}


def check_corpus(name: str) -> None:
    """A task's option `corpus`.

    Raises:
        ConfigError: no such corpus.
    """
    if name not in CORPORA:
        raise ConfigError(f"task.*.corpus={name!r}: choose one of {', '.join(CORPORA)}")
