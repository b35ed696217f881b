"""Question answering on data sets with SQuAD's columns: squad, squad_v2, XQuAD."""

import hashlib

from typing_extensions import override

from bench.data.corpora.base import Split, split_of
from bench.errors import ConfigError
from bench.tasks.answers import Question
from bench.tasks.base import Setting
from bench.tasks.hub import local_place, open_split, require_columns
from bench.tasks.options import HubQuestionsOptions
from bench.tasks.question_answering import QuestionAnswering
from bench.tasks.squad import question_of, read_squad


class HubQuestions(QuestionAnswering):
    """Questions of two splits; a tenth of the training paragraphs is for validation.

    Where both options name the same split (XQuAD has one only), half of its paragraphs are for training and
    half for testing.
    """

    Options = HubQuestionsOptions
    options: HubQuestionsOptions
    packages = ("datasets",)

    def __init__(self, options: HubQuestionsOptions) -> None:
        super().__init__(options)
        self._by_split: dict[str, list[Question]] = {}

    @override
    def check(self, key: str) -> None:
        super().check(key)
        self._read("train_split")
        self._read("test_split")

    @override
    def questions(self, split: Split, setting: Setting) -> list[Question]:
        is_divided = self.options.train_split == self.options.test_split
        found = self._read("test_split" if split == "test" else "train_split")
        if is_divided:
            found = [q for q in found if _is_tested(q.group) == (split == "test")]
        if split == "test":
            return found
        return [q for q in found if (split_of(q.group) == "validation") == (split == "validation")]

    def _read(self, split_option: str) -> list[Question]:
        """Return the questions of a split, which is read once: every label budget asks for it again."""
        split = str(getattr(self.options, split_option))
        if split not in self._by_split:
            self._by_split[split] = self._questions(split_option)
        return self._by_split[split]

    def _questions(self, split_option: str) -> list[Question]:
        place = local_place(self.options)
        if place is not None and place.is_file():  # one file in SQuAD's JSON format
            return list(read_squad(place))
        rows = open_split(self.options, split_option)
        require_columns(rows, name=("question", "context", "answers"))
        columns = zip(rows["question"], rows["context"], rows["answers"], strict=True)
        found = []
        for number, (question, context, answers) in enumerate(columns):
            texts, starts = answers["text"], answers["answer_start"]
            if not (question or "").strip() or not (context or "").strip() or len(texts) != len(starts):
                raise ConfigError(
                    f"task.*.name={self.options.name}: row {number} has no question, no context, or answers "
                    "without a place; choose a data set with SQuAD's columns"
                )
            found.append(question_of(question, context, list(zip(texts, starts, strict=True))))
        return found


def _is_tested(group: str) -> bool:
    return hashlib.sha256(b"half " + group.encode()).digest()[0] % 2 == 1
