"""Real benchmark files, in the folder that BENCH_DATA names, are read whole."""

import os
from collections import Counter
from pathlib import Path

import pytest

from bench.tasks.minimal_pairs import read_blimp
from bench.tasks.squad import read_squad

pytestmark = pytest.mark.skipif("BENCH_DATA" not in os.environ, reason="no data named by BENCH_DATA")


def test_blimp_has_a_thousand_pairs_of_each_phenomenon():
    folder = Path(os.environ["BENCH_DATA"], "blimp")
    pairs = read_blimp(folder)
    assert Counter(pair.uid for pair in pairs) == {path.stem: 1000 for path in folder.glob("*.jsonl")}


def test_xquad_has_its_questions_and_every_answer_stands_where_it_says():
    questions = list(read_squad(Path(os.environ["BENCH_DATA"], "xquad", "xquad.en.json")))
    assert (len(questions), len({question.context for question in questions})) == (1190, 240)
    for question in questions:
        assert question.span is not None
        start, stop = question.span
        assert question.context[start:stop] in question.answers
