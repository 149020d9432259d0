"""Retrieval: do the passages that answer a query come first among all passages?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from angle.config import RETRIEVAL_METRIC
from angle.data.retrieval import RETRIEVAL, RetrievalSet
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext
from angle.evaluation.metrics import Floats
from angle.evaluation.ranking_metrics import RANKS, ranking_metrics
from angle.evaluation.search import Neighbours, search

#: Passages that are encoded at a time where nobody keeps their embeddings.
PASSAGES_AT_ONCE = 50_000


class RetrievalEvaluator:
    """nDCG, MRR, MAP, recall, precision and accuracy of the ranking of all passages by cosine, as trec_eval has them.

    During training the embeddings are shared with what is saved of the model's predictions, so all of them are encoded
    at once, as those of every other set are. Without a run, passages are encoded and searched piece by piece.
    """

    name = "retrieval"
    purpose = "valid_retrieval"
    formats = frozenset({RETRIEVAL.name})
    metric = Metric(RETRIEVAL_METRIC, "nDCG@10", "normalised discounted cumulative gain of the ten nearest passages")

    def __init__(
        self, corpus: RetrievalSet, context: RunContext | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """Take queries, passages and judgements, and where cosines are computed if there is no run."""
        self.corpus = corpus
        self.device = device if context is None else context.device
        self.at_once = PASSAGES_AT_ONCE if context is None else len(corpus.tokens)

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield the mean over the queries of every metric, `ndcg@10` first."""
        yield from ((name, float(values.mean())) for name, values in self.query_metrics(encode).items())

    def row_values(self, encode: Encode) -> RowValues:
        """Return each query's nDCG@10."""
        return RowValues(self.query_metrics(encode)[self.metric.name])

    def query_metrics(self, encode: Encode) -> dict[str, Floats]:
        """Return the metrics (Q,) of each query by name."""
        return ranking_metrics(*self._graded(self.rank(encode)))

    def rank(self, encode: Encode) -> Neighbours:
        """Return the nearest passages of each query."""
        tokens, queries = self.corpus.tokens, len(self.corpus)
        if self.at_once >= len(tokens):
            embeddings = encode(tokens)
            return search(embeddings[:queries], [embeddings[queries:]], RANKS, self.device)
        return search(encode(tokens.take(np.arange(queries))), self._pieces(encode), RANKS, self.device)

    def _pieces(self, encode: Encode) -> Iterator[Tensor]:
        tokens = self.corpus.tokens
        for first in range(len(self.corpus), len(tokens), self.at_once):
            yield encode(tokens.take(np.arange(first, min(first + self.at_once, len(tokens)))))

    def _graded(self, neighbours: Neighbours) -> tuple[Floats, Floats, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Return what `ranking_metrics` takes."""
        corpus, found = self.corpus, neighbours.passages.numpy()
        width = 1 + len(corpus.passage_ids)
        judged = corpus.query * width + corpus.passage
        order = np.argsort(judged)
        asked = np.arange(len(corpus))[:, None] * width + found
        place = np.minimum(np.searchsorted(judged, asked, sorter=order), len(judged) - 1)
        is_judged = (judged[order][place] == asked) & (found >= 0)
        gains = np.where(is_judged, corpus.grade[order][place], 0.0).astype(np.float64)
        starts = corpus.first_judgement
        ideal = np.zeros((len(corpus), 10))
        best_first = np.lexsort((-corpus.grade, corpus.query))
        rank = np.arange(len(judged)) - starts[corpus.query]
        top = rank < ideal.shape[1]
        ideal[corpus.query[top], rank[top]] = corpus.grade[best_first][top]
        return gains, ideal, np.diff(starts)


EVALUATOR = RetrievalEvaluator
