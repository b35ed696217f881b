"""The options of every task with their bounds, so that settings are checked without torch.

The options of a class are named after it: `bench.tasks.library.Library` has `LibraryOptions`. A class whose
options are not listed here is imported when its settings are checked, which takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, ClassVar

from annotated_types import Interval, MaxLen, MinLen
from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import (
    BatchSize,
    Checked,
    Count,
    IfUsed,
    Names,
    Positive,
    PositiveShare,
    Rate,
    Repeats,
    Steps,
    Temperature,
    Text,
    choice,
    must,
    names_of,
)
from bench.config.schema import Config
from bench.data.corpora.docstrings import require_installed


def names_columns(template: str) -> bool:
    """Return whether every field of a format string is the plain name of a column."""
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError:
        return False
    return all(name.isidentifier() and not spec and not how for name, spec, how in fields)


KINDS = ("exact", "bound", "pseudo")  # of likelihoods
MAX_ORDER = 8  # bytes of an n-gram
DIALOGUES = ("overheard", "chatterbot")
LANGUAGES = ("es", "nl")  # of CoNLL-2002

Attention = Annotated[str, choice("own", "causal", "bidirectional")]  # own: the strategy's
# From hidden states to one feature vector; own: the strategy's.
Pooling = Annotated[str, choice("own", "mean", "last", "first")]
Budgets = Annotated[list[Count | None], MinLen(1)]
HalfShare = Annotated[float, Interval(ge=0, le=0.5)]
FitRate = Annotated[float, Interval(ge=0, le=10)]
Grid = Annotated[list[Rate], MinLen(1)]
# Of a frozen probe's logistic regression, of which validation items choose one, beside the layer.
Penalties = Annotated[list[Positive], MinLen(1)]
AtLeastTwo = Annotated[int, Interval(ge=2, le=10**9)]
# {} stands for the class.
Template = Annotated[str, must(lambda text: text.count("{}") == 1, "write {} once in each")]
Templates = Annotated[list[Template], MinLen(1)]
# {column} stands for the text of a row's column.
TemplateOfColumns = Annotated[str, must(names_columns, "write each column once, as {column}")]


@dataclass(frozen=True)
class TaskOptions(Checked):
    """Base of the options of tasks."""

    usual_key: ClassVar[str] = "task.*"


# Protocols


@dataclass(frozen=True)
class Tuning(TaskOptions):
    """Options of fine-tuning, for every strategy including `scratch`."""

    steps: Steps = MISSING  # of a fit, at most, its cooldown included
    batch_size: BatchSize = MISSING
    lr_grid: Grid = MISSING  # peak rates at width 64; one is chosen by the validation score of the first fit
    n_fits: Repeats = MISSING  # fine-tunings of one checkpoint, each with its own order of items
    validate_every: Steps = MISSING  # steps; the warm-up lasts as long
    patience: Repeats = MISSING  # validations without improvement, after which a fit cools down and ends

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.validate_every <= self.steps, "validate_every", f"use at most steps={self.steps}")


@dataclass(frozen=True)
class LabelledOptions(TaskOptions):
    """Options of a task with label budgets; protocol finetune uses those of `Tuning`, too."""

    protocol: Annotated[str, choice("probe", "finetune")] = MISSING
    attention: Attention = MISSING
    label_budgets: Budgets = MISSING  # labelled training items; null: max_labels, or all available
    max_labels: Count = MISSING
    validation_items: Count = MISSING  # at most, and never more than there are labels
    test_items: Count = MISSING  # at most
    steps: IfUsed[Steps] = None
    batch_size: IfUsed[BatchSize] = None
    lr_grid: IfUsed[Grid] = None
    n_fits: IfUsed[Repeats] = None
    validate_every: IfUsed[Steps] = None
    patience: IfUsed[Repeats] = None

    @property
    def tuning(self) -> Tuning:
        """The options of protocol finetune."""
        return self.part(Tuning)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_tuned = self.protocol == "finetune"
        self.require_given(is_tuned, "protocol", *names_of(Tuning))
        if is_tuned:
            self.part(Tuning)  # checks its bounds
        advice = f"use numbers of labelled items from 1 to max_labels={self.max_labels}, or null"
        self.require(all((n or 0) <= self.max_labels for n in self.label_budgets), "label_budgets", advice)


@dataclass(frozen=True)
class ContrastiveFit(TaskOptions):
    """Options of a fit by InfoNCE (fitted retrieval and dialogue), equal for every strategy."""

    steps: Steps = MISSING
    batch_size: BatchSize = MISSING
    lr_at_64: FitRate = MISSING  # peak rate at width 64; for others in inverse proportion
    temperature: Temperature = MISSING


@dataclass(frozen=True)
class JointSpaceOptions(TaskOptions):
    """Options of a task on images and texts; protocol fitted uses those of `ContrastiveFit`."""

    protocol: str = MISSING
    steps: IfUsed[Steps] = None
    batch_size: IfUsed[BatchSize] = None
    lr_at_64: IfUsed[FitRate] = None
    temperature: IfUsed[Temperature] = None

    @property
    def fit(self) -> ContrastiveFit:
        """The options of protocol fitted."""
        return self.part(ContrastiveFit)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol == "fitted", "protocol", *names_of(ContrastiveFit))


@dataclass(frozen=True)
class KindOptions(TaskOptions):
    """The kind of likelihood."""

    kind: Annotated[str, choice(*KINDS)] = MISSING
    samples: IfUsed[Repeats] = None  # random draws per text, for a bound

    @property
    def n_draws(self) -> int:
        """The number of evaluations per text: `samples` for a bound, 1 for others."""
        return 1 if self.samples is None else self.samples

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.kind == "bound", "kind", "samples")


@dataclass(frozen=True)
class LikelihoodOptions(KindOptions):
    """Options of every task that compares continuations by their likelihood."""

    # The divisor of the log-likelihood.
    length_normalisation: Annotated[str, choice("none", "tokens", "bytes")] = MISSING
    batch_size: BatchSize = MISSING  # texts


@dataclass(frozen=True)
class LocalOptions(TaskOptions):
    """The data set's local files, if it has any."""

    path: Text | None = MISSING

    @override
    def check_run(self, config: Config) -> None:
        is_there = self.path is None or Path(self.path).expanduser().exists()
        self.require(is_there, "path", "there is no such file or folder; correct the path")


@dataclass(frozen=True)
class HubOptions(LocalOptions):
    """Which data set is read; `path` is a folder with a file per split instead; see `bench.tasks.hub`."""

    name: Text = MISSING  # on the hub
    config: Text | None = MISSING
    revision: Text | None = MISSING


# Text classification


@dataclass(frozen=True)
class ClassificationOptions(LabelledOptions):
    """Options of every text classification.

    A label budget leaves out texts that would unbalance the classes. Validation items come from the training
    split.
    """

    protocol: Annotated[str, choice("probe", "finetune", "layers")] = MISSING
    pooling: Pooling = MISSING
    inverse_penalties: IfUsed[Penalties] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol == "probe", "protocol", "inverse_penalties")


@dataclass(frozen=True)
class LibraryOptions(ClassificationOptions):
    """The libraries, which are the classes, and the shortest docstring."""

    packages: Names = MISSING
    min_chars: Count = MISSING

    @override
    def check_run(self, config: Config) -> None:
        require_installed(self, self.packages)


@dataclass(frozen=True)
class HubClassificationOptions(HubOptions, ClassificationOptions):
    """The columns, the names of the classes, and the metrics."""

    train_split: Text = MISSING
    test_split: Text = MISSING
    text_columns: Annotated[list[Text], MinLen(1), MaxLen(2)] = MISSING  # two: pairs of texts
    label_column: Text = MISSING
    label_names: list[Text] | None = MISSING  # of the class numbers; null: as the data set names them
    # The headline first; F1 is that of the last class.
    metrics: Annotated[list[Annotated[str, choice("accuracy", "matthews", "f1")]], MinLen(1)] = MISSING


MovieReviewsOptions = SentencePolarityOptions = QuestionClassesOptions = ClassificationOptions


# Tagging


@dataclass(frozen=True)
class TaggingOptions(LabelledOptions):
    """Options of every tagging; labelled items are sentences."""

    # Of training words, for protocol probe; see `beats_tag_frequencies`; 0: no such check.
    held_out_share: IfUsed[HalfShare] = None
    inverse_penalties: IfUsed[Penalties] = None
    word_state: Annotated[str, choice("first", "mean")] = MISSING  # of the word's tokens
    context_share: HalfShare = MISSING  # of a further window of a long sentence: re-read as left context

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol == "probe", "protocol", "held_out_share", "inverse_penalties")


@dataclass(frozen=True)
class Conll2002Options(TaggingOptions):
    """The language."""

    language: Annotated[str, choice(*LANGUAGES)] = MISSING


@dataclass(frozen=True)
class HubTaggingOptions(HubOptions, TaggingOptions):
    """The columns, and what is scored."""

    train_split: Text = MISSING
    validation_split: Text = MISSING
    test_split: Text = MISSING
    words_column: Text = MISSING
    tags_column: Text = MISSING
    tag_names: list[Text] | None = MISSING  # of the tag numbers; null: as the data set names them
    score: Annotated[str, choice("entities", "words")] = MISSING  # F1 of BIO spans, or accuracy of words


IeerOptions = Conll2000Options = TreebankOptions = TaggingOptions


# Question answering


@dataclass(frozen=True)
class QuestionAnsweringOptions(LabelledOptions):
    """Options of every extractive question answering; labelled items are questions.

    With `attention: causal` the state of an answer's first token has not seen the rest of the answer.
    """

    max_question_tokens: Count = MISSING  # and never more than half of a window
    max_answer_tokens: Count = MISSING
    # From one window to the next, as a share of the context tokens that fit.
    step_share: PositiveShare = MISSING


@dataclass(frozen=True)
class DocstringQuestionsOptions(QuestionAnsweringOptions):
    """The packages, and the lengths of contexts and answers."""

    packages: Names = MISSING  # import names
    min_chars: Count = MISSING  # of a docstring
    context_words: Count = MISSING
    max_answer_words: Count = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        advice = f"use 1 to a quarter of context_words={self.context_words}"
        self.require(self.max_answer_words <= self.context_words // 4, "max_answer_words", advice)

    @override
    def check_run(self, config: Config) -> None:
        require_installed(self, self.packages)


@dataclass(frozen=True)
class SquadOptions(QuestionAnsweringOptions):
    """The paths of the files."""

    train_path: Text | None = MISSING
    test_path: Text | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("train_path", "test_path"):
            is_set = getattr(self, key) is not None
            self.require(is_set, key, "give the path of a file in SQuAD's JSON format")

    @override
    def check_run(self, config: Config) -> None:
        for key in ("train_path", "test_path"):
            self.require(
                Path(getattr(self, key)).expanduser().is_file(), key, "it is not a file; correct the path"
            )


@dataclass(frozen=True)
class HubQuestionsOptions(HubOptions, QuestionAnsweringOptions):
    """The splits, which have SQuAD's columns; one split for both is divided by paragraph."""

    train_split: Text = MISSING
    test_split: Text = MISSING


# Dialogue


@dataclass(frozen=True)
class DialogueOptions(TaskOptions):
    """The conversations and the candidates."""

    # overheard: NLTK's webtext; chatterbot: a package
    corpus: Annotated[str, choice(*DIALOGUES)] = MISSING
    context_turns: Count = MISSING  # at most
    n_candidates: AtLeastTwo = MISSING  # the right response included
    test_items: Count = MISSING  # at most; spread evenly over the test conversations


@dataclass(frozen=True)
class DialogueFittedOptions(ContrastiveFit, DialogueOptions):
    """The fit, the same for every strategy."""

    train_items: Count = MISSING  # at most, drawn by the run's seed


@dataclass(frozen=True)
class DialogueLikelihoodOptions(LikelihoodOptions, DialogueOptions):
    """How likelihoods are compared."""

    # Subtract the log-likelihood of the response alone, so that responses which are common anywhere are
    # not preferred (Holtzman et al. 2021, arXiv:2104.08315).
    pmi: bool = MISSING


# Likelihoods and texts


@dataclass(frozen=True)
class MinimalPairsOptions(LocalOptions, LikelihoodOptions):
    """The pairs.

    `path` is a JSONL file in BLiMP's format or a folder of them; null: they are made from the text corpus.
    """

    pairs_per_uid: Count = MISSING  # at most, per paradigm; spread evenly over its pairs


@dataclass(frozen=True)
class BlimpOptions(MinimalPairsOptions):
    """Where BLiMP lies, if `path` is null: in `$BENCH_DATA/blimp`, or on the hub."""

    name: Text = MISSING  # on the hub
    revision: Text | None = MISSING


@dataclass(frozen=True)
class MultipleChoiceOptions(HubOptions, LikelihoodOptions):
    """How an item becomes a context and its choices: `{column}` in a template stands for the row's text."""

    split: Text = MISSING
    context: TemplateOfColumns = MISSING
    # Templates of the choices; null: column `choices_column` lists them, of which `label_column` tells the
    # right one by its number, or by its name in `names_column`.
    choices: list[TemplateOfColumns] | None = MISSING
    choices_column: Text | None = MISSING
    names_column: Text | None = MISSING
    label_column: Text = MISSING
    first_label: Annotated[int, Interval(ge=0, le=1)] = MISSING  # the number of the first choice
    test_items: Count = MISSING  # at most; spread evenly over the split

    def __post_init__(self) -> None:
        super().__post_init__()
        is_one = (self.choices is None) != (self.choices_column is None)
        self.require(is_one, "choices", "give either templates here, or choices_column")


@dataclass(frozen=True)
class SentenceSimilarityOptions(HubOptions):
    """The columns, and how a model's features are read."""

    split: Text = MISSING
    text_columns: Annotated[list[Text], MinLen(2), MaxLen(2)] = MISSING
    label_column: Text = MISSING
    attention: Attention = MISSING
    pooling: Pooling = MISSING
    test_items: Count = MISSING  # at most; spread evenly over the split


@dataclass(frozen=True)
class TextRetrievalOptions(TaskOptions):
    """The data set in BEIR's format, and how a model's features are read."""

    name: Text = MISSING  # on the hub, with configs corpus and queries; judgements lie in `<name>-qrels`
    revision: Text | None = MISSING
    path: Text | None = MISSING  # a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv
    split: Text = MISSING  # of the judgements
    attention: Attention = MISSING
    pooling: Pooling = MISSING
    max_documents: Count = MISSING  # judged ones first, so that a part still holds every right answer

    @override
    def check_run(self, config: Config) -> None:
        is_there = self.path is None or Path(self.path).expanduser().is_dir()
        self.require(is_there, "path", "there is no such folder; correct the path")


@dataclass(frozen=True)
class BitsPerByteOptions(KindOptions):
    """The amount of text."""

    windows: Count = MISSING  # at most; spread evenly over the split
    batch_size: BatchSize = MISSING  # windows


@dataclass(frozen=True)
class CanariesOptions(KindOptions):
    """The number of candidates."""

    candidates: Annotated[int, Interval(ge=2, le=10**6)] = MISSING  # ranked secrets, the planted one included


@dataclass(frozen=True)
class GenerationOptions(TaskOptions):
    """The prompts, the sampling of tokens, and the n-gram model."""

    prompts: AtLeastTwo = MISSING  # at most; one per document, spread evenly over the test split
    prompt_tokens: Count = MISSING
    new_tokens: Count = MISSING  # at most
    temperature: Annotated[float, Interval(ge=0, le=1000)] = MISSING  # 0: greedy
    top_p: IfUsed[PositiveShare] = None  # probability of the nucleus; 1: all tokens; not for greedy
    batch_size: BatchSize = MISSING  # prompts
    ngram_order: Annotated[int, Interval(ge=1, le=MAX_ORDER)] = MISSING  # bytes
    ngram_bytes: Count = MISSING  # of training text for the n-gram model, at most
    samples: Annotated[int, Interval(ge=0, le=10**4)] = MISSING  # texts shown in the report

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.temperature > 0, "temperature", "top_p")

    @override
    def check_run(self, config: Config) -> None:
        self.check_length(config.sequence_length)

    def check_length(self, sequence_length: int) -> None:
        """Raise OptionError if prompts with their continuations are longer than a sequence."""
        advice = (
            f"with new_tokens={self.new_tokens} the texts exceed sequence_length={sequence_length}; lower one"
        )
        self.require(self.prompt_tokens + self.new_tokens <= sequence_length, "prompt_tokens", advice)


@dataclass(frozen=True)
class AttentionRolloutOptions(TaskOptions):
    """The text."""

    text: Text = MISSING  # tokens beyond sequence_length are left out and counted


# Images


@dataclass(frozen=True)
class CaptioningOptions(JointSpaceOptions):
    """The protocol and the number of items; for `fitted`, the fit of the vision tower."""

    protocol: Annotated[str, choice("generate", "retrieve", "fitted")] = MISSING
    test_images: AtLeastTwo = MISSING  # at most
    # To retrieve from, at most: the most frequent ones. Not for protocol generate.
    train_captions: IfUsed[Count] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol != "generate", "protocol", "train_captions")


@dataclass(frozen=True)
class ImageClassificationOptions(JointSpaceOptions):
    """The label, the prompts and the number of items; for `fitted`, the fit of the vision tower."""

    protocol: Annotated[str, choice("zero_shot", "fitted", "probe")] = MISSING
    label: Text = MISSING  # emoji_group, or one of corpus.pairs.label_columns
    templates: IfUsed[Templates] = None  # of prompts, for all protocols but probe
    train_per_class: IfUsed[Count] = None  # at most, for protocol probe
    test_images: Count = MISSING  # at most
    min_test_per_class: Count = MISSING  # a class with fewer is left out

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_given(self.protocol != "probe", "protocol", "templates")
        self.require_given(self.protocol == "probe", "protocol", "train_per_class")

    @override
    def check_run(self, config: Config) -> None:
        columns: Sequence[str] | None = config.corpus.pairs.get("label_columns")
        advice = f"choose one of corpus.pairs.label_columns={list(columns or [])}"
        self.require(columns is None or self.label in columns, "label", advice)


@dataclass(frozen=True)
class RetrievalOptions(JointSpaceOptions):
    """The protocol and, for `fitted`, the fit of the vision tower."""

    protocol: Annotated[str, choice("fitted", "zero_shot")] = MISSING
