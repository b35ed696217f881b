"""Text retrieval in BEIR's format (Thakur et al. 2021, arXiv:2104.08663), by frozen features.

Documents are ranked for each query by the cosine of their features, as in arXiv:2507.00994, here without
contrastive tuning. Scores are those of trec_eval: nDCG@10, recall@100 and the reciprocal rank.
Shapes: Q queries, N documents, D features.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from bench.data.corpora.base import without_surrogates
from bench.data.corpora.hf import Row, label_text
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import likeness
from bench.tasks.hub import bench_data, read_rows, require_columns
from bench.tasks.options import TextRetrievalOptions
from bench.tasks.probe import EVALUATION_BATCH, as_attention, encode, text_features

DEPTH = 100  # documents ranked per query
DECIMALS = 6  # of a cosine: smaller differences are rounding, and count as ties
QRELS = ("query-id", "corpus-id", "score")
METRICS = {"ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100", "mrr": "recip_rank"}


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, and the relevance of judged documents by query."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judged: Mapping[str, Mapping[str, int]]


class TextRetrieval(Task):
    """Find the documents that answer a query among all documents of a collection."""

    Options = TextRetrievalOptions
    options: TextRetrievalOptions
    packages = ("datasets", "pytrec_eval")

    @override
    def check(self, key: str) -> None:
        super().check(key)
        self._collection()

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the means over queries; chance is the score of one random order."""
        found = self._collection()
        documents, queries = (
            self._features(model, list(texts.values()), setting) for texts in (found.documents, found.queries)
        )
        ranked = {}
        for start in range(0, len(queries), EVALUATION_BATCH):
            setting.keep_going()
            cosine = (queries[start : start + EVALUATION_BATCH] @ documents.T).double().cpu()
            for query, own in zip(list(found.queries)[start:], cosine.numpy().round(DECIMALS), strict=False):
                ranked[query] = own
        return outcome(found, ranked)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of the words that query and document share, weighted by TF-IDF."""
        found = self._collection()
        cosine = likeness(list(found.queries.values()), list(found.documents.values()))
        return outcome(found, dict(zip(found.queries, cosine, strict=True)))

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        found = self._collection()
        right = {
            query: np.array([found.judged[query].get(name, 0) for name in found.documents], dtype=np.float64)
            for query in found.queries
        }
        return outcome(found, right)

    def _features(self, model: Objective, texts: Sequence[str], setting: Setting) -> Tensor:
        tokens = encode(texts, setting.tokenizer, setting.sequence_length)
        how = as_attention(self.options.attention), self.options.pooling
        return F.normalize(text_features(model, tokens, *how), dim=1)

    def _collection(self) -> Collection:
        """Read the collection: all judged documents, and others up to `max_documents`."""
        corpus, queries, qrels = self._parts()
        judged: dict[str, dict[str, int]] = {}
        for row in qrels:
            query, document = label_text(row["query-id"]), label_text(row["corpus-id"])
            if query is not None and document is not None and int(row["score"]) > 0:
                judged.setdefault(query, {})[document] = int(row["score"])
        relevant = {name for own in judged.values() for name in own}
        texts = {str(row["_id"]): _text(row) for row in corpus}
        kept = [name for name in texts if name in relevant]
        others = [name for name in texts if name not in relevant]
        names = set(kept) | set(others[: max(0, self.options.max_documents - len(kept))])
        asked = {str(row["_id"]): str(row["text"]) for row in queries if str(row["_id"]) in judged}
        if not asked or not relevant & texts.keys():
            raise DataError(
                f"task.*.split={self.options.split}: no query of the data set has a judged document; choose "
                "another split"
            )
        return Collection({name: text for name, text in texts.items() if name in names}, asked, judged)

    def _parts(self) -> tuple[Any, Any, Any]:
        """Return the rows of documents, queries and judgements."""
        options = self.options
        folder = Path(options.path).expanduser() if options.path else bench_data(options.name)
        if folder is not None:
            documents, queries = (
                read_rows("json", files=[folder / f"{name}.jsonl"]) for name in ("corpus", "queries")
            )
            qrels: Any = _read_qrels(folder / "qrels" / f"{options.split}.tsv")
        else:
            documents, queries = (
                read_rows(options.name, config=name, revision=options.revision, split=name)
                for name in ("corpus", "queries")
            )
            qrels = read_rows(f"{options.name}-qrels", split=options.split)
            require_columns(qrels, name=QRELS)
        for rows in (documents, queries):
            require_columns(rows, name=("_id", "text"))
        return documents, queries, qrels


def _read_qrels(file: Path) -> list[Row]:
    if not file.is_file():
        raise ConfigError(f"task.*.split={file.stem}: there is no {file}; name a split that has judgements")
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    for number, row in enumerate(rows, start=2):
        if not all(row.get(column) for column in QRELS) or not row["score"].isdigit():
            raise DataError(f"{file}, line {number}: expected {', '.join(QRELS)}, separated by tabs")
    return rows


def _text(row: Row) -> str:
    return without_surrogates(f"{row.get('title') or ''} {row['text'] or ''}".strip())


def outcome(found: Collection, scores: Mapping[str, NDArray[np.float64]]) -> Outcome:
    """Score documents (N,) by query; equal ones are in a random order, which is the same for all models."""
    given = _by_query(found, scores)
    chance = _by_query(found, dict.fromkeys(found.queries, np.zeros(len(found.documents))))
    measured = [
        Measured(name, float(values.mean()), float(chance[name].mean()), len(values))
        for name, values in given.items()
    ]
    return Outcome(measured, given)


def _by_query(found: Collection, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return each metric by query (Q,)."""
    from pytrec_eval import RelevanceEvaluator

    names = list(found.documents)
    place = np.random.default_rng(0).permutation(len(names))
    run = {}
    for query, values in scores.items():
        if not np.isfinite(values).all():
            raise FloatingPointError("a feature is not finite; the model diverged")
        best = np.lexsort((place, -values))[:DEPTH]
        run[query] = {names[i]: float(DEPTH - rank) for rank, i in enumerate(best)}
    judged = {query: dict(found.judged[query]) for query in run}
    by_query = RelevanceEvaluator(judged, set(METRICS.values())).evaluate(run)
    return {name: np.array([by_query[q][metric] for q in run]) for name, metric in METRICS.items()}
