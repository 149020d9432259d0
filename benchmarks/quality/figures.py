"""The benchmark's arithmetic: which learning rate is the best, and what two sides differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from scipy import stats

from angle.evaluation.comparison import LEVEL, Difference


def best_rate(valid: Mapping[float, Sequence[float]]) -> float:
    """Return the learning rate with the highest mean validation score over the seeds; of equal ones, the lowest."""
    return max(sorted(valid), key=lambda rate: mean(valid[rate]))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Return by how much the first side's scores are above the second's, seed by seed; None for a single seed.

    The interval is Student's, mean +- t s / sqrt(n), where s is the standard deviation of the n differences and t has
    n - 1 degrees of freedom.
    """
    assert first.keys() == second.keys(), "different seeds"
    if len(first) < 2:
        return None
    seeds = sorted(first)
    differences = [first[seed] - second[seed] for seed in seeds]
    middle = mean(differences)
    if max(differences) == min(differences):
        return Difference(middle, middle, middle, len(seeds))
    found = stats.ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds])
    low, high = found.confidence_interval(LEVEL)
    return Difference(middle, float(low), float(high), len(seeds))
