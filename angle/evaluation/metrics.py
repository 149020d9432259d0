"""Correlations of similarities with labels, and accuracy at the best threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

Floats = npt.NDArray[np.float64]


def similarities(left: Tensor, right: Tensor) -> dict[str, Floats]:
    """Return cosine, dot product, and negated Manhattan and Euclidean distance of paired embeddings.

    (P, D) and (P, D) -> four arrays (P,), computed in float64; a zero vector has cosine 0.
    """
    left, right = left.double(), right.double()
    return {
        "cosine": cosines(left, right),
        "dot": (left * right).sum(-1).numpy(),
        "manhattan": -(left - right).abs().sum(-1).numpy(),
        "euclidean": -torch.linalg.vector_norm(left - right, dim=-1).numpy(),
    }


def cosines(left: Tensor, right: Tensor) -> Floats:
    """Return the cosines (P,) of paired embeddings (P, D) and (P, D), computed in float64; 0 for a zero vector."""
    scores: Floats = (F.normalize(left.double(), dim=-1) * F.normalize(right.double(), dim=-1)).sum(-1).numpy()
    return scores


def spearman(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return Spearman's rank correlation, with ties sharing ranks; 0 if a side is constant, nan if not finite."""
    return _correlation(stats.spearmanr, scores, labels)


def pearson(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return Pearson's correlation; 0 if a side is constant, nan if not finite."""
    return _correlation(stats.pearsonr, scores, labels)


def _correlation(function: Callable[..., Any], scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)  # embeddings that have collapsed
        return float(function(x, y).statistic)


def best_accuracy(scores: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[float, float]:
    """Return (accuracy, threshold) of the best rule "positive iff score > threshold", by trying every cut.

    The threshold lies midway between two scores; -inf calls all pairs positive, and inf none.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(positive, bool)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    # A cut before sorted position k calls x[:k] negative and x[k:] positive.
    correct = np.concatenate([[0], np.cumsum(~y)]) + (y.sum() - np.concatenate([[0], np.cumsum(y)]))
    allowed = np.concatenate([[True], x[1:] > x[:-1], [True]])
    cut = int(np.argmax(np.where(allowed, correct, -1)))
    bounds = np.concatenate([[-np.inf], x, [np.inf]])
    threshold = bounds[cut : cut + 2].mean()
    return float(correct[cut] / len(x)), float(threshold)
