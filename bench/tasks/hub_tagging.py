"""Tagging on benchmark data sets with a list of words and a list of tags per row, such as WNUT-17."""

from typing import Any

from typing_extensions import override

from bench.data.corpora.base import Split
from bench.errors import DataError
from bench.tasks.hub import label_names_of, label_of, open_split, require_columns
from bench.tasks.options import HubTaggingOptions
from bench.tasks.tag_scores import SpanF1, TagScore, WordAccuracy
from bench.tasks.tagging import Sentence, Tagging

SCORES: dict[str, TagScore] = {"entities": SpanF1(), "words": WordAccuracy()}


class HubTagging(Tagging):
    """Tag the words of a data set's rows, in its own splits; rows without words are left out."""

    Options = HubTaggingOptions
    options: HubTaggingOptions
    packages = ("datasets", "seqeval")

    def __init__(self, options: HubTaggingOptions) -> None:
        super().__init__(options)
        self.score = SCORES[options.score]  # type: ignore[misc]

    @override
    def check(self, key: str) -> None:
        super().check(key)
        for option in ("train_split", "validation_split", "test_split"):
            self._open(option)

    @override
    def sentences(self, split: Split) -> list[Sentence]:
        rows = self._open(f"{split}_split")
        names = label_names_of(rows, self.options.tags_column, self.options.tag_names)
        found = []
        columns = zip(rows[self.options.words_column], rows[self.options.tags_column], strict=True)
        for number, (words, values) in enumerate(columns):
            tags = [label_of(value, names, self.options.tags_column, number) for value in values]
            if len(words) != len(tags) or None in tags:
                raise DataError(
                    f"row {number} of the data set has {len(words)} words and "
                    f"{sum(tag is not None for tag in tags)} tags; correct the data"
                )
            if words:
                found.append(Sentence(words, [str(tag) for tag in tags]))
        return found

    def _open(self, split_option: str) -> Any:
        rows = open_split(self.options, split_option)
        options = self.options
        require_columns(rows, words_column=options.words_column, tags_column=options.tags_column)
        return rows
