"""Is a film review positive or negative? (Pang & Lee 2004, arXiv:cs/0409058; through NLTK.)"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.tasks.base import Setting
from bench.tasks.text_classification import ClassificationOptions, TextClassification


class MovieReviews(TextClassification):
    """Review -> pos or neg; split by file. A model reads its beginning, as far as `sequence_length` goes."""

    nltk_corpora = ("movie_reviews",)

    @dataclass(frozen=True)
    class Options(ClassificationOptions):
        """Nothing beyond what all text classifications declare."""

    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        """Reviews by polarity."""
        corpus = corpus_reader("movie_reviews", "task.movie_reviews_*")
        return {
            name: [corpus.raw(file) for file in corpus.fileids(name) if split_of(file) == split]
            for name in ("neg", "pos")
        }
