"""Tagged corpora of NLTK: what is read of them; what is missing or damaged is one line with file and fix."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from toy_data import assert_one_line
from toy_models import CONF

from bench.config.build import build
from bench.data.corpora.base import split_of
from bench.data.shards import SPLITS
from bench.errors import ConfigError, DataError
from bench.tasks.base import Task
from bench.tasks.nltk_tagging import TEST_SHARE
from bench.tasks.tagging import Tagging

NAMES = ("ieer", "conll2000", "conll2002", "treebank")
DOCUMENT = """<DOC>
<DOCNO> {number} </DOCNO>
<DOCTYPE> NEWS STORY </DOCTYPE>
<DATE_TIME> 04/03/1998 </DATE_TIME>
<BODY>
<HEADLINE> Left out </HEADLINE>
<TEXT>
{text}
</TEXT>
</BODY>
</DOC>
"""
PERSON, COMPANY = '<b_enamex type="PERSON">{}<e_enamex>', '<b_enamex type="ORGANIZATION">{}<e_enamex>'


def task(stem: str, **changes: Any) -> Tagging:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{stem}.yaml"))[stem]  # type: ignore[index,call-overload]
    built = build(node | changes, Task, f"task.{stem}")  # type: ignore[type-abstract]
    assert isinstance(built, Tagging)
    return built


def pairs(stem: str, split: Any) -> list[list[tuple[str, str]]]:
    return [list(zip(s.words, s.tags, strict=True)) for s in task(stem).sentences(split)]


def unload_nltk() -> None:
    """NLTK's readers remember where they found their files."""
    import nltk.corpus

    for name in NAMES:
        getattr(nltk.corpus, name)._unload()


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for toy copies of the corpora; none is there yet."""
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    unload_nltk()
    yield tmp_path / "nltk_data" / "corpora"
    unload_nltk()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# CoNLL


def test_columns_become_sentences_and_marks_of_documents_are_no_words(corpora: Path):
    text = "-DOCSTART- -DOCSTART- O\nJan N B-PER\nloopt V O\n\nNiño N B-PER\n"
    write(corpora / "conll2002" / "ned.testb", text)
    assert pairs("ner_conll2002_nl", "test") == [[("Jan", "B-PER"), ("loopt", "O")], [("Niño", "B-PER")]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_in_any_text_and_columns_only_at_spaces_and_tabs(corpora: Path, end: str):
    text = "10\xa0000 \tN O\nun\x85dos N  B-PER\n \nJan\u2028 N O"
    write(corpora / "conll2002" / "ned.testb", "")
    (corpora / "conll2002" / "ned.testb").write_bytes(text.replace("\n", end).encode())
    expected = [[("10\xa0000", "O"), ("un\x85dos", "B-PER")], [("Jan\u2028", "O")]]
    assert pairs("ner_conll2002_nl", "test") == expected


def test_official_files_are_the_splits(corpora: Path):
    for split in ("train", "testa", "testb"):
        write(corpora / "conll2002" / f"esp.{split}", f"{split} N O\n")
    found = [pairs("ner_conll2002_es", split)[0][0][0] for split in SPLITS]
    assert dict(zip(SPLITS, found, strict=True)) == {"train": "train", "validation": "testa", "test": "testb"}


def test_chunks_are_validated_on_the_last_tenth_of_the_training_file(corpora: Path):
    write(corpora / "conll2000" / "train.txt", "".join(f"w{i} NN B-NP\n\n" for i in range(20)))
    write(corpora / "conll2000" / "test.txt", "end NN B-NP\n")
    words = {split: [s[0][0] for s in pairs("chunking_conll2000", split)] for split in SPLITS}
    assert words == {
        "train": [f"w{i}" for i in range(18)],
        "validation": ["w18", "w19"],
        "test": ["end"],
    }


@pytest.mark.parametrize("line", ["Jan", "Jan N", "Jan N PER", "Jan N B-"])
def test_a_line_without_a_bio_tag_is_named(corpora: Path, line: str):
    write(corpora / "conll2002" / "esp.train", f"La DA O\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        task("ner_conll2002_es").sentences("train")
    parts = ("conll2002/esp.train line 3", repr(line), "python -m nltk.downloader --force conll2002")
    assert_one_line(caught.value, *parts)


def test_an_official_file_that_is_missing_is_named(corpora: Path):
    write(corpora / "conll2002" / "esp.train", "La DA O\n")
    with pytest.raises(DataError) as caught:
        task("ner_conll2002_es").sentences("test")
    assert_one_line(caught.value, "conll2002/esp.testb", "python -m nltk.downloader --force conll2002")


def test_a_language_without_files_is_named():
    with pytest.raises(ConfigError) as caught:
        task("ner_conll2002_es", language="de")
    assert_one_line(caught.value, "language='de'", "es, nl")


# IE-ER


def news(corpora: Path, text: str) -> list[list[tuple[str, str]]]:
    """The sentences of a document that the training split has."""
    number = next(f"N{i}" for i in range(100) if split_of(f"ieer/N{i}", TEST_SHARE) == "train")
    write(corpora / "ieer" / "APW_1", DOCUMENT.format(number=number, text=text))
    return pairs("ner_ieer", "train")


def test_spans_become_tags_and_stops_end_sentences(corpora: Path):
    ann, ash = PERSON.format("A. Lee"), COMPANY.format("Ash &AMP; Co.")
    text = f"Mr. {ann} left {ash}. He is ``fine.'' Now {COMPANY.format('IBM')}"
    assert news(corpora, text) == [
        [
            *[("Mr.", "O"), ("A.", "B-PERSON"), ("Lee", "I-PERSON"), ("left", "O")],
            *[("Ash", "B-ORGANIZATION"), ("&", "I-ORGANIZATION"), ("Co.", "I-ORGANIZATION"), (".", "O")],
        ],
        [("He", "O"), ("is", "O"), ("``fine.''", "O"), ("Now", "O"), ("IBM", "B-ORGANIZATION")],
    ]


def test_spans_side_by_side_stay_two(corpora: Path):
    found = news(corpora, PERSON.format("Ann") + " " + PERSON.format("Lee"))
    assert found == [[("Ann", "B-PERSON"), ("Lee", "B-PERSON")]]


def test_documents_never_straddle_a_split(corpora: Path):
    numbers = [f"N{i}" for i in range(40)]
    whole = "".join(DOCUMENT.format(number=n, text=f"{n} came. {n} left.") for n in numbers)
    write(corpora / "ieer" / "APW_1", whole)
    for split in SPLITS:
        words = [s[0][0] for s in pairs("ner_ieer", split)]
        expected = [n for n in numbers if split_of(f"ieer/{n}", TEST_SHARE) == split]
        assert words == [n for n in expected for _ in range(2)]
        assert words


def test_versions_of_a_story_never_straddle_a_split(corpora: Path):
    shared = "The same long sentence stands in every one of them ."
    whole = "".join(DOCUMENT.format(number=f"N{i}", text=f"N{i} came. {shared}") for i in range(40))
    write(corpora / "ieer" / "APW_1", whole)
    counts = {split: len(task("ner_ieer").sentences(split)) for split in SPLITS}
    assert sorted(counts.values()) == [0, 0, 80]
    assert counts[split_of("ieer/N0", TEST_SHARE)] == 80


def test_a_damaged_document_is_named(corpora: Path):
    with pytest.raises(DataError) as caught:
        news(corpora, "left <e_enamex> a span that never began")
    assert_one_line(caught.value, "ieer/APW_1", "python -m nltk.downloader --force ieer")


# Treebank

TREE = "( (S \n    (NP-SBJ (-NONE- *) )\n    (VP (VB Go) (-LRB- -LRB-) (CD 1\\/2) )\n    (. .) ))\n"


def treebank(corpora: Path, text: str) -> list[list[tuple[str, str]]]:
    names = [f"wsj_{i:04}.mrg" for i in range(100)]
    name = next(name for name in names if split_of(f"treebank/{name}", TEST_SHARE) == "train")
    write(corpora / "treebank" / "combined" / name, text)
    return pairs("pos_treebank", "train")


def test_leaves_are_words_as_printed_and_traces_are_none(corpora: Path):
    one = [("Go", "VB"), ("(", "-LRB-"), ("1/2", "CD"), (".", ".")]
    assert treebank(corpora, f"\n{TREE}\n{TREE}") == [one, one]


def test_a_tree_without_words_is_named_with_its_line(corpora: Path):
    with pytest.raises(DataError) as caught:
        treebank(corpora, f"{TREE}( (S (NP ) ))\n")
    assert_one_line(caught.value, "treebank/wsj_", "line 5", "python -m nltk.downloader --force treebank")


# All of them


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("ner_ieer", "ieer"),
        ("ner_conll2002_es", "conll2002"),
        ("chunking_conll2000", "conll2000"),
        ("pos_treebank", "treebank"),
    ],
)
@pytest.mark.usefixtures("corpora")
def test_a_missing_corpus_is_named_with_the_line_that_gets_it(stem: str, name: str):
    with pytest.raises(DataError) as caught:
        task(stem).sentences("train")
    assert_one_line(caught.value, "task.", f"python -m nltk.downloader {name}", "NLTK_DATA")


real = pytest.mark.skipif("NLTK_DATA" not in os.environ, reason="no NLTK data named by NLTK_DATA")


@real
def test_the_users_corpora_have_the_official_sizes():
    unload_nltk()
    spans = {
        stem: Counter(tag[2:] for s in task(stem).sentences("test") for tag in s.tags if tag[0] == "B")
        for stem in ("ner_conll2002_es", "ner_conll2002_nl", "chunking_conll2000")
    }
    # As the shared tasks' papers have them.
    assert spans["ner_conll2002_es"] == {"LOC": 1084, "MISC": 339, "ORG": 1400, "PER": 735}
    assert spans["ner_conll2002_nl"] == {"LOC": 774, "MISC": 1187, "ORG": 882, "PER": 1098}
    assert spans["chunking_conll2000"].total() == 23852
    assert sum(len(task("chunking_conll2000").sentences(split)) for split in ("train", "validation")) == 8936


@pytest.mark.slow
@real
def test_the_users_treebank_is_as_nltk_reads_it():
    import nltk.corpus

    unload_nltk()
    ours = Counter(pair for split in SPLITS for s in pairs("pos_treebank", split) for pair in s)
    plain = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}"}
    theirs = Counter(
        (plain.get(word, word.replace("\\", "")), tag)
        for word, tag in nltk.corpus.treebank.tagged_words()
        if tag != "-NONE-"
    )
    assert ours == theirs


@pytest.mark.slow
@real
def test_the_users_newswire_has_spans_in_every_split():
    unload_nltk()
    found = {split: task("ner_ieer").sentences(split) for split in SPLITS}
    counts = Counter(t[2:] for part in found.values() for s in part for t in s.tags if t[0] == "B")
    assert counts.most_common(3) == [("PERSON", 1504), ("ORGANIZATION", 939), ("LOCATION", 878)]
    assert all(any(tag != "O" for s in part for tag in s.tags) for part in found.values())
    texts = {split: {" ".join(s.words) for s in part if len(s.words) >= 8} for split, part in found.items()}
    assert not texts["train"] & texts["test"]  # some stories were sent twice
    assert not texts["train"] & texts["validation"]
