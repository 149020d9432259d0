"""Triplet accuracy: does a text lie nearer to its positive than to its negative?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext
from angle.evaluation.metrics import cosines


class TripletAccuracy:
    """The fraction of pairs of a row's positive and one of its negatives that rank rightly; a tie is wrong.

    The positive must have a higher cosine to the text than the negative has. Of rows with several negatives, each
    counts alike, whatever their number.
    """

    name = "triplet"
    purpose = "valid"
    formats = frozenset("B")
    metric = Metric("triplet_accuracy", "triplet accuracy", "triples whose positive is nearer than the negative")

    def __init__(self, corpus: Corpus, context: RunContext) -> None:
        """Take the triples; of a cell to draw from, the same text is used each time."""
        self.corpus = corpus

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `triplet_accuracy`."""
        yield self.metric.name, self.row_values(encode).metric()

    def row_values(self, encode: Encode) -> RowValues:
        """Return for each row the fraction of its negatives that are farther from its text than its positive."""
        texts = self.corpus.draw_texts(np.arange(len(self.corpus)), seed=0, epoch=0)
        embeddings = encode(self.corpus.tokens)
        text, positive = embeddings[texts.pairs].unbind(1)
        positives = cosines(text, positive)[texts.negative_rows]
        is_right = positives > cosines(text[texts.negative_rows], embeddings[texts.negatives])
        counts = np.bincount(texts.negative_rows)
        return RowValues(np.bincount(texts.negative_rows, weights=is_right) / counts)


EVALUATOR = TripletAccuracy
