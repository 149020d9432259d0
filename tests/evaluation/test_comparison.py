"""Differences of settings: equal to scipy on the rows drawn, with intervals that hold as often as they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import spearmanr

from angle.evaluation import comparison
from angle.evaluation.comparison import Difference, bootstrap, resample
from angle.evaluation.evaluator import RowValues

Simulate = Callable[[np.random.Generator, float], tuple[dict[int, RowValues], dict[int, RowValues]]]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SAMPLES", 400)


def test_samples_have_the_metric_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    rows = RowValues(rng.integers(0, 12, 40) / 7, rng.integers(0, 5, 40).astype(np.float32))  # with ties
    weights = rng.multinomial(40, np.full(40, 1 / 40), 20).astype(float)
    drawn = [np.repeat(np.arange(40), sample.astype(int)) for sample in weights]
    assert rows.labels is not None
    expected = [spearmanr(rows.values[sample], rows.labels[sample]).statistic for sample in drawn]
    assert resample([rows], weights)[0] == pytest.approx(expected, abs=1e-12)
    means = [rows.values[sample].mean() for sample in drawn]
    assert resample([RowValues(rows.values)], weights)[0] == pytest.approx(means, abs=1e-12)


def difference(first: dict[int, RowValues], second: dict[int, RowValues], **options: int) -> Difference:
    sampled = bootstrap([*first.values(), *second.values()])
    sides = dict(zip(first, sampled, strict=False)), dict(zip(second, sampled[len(first) :], strict=True))
    return comparison.difference(*sides, **options)


def accuracies(rng: np.random.Generator, gain: float, *, same_seeds: bool = True) -> tuple[dict[int, RowValues], ...]:
    """Three runs of each of two settings: a run is better or worse by its seed, a row easier or harder for all."""
    rows, seeds = rng.normal(0, 0.2, 150), rng.normal(0, 0.02, 3)
    return tuple(
        {
            seed + (0 if same_seeds else 3 * setting): RowValues(
                0.7 + setting * gain + rows + (seeds[seed] if same_seeds else 0) + effect + rng.normal(0, 0.1, 150)
            )
            for seed, effect in enumerate(rng.normal(0, 0.02, 3))
        }
        for setting in (1, 0)
    )


def correlations(rng: np.random.Generator, gain: float) -> tuple[dict[int, RowValues], ...]:
    """Three runs of each of two settings: the similarities are the labels and noise, of which one setting has less."""
    labels = rng.integers(0, 6, 150).astype(np.float32)
    shared = rng.normal(0, 0.5, 150)
    return tuple(
        {seed: RowValues(labels + shared + rng.normal(0, noise, 150), labels) for seed in range(3)}
        for noise in (1 - gain, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "simulate", [accuracies, lambda rng, gain: accuracies(rng, gain, same_seeds=False)], ids=["paired", "other seeds"]
)
def test_an_interval_has_the_true_difference_as_often_as_it_says(simulate: Simulate) -> None:
    found = [difference(*simulate(np.random.default_rng(number), 0.03)) for number in range(300)]
    assert 0.92 < np.mean([one.low < 0.03 < one.high for one in found]) < 0.99
    assert np.mean([one.mean for one in found]) == pytest.approx(0.03, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("simulate", [accuracies, correlations])
def test_a_tie_is_not_taken_for_a_difference(simulate: Simulate) -> None:
    found = [difference(*simulate(np.random.default_rng(number), 0.0)) for number in range(200)]
    assert np.mean([one.is_clear for one in found]) < 0.075


@pytest.mark.parametrize(("simulate", "gain"), [(accuracies, 0.15), (correlations, 0.8)])
def test_a_difference_is_found(simulate: Simulate, gain: float) -> None:
    found = [difference(*simulate(np.random.default_rng(number), gain)) for number in range(50)]
    assert np.mean([one.low > 0 for one in found]) > 0.9


@pytest.mark.slow
def test_the_best_of_many_equal_settings_is_hardly_better_than_the_first() -> None:
    """Of ten, the luckiest is looked at: each interval must be wider for that."""
    wrong = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        rows = rng.normal(0, 0.2, 150)
        settings = [
            {seed: RowValues(rows + rng.normal(0, 0.02) + rng.normal(0, 0.1, 150)) for seed in range(3)}
            for _ in range(10)
        ]
        means = [np.mean([run.metric() for run in setting.values()]) for setting in settings]
        best = int(np.argmax(means))
        wrong += best != 0 and difference(settings[best], settings[0], comparisons=9).is_clear
    assert wrong / 200 < 0.075


def test_lower_may_be_better_and_one_seed_says_nothing_of_seeds() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(2, 0.3, 200)
    better, worse = {1: RowValues(losses - 0.2)}, {1: RowValues(losses)}
    found = difference(better, worse, sign=-1)
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2)  # the same on every row
    assert found.seeds == 1
