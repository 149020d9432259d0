"""What the field measures of rankings, each for one query, as trec_eval computes it.

Q queries, k ranks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from angle.evaluation.metrics import Floats

#: The metrics that are reported.
RANKING_METRICS = ("ndcg@10", "mrr@10", "map@100", "recall@10", "recall@100", "precision@10", "accuracy@1")
#: Ranks that they need.
RANKS = 100


def ranking_metrics(gains: Floats, ideal: Floats, relevant: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """Return each of `RANKING_METRICS` (Q,).

    Grades count in nDCG alone, as they are (the gain is linear); for the others a passage is relevant or not.

    Args:
        gains: (Q, `RANKS`) the grade of the passage at each rank; 0 for one that is not relevant.
        ideal: (Q, 10) the highest grades of a query's passages, in descending order, then zeros.
        relevant: (Q,) how many passages are relevant.

    """
    hits = gains > 0
    precision = np.cumsum(hits, axis=1) / np.arange(1, RANKS + 1)
    discount = 1 / np.log2(np.arange(2, 12))
    first = np.where(hits[:, :10].any(axis=1), 1 / (1 + np.argmax(hits[:, :10], axis=1)), 0.0)
    return {
        "ndcg@10": (gains[:, :10] * discount).sum(axis=1) / (ideal * discount).sum(axis=1),
        "mrr@10": first,
        "map@100": (precision * hits).sum(axis=1) / relevant,
        "recall@10": hits[:, :10].sum(axis=1) / relevant,
        "recall@100": hits.sum(axis=1) / relevant,
        "precision@10": precision[:, 9],
        "accuracy@1": hits[:, 0].astype(np.float64),
    }
