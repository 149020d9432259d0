"""Whether one setting is better than another, or chance: differences of scores, with intervals.

Two things are chance: which rows are in the validation set, and the seeds of the runs. Rows are drawn anew, the same
ones for all runs (the paired bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8).
Three seeds are too few to be drawn from; their mean deviates from the true one as Student's t distribution has it. So
an interval's draws are those of the bootstrap plus s t / sqrt(n), where t has n - 1 degrees of freedom. Settings with
the same seeds are compared seed by seed.

R rows, S samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from angle.evaluation.evaluator import RowValues
from angle.evaluation.metrics import Floats

#: Samples of the rows, how often each is used with another draw for the seeds, and numbers that are held at a time.
SAMPLES, SEED_DRAWS, MAX_NUMBERS = 1000, 8, 2**22
#: Probability with which an interval has the true difference.
LEVEL = 0.95


@dataclass(frozen=True)
class Sampled:
    """A run's metric, on all rows and on samples of them: those with the same index are of the same rows."""

    metric: float
    samples: Floats
    """(S,)"""


@dataclass(frozen=True)
class Difference:
    """By how much one setting's mean score is above another's."""

    mean: float
    low: float
    high: float
    seeds: int
    """The smaller number of runs of the two; if it is 1, how much seeds differ is unknown, and not in the interval."""

    @property
    def is_clear(self) -> bool:
        """Return whether the interval leaves out 0: chance alone would hardly give this difference."""
        return self.low > 0 or self.high < 0


def bootstrap(runs: Sequence[RowValues]) -> list[Sampled]:
    """Return the metric of runs that were measured on the same rows, on all of them and on samples."""
    assert len({len(run.values) for run in runs}) <= 1, "runs of different rows"
    if not runs:
        return []
    samples = np.concatenate([resample(runs, weights) for weights in _row_weights(len(runs[0].values))], axis=1)
    return [Sampled(run.metric(), of_run) for run, of_run in zip(runs, samples, strict=True)]


def difference(
    first: Mapping[Hashable, Sampled], second: Mapping[Hashable, Sampled], *, comparisons: int = 1, sign: int = 1
) -> Difference:
    """Return the difference of two settings' mean scores, with its interval.

    Args:
        first: the runs of the first setting, by seed, or by whatever pairs two runs.
        second: the same for the second setting.
        comparisons: how many such differences are looked at, of which the best is chosen; intervals are so much wider
            that all of them hold at once (Bonferroni).
        sign: -1 if lower is better.

    """
    scores = [np.array([run.metric for run in runs.values()]) for runs in (first, second)]
    estimate = float(scores[0].mean() - scores[1].mean())
    means = [np.mean([run.samples for run in runs.values()], axis=0) for runs in (first, second)]
    draws = np.repeat(means[0] - means[1], SEED_DRAWS)
    draws += estimate - draws.mean()  # a correlation is a little lower in samples with repetitions
    if first.keys() == second.keys():
        scores = [np.array([run.metric - second[seed].metric for seed, run in first.items()])]
    draws += _seed_draws(scores, len(draws))
    tail = (1 - LEVEL) / 2 / comparisons
    low, high = np.quantile(sign * draws, [tail, 1 - tail])
    return Difference(sign * estimate, float(low), float(high), min(len(first), len(second)))


def resample(runs: Sequence[RowValues], weights: Floats) -> Floats:
    """Return (runs, S): the metric of each run on samples of the R rows.

    Args:
        runs: measured on the same rows.
        weights: (S, R), how often each row is in each sample.

    """
    labels, count = runs[0].labels, weights.sum(axis=1, keepdims=True)
    if labels is None:
        means: Floats = (np.stack([run.values for run in runs]) @ weights.T) / count.T
        return means
    label_ranks = _weighted_ranks(labels, weights) - (count + 1) / 2
    weighted = weights * label_ranks
    scale = np.sqrt((weighted * label_ranks).sum(axis=1))
    correlations = np.zeros((len(runs), len(weights)))
    for row, run in zip(correlations, runs, strict=True):
        ranks = _weighted_ranks(run.values, weights) - (count + 1) / 2
        norm = np.sqrt((weights * ranks**2).sum(axis=1)) * scale
        np.divide((weighted * ranks).sum(axis=1), norm, out=row, where=norm > 0)
    return correlations


def _weighted_ranks(values: npt.NDArray[np.floating], weights: Floats) -> Floats:
    """Return (S, R): the mean rank of each row among a sample's, where rows occur as often as `weights` (S, R) says."""
    order = np.argsort(values, kind="stable")
    is_first = np.diff(values[order], prepend=np.nan) != 0
    starts, group = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    sums = weights[:, order]
    if len(starts) < len(order):
        sums = np.add.reduceat(sums, starts, axis=1)  # of each value
    places = np.empty_like(order)
    places[order] = group
    mean_ranks: Floats = np.cumsum(sums, axis=1) - (sums - 1) / 2
    return mean_ranks[:, places]


def _row_weights(count: int) -> Iterator[Floats]:
    """Yield (S, R), how often each row is in each sample, for as many samples at a time as memory is meant for."""
    rng, step = np.random.default_rng(0), max(1, MAX_NUMBERS // count)
    for first in range(0, SAMPLES, step):
        size = min(step, SAMPLES - first)
        rows = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(rows.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _seed_draws(groups: Sequence[Floats], count: int) -> Floats:
    """Return (count,): how far the difference of the means of so few runs may be from that of all seeds.

    0 where runs do not differ, or a group has only one. Degrees of freedom of several groups are those of Welch and
    Satterthwaite.
    """
    variances = np.array([group.var(ddof=1) / len(group) if len(group) > 1 else 0.0 for group in groups])
    if not variances.any():
        return np.zeros(count)
    terms = [v**2 / (len(group) - 1) for v, group in zip(variances, groups, strict=True) if v]
    draws = np.random.default_rng(0).standard_t(variances.sum() ** 2 / sum(terms), count)
    return np.asarray(np.sqrt(variances.sum()) * draws)
