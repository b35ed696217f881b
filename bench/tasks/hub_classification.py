"""Text classification on benchmark data sets: single texts and pairs, as in GLUE (arXiv:1804.07461)."""

from collections import defaultdict
from collections.abc import Mapping

from typing_extensions import override

from bench.data.corpora.base import Split
from bench.errors import ConfigError, DataError
from bench.tasks.base import Setting
from bench.tasks.hub import label_names_of, label_of, open_labelled_texts, texts_in
from bench.tasks.options import HubClassificationOptions
from bench.tasks.text_classification import Text, TextClassification


class HubClassification(TextClassification):
    """Classify the rows of a data set by one label column.

    The test split is one with labels; GLUE's own test labels are not public, so its validation split is used.
    Rows without a label or a text are left out.
    """

    Options = HubClassificationOptions
    options: HubClassificationOptions
    packages = ("datasets",)

    @override
    def check(self, key: str) -> None:
        super().check(key)
        for option in ("train_split", "test_split"):
            open_labelled_texts(self.options, option)

    @property
    @override
    def metrics(self) -> list[str]:
        return self.options.metrics

    @override
    def positive_class(self) -> str | None:
        if "f1" not in self.metrics:
            return None
        rows = open_labelled_texts(self.options, "test_split")
        names = label_names_of(rows, self.options.label_column, self.options.label_names)
        if names is None:
            raise ConfigError(
                "task.*.label_names=null: F1 is measured on the last class; list the names of the classes"
            )
        return names[-1]

    @override
    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[Text]]:
        rows = open_labelled_texts(self.options, f"{split}_split")
        column = self.options.label_column
        names = label_names_of(rows, column, self.options.label_names)
        texts = [texts_in(rows, name) for name in self.options.text_columns]
        found: dict[str, list[Text]] = defaultdict(list)
        for number, (value, *parts) in enumerate(zip(rows[column], *texts, strict=True)):
            label = label_of(value, names, column, number)
            if label is not None and all(parts):
                found[label].append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
        if not found:
            raise DataError(
                f"task.*.{split}_split={getattr(self.options, f'{split}_split')}: no row has a label in "
                f"{column!r}; choose a split with labels"
            )
        return found
