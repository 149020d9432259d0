"""The Espresso grid: every depth of a model times every width of its embeddings, from one pass over the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from angle.data.corpus import Corpus
from angle.evaluation.evaluator import Encode
from angle.evaluation.evaluators.sts import StsEvaluator, text_pairs
from angle.evaluation.metrics import Floats, cosines, spearman


class EspressoGridEvaluator:
    """Spearman's correlation on format-A rows for each number of layers and each number of leading dimensions."""

    name = "espresso_grid"
    metric = StsEvaluator.metric

    def __init__(self, corpus: Corpus, depths: Sequence[int], widths: Sequence[int]) -> None:
        """Take the pairs, and the numbers of layers and of dimensions."""
        self.corpus = corpus
        self.depths = depths
        self.widths = widths

    def run(self, encode: Encode) -> Iterator[tuple[str, float]]:
        """Yield `spearman/<layers>x<dimensions>` for each cell."""
        for depth, row in zip(self.depths, self.scores(encode), strict=True):
            for width, score in zip(self.widths, row, strict=True):
                yield f"{self.metric.name}/{depth}x{width}", float(score)

    def scores(self, encode: Encode) -> Floats:
        """Return the correlations (depths, widths)."""
        assert self.corpus.labels is not None
        labels = self.corpus.labels
        embeddings = encode(self.corpus.tokens, self.depths)  # (N, K, D)
        left, right = text_pairs(self.corpus).T
        return np.array(
            [
                [spearman(cosines(layer[left, :width], layer[right, :width]), labels) for width in self.widths]
                for layer in embeddings.unbind(1)
            ]
        )
