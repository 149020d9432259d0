"""Which of the passages near a query become its negatives.

Q queries, K candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from angle.config import MineConfig

IntArray = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def select_negatives(
    candidates: IntArray,
    scores: Scores,
    left_out: Sequence[Sequence[int]],
    positive_scores: Scores,
    config: MineConfig,
) -> tuple[list[IntArray], list[Scores], Counter[str]]:
    """Return the negatives of each query with their scores, highest first, and why candidates were left out.

    The order is that of sentence-transformers' `mine_hard_negatives`: known positives, margins and limits first, then
    the range of ranks among what is left, then sampling.

    Args:
        candidates: (Q, K) indices of passages; -1 where there are fewer.
        scores: (Q, K).
        left_out: of each query, the passages that are no negatives: known positives, and one of the query's own text.
        positive_scores: (Q,), that of the query's positive with the lowest.
        config: the options.

    """
    negatives, negative_scores, reasons = [], [], Counter[str]()
    for query in range(len(candidates)):
        allowed = candidates[query] >= 0
        for reason, mask in _reasons(candidates[query], scores[query], left_out[query], positive_scores[query], config):
            reasons[reason] += int((allowed & mask).sum())
            allowed &= ~mask
        left = np.flatnonzero(allowed)
        left = left[np.argsort(-scores[query, left], kind="stable")][config.range_min : config.last_rank]
        if config.sampling == "random" and len(left) > config.num_negatives:
            generator = np.random.default_rng((config.seed, query))
            left = left[np.sort(generator.choice(len(left), config.num_negatives, replace=False))]
        left = left[: config.num_negatives]
        negatives.append(candidates[query, left])
        negative_scores.append(scores[query, left])
    return negatives, negative_scores, reasons


def _reasons(
    candidates: IntArray, scores: Scores, left_out: Sequence[int], positive: float, config: MineConfig
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return why candidates (K,) of one query are left out, each with a mask of those that are."""
    reasons = [("known positives and the query itself", np.isin(candidates, left_out))]
    if config.absolute_margin is not None:
        reasons.append(("absolute_margin", scores + np.float32(config.absolute_margin) > positive))
    if config.relative_margin is not None:
        reasons.append(("relative_margin", scores > positive - abs(positive) * np.float32(config.relative_margin)))
    if config.max_score is not None:
        reasons.append(("max_score", scores > config.max_score))
    if config.min_score is not None:
        reasons.append(("min_score", scores < config.min_score))
    return reasons
