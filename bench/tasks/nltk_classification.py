"""Text classifications on corpora that NLTK carries: question classes and the polarity of film reviews."""

from collections import defaultdict
from collections.abc import Mapping

from typing_extensions import override

from bench.data.corpora.base import Split, split_of, universal_lines
from bench.data.corpora.nltk import corpus_reader
from bench.errors import DataError
from bench.tasks.base import Setting
from bench.tasks.text_classification import TextClassification

POLARITIES = ("neg", "pos")


class QuestionClasses(TextClassification):
    """Classify questions by the kind of answer they ask for (Li & Roth 2002; `qc` of NLTK, or TREC-6).

    There are six coarse classes: abbreviation, entity, description, human, location, number. The split is the
    official one; its test questions are not balanced (9 of 500 ask for an abbreviation), and it has no
    validation split. Ten training questions are also test questions.
    """

    nltk_corpora = ("qc",)

    @override
    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        corpus = corpus_reader("qc", "task.qc_*")
        found: dict[str, list[str]] = defaultdict(list)
        for file in [file for file in corpus.fileids() if file == f"{split}.txt"]:
            for number, line in enumerate(universal_lines(corpus.raw(file)), start=1):
                label, _, question = line.strip().partition(" ")
                coarse, colon, _ = label.partition(":")
                if not (coarse and colon and question):
                    raise DataError(
                        f"task.qc_*: qc/{file}, line {number} is not `CLASS:subclass question`; "
                        "run `python -m nltk.downloader --force qc`"
                    )
                found[coarse].append(question)
        return found


class MovieReviews(TextClassification):
    """Classify film reviews as positive or negative (Pang & Lee 2004, arXiv:cs/0409058); split by file.

    A model reads the beginning of a review, up to `sequence_length` tokens.
    """

    nltk_corpora = ("movie_reviews",)

    @override
    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        corpus = corpus_reader("movie_reviews", "task.movie_reviews_*")
        return {
            name: [corpus.raw(file) for file in corpus.fileids(name) if split_of(file) == split]
            for name in POLARITIES
        }


class SentencePolarity(TextClassification):
    """Classify sentences of film reviews as positive or negative (Pang & Lee 2005, arXiv:cs/0506075)."""

    nltk_corpora = ("sentence_polarity",)

    @override
    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        corpus = corpus_reader("sentence_polarity", "task.polarity_*")
        sentences = {
            name: [" ".join(words) for words in corpus.sents(categories=name)] for name in POLARITIES
        }
        return {name: [s for s in texts if split_of(s) == split] for name, texts in sentences.items()}
