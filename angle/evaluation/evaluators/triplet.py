"""Triplet accuracy: does a text lie nearer to its positive than to its negative?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext
from angle.evaluation.metrics import cosines


class TripletAccuracy:
    """The fraction of triples whose positive has a higher cosine to the text than the negative has; a tie is wrong."""

    name = "triplet"
    purpose = "valid"
    formats = frozenset("B")
    metric = Metric("triplet_accuracy", "triplet accuracy", "triples whose positive is nearer than the negative")

    def __init__(self, corpus: Corpus, context: RunContext) -> None:
        """Take the triples; of a cell with several texts, the same one is used each time."""
        self.corpus = corpus

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `triplet_accuracy`."""
        yield self.metric.name, self.row_values(encode).metric()

    def row_values(self, encode: Encode) -> RowValues:
        """Return 1 for each triple that is right, 0 for the others."""
        triples = self.corpus.draw_text_ids(np.arange(len(self.corpus)), seed=0, epoch=0)
        text, positive, negative = encode(self.corpus.tokens)[triples].unbind(1)
        return RowValues((cosines(text, positive) > cosines(text, negative)).astype(np.float64))


EVALUATOR = TripletAccuracy
