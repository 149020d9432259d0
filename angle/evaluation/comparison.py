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
from scipy.stats import rankdata

from angle.evaluation.evaluator import RowValues
from angle.evaluation.metrics import Floats

#: Samples of the bootstrap, and numbers that are held at a time.
SAMPLES, MAX_NUMBERS = 4000, 2**22
#: Probability with which an interval has the true difference.
LEVEL = 0.95


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


def difference(
    first: Mapping[Hashable, RowValues], second: Mapping[Hashable, RowValues], *, comparisons: int = 1, sign: int = 1
) -> Difference:
    """Return the difference of two settings' mean scores, with its interval.

    Args:
        first: what each run of the first setting says of the rows, by its seed, or by whatever pairs two runs.
        second: the same for the second setting, of the same rows.
        comparisons: how many such differences are looked at, of which the best is chosen; intervals are so much wider
            that all of them hold at once (Bonferroni).
        sign: -1 if lower is better.

    """
    runs = [*first.values(), *second.values()]
    assert len({len(run.values) for run in runs}) == 1, "runs of different rows"
    rng = np.random.default_rng(0)
    samples = np.concatenate([np.stack([resample(run, w) for run in runs]) for w in _row_weights(runs[0], rng)], axis=1)
    means = np.array([run.metric() for run in runs])
    count = len(first)
    estimate = means[:count].mean() - means[count:].mean()
    draws = samples[:count].mean(axis=0) - samples[count:].mean(axis=0)
    draws += estimate - draws.mean()  # a correlation is a little lower in samples with repetitions
    if first.keys() == second.keys():
        draws += _seed_draws([means[:count] - means[count:][[list(second).index(seed) for seed in first]]], rng)
    else:
        draws += _seed_draws([means[:count], means[count:]], rng)
    tail = (1 - LEVEL) / 2 / comparisons
    low, high = np.quantile(sign * draws, [tail, 1 - tail])
    return Difference(sign * float(estimate), float(low), float(high), min(count, len(second)))


def resample(run: RowValues, weights: Floats) -> Floats:
    """Return (S,): a run's metric on samples of the rows.

    Args:
        run: R rows.
        weights: (S, R), how often each row is in each sample.

    """
    count = weights.sum(axis=1)
    if run.labels is None:
        means: Floats = weights @ run.values / count
        return means
    ranks, label_ranks = _weighted_ranks(run.values, weights), _weighted_ranks(run.labels, weights)
    middle = (count[:, None] + 1) / 2
    x, y = ranks - middle, label_ranks - middle
    covariance = (weights * x * y).sum(axis=1)
    scale = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    correlations: Floats = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return correlations


def _weighted_ranks(values: npt.NDArray[np.floating], weights: Floats) -> Floats:
    """Return (S, R): the mean rank of each row among a sample's, where rows occur as often as `weights` (S, R) says."""
    order = np.argsort(values, kind="stable")
    group = rankdata(values[order], "dense") - 1
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sums = np.add.reduceat(weights[:, order], starts, axis=1)  # of each value
    ranks = np.empty_like(weights)
    ranks[:, order] = (np.cumsum(sums, axis=1) - (sums - 1) / 2)[:, group]
    return ranks


def _row_weights(run: RowValues, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield (S, R), how often each row is in each sample, for as many samples at a time as memory is meant for."""
    count = len(run.values)
    step = max(1, MAX_NUMBERS // count)
    for first in range(0, SAMPLES, step):
        yield rng.multinomial(count, np.full(count, 1 / count), min(step, SAMPLES - first)).astype(np.float64)


def _seed_draws(groups: Sequence[Floats], rng: np.random.Generator) -> Floats:
    """Return (SAMPLES,): how far the difference of the means of so few runs may be from that of all seeds.

    0 where runs do not differ, or a group has only one. Degrees of freedom of several groups are those of Welch and
    Satterthwaite.
    """
    variances = np.array([group.var(ddof=1) / len(group) if len(group) > 1 else 0.0 for group in groups])
    if not variances.any():
        return np.zeros(SAMPLES)
    terms = [v**2 / (len(group) - 1) for v, group in zip(variances, groups, strict=True) if v]
    return np.asarray(np.sqrt(variances.sum()) * rng.standard_t(variances.sum() ** 2 / sum(terms), SAMPLES))
