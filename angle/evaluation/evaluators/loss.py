"""The loss on validation rows of any format, and its terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode, Metric, RowValues, RunContext, evenly_sized_batches
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS


class ValidationLoss:
    """The mean over evenly sized batches of the last layer's loss, with the weights and temperatures of training."""

    name = "loss"
    purpose = "valid"
    formats = frozenset(FORMATS)
    metric = Metric("loss", "loss", "weighted sum of the loss terms", higher_is_better=False, is_fraction=False)

    def __init__(self, corpus: Corpus, context: RunContext) -> None:
        """Build the loss for the format of the rows, which may differ from that of the training rows."""
        self.corpus = corpus
        self.context = context
        self.loss = CombinedLoss(context.loss, corpus.format, context.dimensions, context.duplicates)

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `loss`, the weighted sum, then `loss/<term>` for each term before weighting."""
        yield from ((name, sum(values) / len(values)) for name, values in self._batch_values(encode).items())

    def row_values(self, encode: Encode) -> RowValues:
        """Return the loss of each batch: a row has none of its own."""
        return RowValues(np.array(self._batch_values(encode)[self.metric.name]))

    @torch.no_grad()
    def _batch_values(self, encode: Encode) -> dict[str, list[float]]:
        """Return `loss`, and `loss/<term>` for each term, of each batch."""
        embeddings, device = encode(self.corpus.tokens), self.context.device
        values: dict[str, list[float]] = defaultdict(list)
        for batch in evenly_sized_batches(self.corpus, self.context.batch_size, self.context.duplicates):
            loss = self.loss(embeddings[batch.text_ids].to(device), batch.structure.to(device))
            values[self.metric.name].append(float(loss.total))
            for term, value in loss.terms.items():
                values[f"{self.metric.name}/{term}"].append(float(value))
        return values


EVALUATOR = ValidationLoss
