"""Similarities, correlations and the best accuracy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from angle.evaluation.metrics import best_accuracy, pearson, similarities, spearman

Correlation = Callable[[list[float], list[float]], float]

# Scores by rank, or in tenths, with labels; angle_emb's Spearman, and the best accuracy there is.
RANKS_0 = [6, 4, 16, 8, 13, 2, 5, 19, 15, 14, 20, 1, 12, 7, 9, 17, 3, 18, 10, 11]
RANKS_6 = [10, 5, 2, 6, 18, 20, 15, 4, 1, 7, 8, 3, 19, 16, 12, 17, 13, 11, 14, 9]
TENTHS = [
    10 if digit == "x" else int(digit)
    for digit in "25353167x62398759891x99601206974985251816x913473286313765172xx77346169630161689792769616386377498143"
]
TENTHS_LABELS = "0110000111001110111011110000011011001010111001100100000100101111001011000001011110111100011011011010"
GOLDENS = {
    "noisy": (RANKS_0, "00001101110011011111", 0.26549712202679576, 0.75),
    "separable": (RANKS_6, "10001110000011111110", 0.8627635262664035, 1.0),
    "ties": (TENTHS, TENTHS_LABELS, 0.764692498528354, 0.86),
}


@pytest.mark.parametrize(("scores", "labels", "correlation", "accuracy"), GOLDENS.values(), ids=GOLDENS.keys())
def test_reference_values(scores: list[int], labels: str, correlation: float, accuracy: float) -> None:
    positive = [label == "1" for label in labels]
    assert spearman(scores, positive) == pytest.approx(correlation, rel=1e-12)
    assert best_accuracy(scores, positive)[0] == accuracy


def all_accuracies(scores: np.ndarray, positive: np.ndarray) -> list[float]:
    values = np.unique(scores)
    cuts = [-math.inf, *((values[1:] + values[:-1]) / 2), math.inf]
    return [float(np.mean((scores > cut) == positive)) for cut in cuts]


@pytest.mark.parametrize("kind", ["different", "ties", "few values", "negative"])
@pytest.mark.parametrize("seed", range(15))
def test_best_accuracy_is_the_best_of_all_thresholds(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 25))
    scores = {
        "different": random.normal(size=size),
        "ties": random.integers(0, 8, size) / 8,
        "few values": random.integers(0, 2, size).astype(float),
        "negative": -1 - random.random(size),
    }[kind]
    positive = scores + random.normal(scale=0.5, size=size) > np.median(scores)
    accuracy, threshold = best_accuracy(scores, positive)
    assert accuracy == max(all_accuracies(scores, positive))
    assert accuracy == np.mean((scores > threshold) == positive)


@pytest.mark.parametrize(
    ("scores", "positive", "accuracy", "threshold"),
    [
        ([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1], 1.0, 0.4),
        ([0.9, 0.1, 0.6, 0.2], [1, 0, 1, 0], 1.0, 0.4),
        ([0.1, 0.2], [1, 1], 1.0, -math.inf),
        ([0.1, 0.2], [0, 0], 1.0, math.inf),
        ([0.5, 0.5, 0.5], [1, 1, 0], 2 / 3, -math.inf),
        ([0.5, 0.5, 0.5], [0, 1, 0], 2 / 3, math.inf),
        ([0.0, 0.5, 0.5, 1.0], [0, 1, 0, 1], 0.75, 0.25),
    ],
)
def test_threshold(scores: list[float], positive: list[int], accuracy: float, threshold: float) -> None:
    assert best_accuracy(scores, positive) == pytest.approx((accuracy, threshold))


@pytest.mark.parametrize("seed", range(5))
def test_correlations_match_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 30).astype(float)
    scores = np.round(labels + random.normal(scale=2, size=30))
    assert len(np.unique(scores)) < 20
    assert spearman(scores, labels) == pytest.approx(stats.spearmanr(scores, labels)[0], rel=1e-12)
    assert pearson(scores, labels) == pytest.approx(stats.pearsonr(scores, labels)[0], rel=1e-12)


def test_spearman_shares_ranks_among_ties() -> None:
    ranks, other = [1.5, 1.5, 3.0, 4.0], [1.0, 2.5, 2.5, 4.0]
    assert spearman([5, 5, 7, 90], [0, 2, 2, 3]) == pytest.approx(float(np.corrcoef(ranks, other)[0, 1]), rel=1e-12)


NOTHING_TO_CORRELATE = [
    ([1, 1, 1], [0, 1, 2]),
    ([0, 1, 2], [3, 3, 3]),
    ([1], [1]),
    ([], []),
]


@pytest.mark.parametrize("correlation", [spearman, pearson])
@pytest.mark.parametrize(("scores", "labels"), NOTHING_TO_CORRELATE)
def test_undefined_correlation_is_zero(correlation: Correlation, scores: list[float], labels: list[float]) -> None:
    assert correlation(scores, labels) == 0.0


def test_similarities_match_reference() -> None:
    left = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])
    right = torch.tensor([[4.0, 3.0], [0.0, 2.0], [1.0, 1.0], [4.0, 0.0]])
    scores = similarities(left, right)
    assert list(scores) == ["cosine", "dot", "manhattan", "euclidean"]
    np.testing.assert_allclose(scores["cosine"], [0.96, 0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(scores["dot"], [24, 0, 0, -8])
    np.testing.assert_allclose(scores["manhattan"], [-2, -3, -2, -6])
    np.testing.assert_allclose(scores["euclidean"], [-math.sqrt(2), -math.sqrt(5), -math.sqrt(2), -6])
    assert all(score.dtype == np.float64 for score in scores.values())


def test_similarities_are_computed_in_float64() -> None:
    left, right = torch.ones(2, 2), torch.tensor([[1.0, 1.0 + 2e-4], [1.0, 1.0]])
    cosine = similarities(left, right)["cosine"]
    assert cosine[0] < cosine[1]
    assert np.float32(cosine[0]) == np.float32(cosine[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("correlation", [spearman, pearson])
def test_a_correlation_with_what_is_not_finite_is_no_number(correlation: Correlation, value: float) -> None:
    assert math.isnan(correlation([0, value, 1], [0, 1, 2]))
    assert math.isnan(correlation([0, 1, 2], [0, value, 1]))
