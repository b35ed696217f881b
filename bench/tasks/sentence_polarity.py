"""Is a film-review sentence positive or negative? (Pang & Lee 2005, arXiv:cs/0506075; through NLTK.)"""

from dataclasses import dataclass

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.tasks.base import Setting
from bench.tasks.text_classification import ClassificationOptions, TextClassification


class SentencePolarity(TextClassification):
    """Sentence -> pos or neg; split by sentence."""

    nltk_corpora = ("sentence_polarity",)

    @dataclass(frozen=True)
    class Options(ClassificationOptions):
        """Nothing beyond what all text classifications declare."""

    def examples(self, split: Split, setting: Setting) -> dict[str, list[str]]:
        """Sentences by polarity."""
        corpus = corpus_reader("sentence_polarity", "task.polarity_*")
        sentences = {
            name: [" ".join(words) for words in corpus.sents(categories=name)] for name in ("neg", "pos")
        }
        return {name: [s for s in texts if split_of(s) == split] for name, texts in sentences.items()}
