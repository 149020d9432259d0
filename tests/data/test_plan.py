"""The plan of a mixture: a function of (seed, step), which gives each source its share and each row its turn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from angle.data.plan import BatchPlan, BatchSpec, Mixture, MixturePlan

ROWS, SIZES = [13, 40, 7], [4, 6, 4]
MIXTURES = {
    "proportional": Mixture(),
    "weights": Mixture(sampling="weights", weights=(3.0, 0.0, 1.0)),
    "temperature": Mixture(sampling="temperature", temperature=2.0),
    "round robin": Mixture(sampling="round_robin"),
}


def plan_of(mixture: Mixture, *, together: bool = False, accumulation: int = 2, **spec: object) -> MixturePlan:
    specs = [BatchSpec(size, accumulation, **spec) for size in SIZES]  # type: ignore[arg-type]
    plans = [BatchPlan(rows, each, number) for number, (rows, each) in enumerate(zip(ROWS, specs, strict=True))]
    mixture = Mixture(together, mixture.sampling, mixture.weights, mixture.temperature)
    return MixturePlan(plans, BatchSpec(5, accumulation, **spec), mixture)  # type: ignore[arg-type]


def drawn(plan: MixturePlan, steps: range) -> list[tuple[int, int, int]]:
    """Return (source, pass, row) of all rows of steps, in their order."""
    return [
        (part.source, part.epoch, row)
        for step in steps
        for batch in plan.batches(step)
        for part in batch
        for row in part.rows.tolist()
    ]


def test_one_source_is_its_own_plan() -> None:
    spec = BatchSpec(4, 2)
    alone = BatchPlan(13, spec)
    mixed = MixturePlan([alone], spec, Mixture())
    assert mixed.steps_per_epoch == alone.steps_per_epoch
    for step in range(9):
        expected = [(0, epoch, rows.tolist()) for epoch, rows in alone.batches(step)]
        assert [(p.source, p.epoch, p.rows.tolist()) for batch in mixed.batches(step) for p in batch] == expected


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_seeking_is_iterating_and_each_pass_takes_every_row_once(name: str, together: bool) -> None:
    plan = plan_of(MIXTURES[name], together=together)
    steps = 5 * plan.steps_per_epoch
    rows = drawn(plan, range(steps))
    assert rows == [
        row for step in range(steps) for row in drawn(plan_of(MIXTURES[name], together=together), range(step, step + 1))
    ]
    for source, number in enumerate(ROWS):
        own = [(epoch, row) for each, epoch, row in rows if each == source]
        assert all(after[0] - before[0] in (0, 1) for before, after in pairwise(own))  # pass after pass
        full_passes = max((epoch for epoch, _ in own), default=0)
        assert sorted(own[: full_passes * number]) == [(n, row) for n in range(full_passes) for row in range(number)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_rows_seen_are_those_that_were_drawn(name: str, together: bool) -> None:
    plan = plan_of(MIXTURES[name], together=together)
    for steps in range(3 * plan.steps_per_epoch):
        counts = Counter(source for source, _, _ in drawn(plan, range(steps)))
        assert plan.rows_seen(steps) == [counts[source] for source in range(3)]


@pytest.mark.parametrize("together", [False, True])
def test_shares(together: bool) -> None:
    """Over many epochs each source has its share of the rows, to within the rounding of an epoch's units."""

    def shares(mixture: Mixture) -> np.ndarray:
        plan = plan_of(mixture, together=together, accumulation=1)
        seen = np.array(plan.rows_seen(200 * plan.steps_per_epoch))
        return seen / seen.sum()

    tolerance = 0.02 if together else 0.12
    assert shares(MIXTURES["proportional"]) == pytest.approx(np.array(ROWS) / 60)
    assert shares(MIXTURES["weights"]) == pytest.approx([0.75, 0, 0.25], abs=tolerance)
    roots = np.sqrt(ROWS)
    assert shares(MIXTURES["temperature"]) == pytest.approx(roots / roots.sum(), abs=tolerance)
    if together:
        assert shares(MIXTURES["round robin"]) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("rows", "size"), [((10, 10_000), 64), ((65, 6400), 64), ((65, 65, 65), 64), ((1000, 7), 300)])
def test_shares_hold_where_passes_end_with_small_batches(rows: tuple[int, ...], size: int) -> None:
    spec = BatchSpec(size)
    plans = [BatchPlan(count, spec, number) for number, count in enumerate(rows)]
    equal = MixturePlan(plans, spec, Mixture(sampling="weights", weights=(1.0,) * len(rows)))
    seen = np.array(equal.rows_seen(50 * equal.steps_per_epoch))
    assert seen / seen.sum() == pytest.approx([1 / len(rows)] * len(rows), rel=0.02)
    by_size = MixturePlan(plans, spec, Mixture(sampling="temperature", temperature=1.0))
    assert by_size.quotas == MixturePlan(plans, spec, Mixture()).quotas
    assert MixturePlan(plans, spec, Mixture(sampling="temperature", temperature=0.01)).quotas[rows.index(max(rows))] > 0


def test_rows_of_all_sources_are_in_each_mixed_batch_without_shuffling_too() -> None:
    plan = plan_of(Mixture(), together=True, accumulation=1, shuffle=False)
    for step in range(plan.steps_per_epoch - 1):
        ((*parts,),) = plan.batches(step)
        assert 1 in {part.source for part in parts}
        assert len({part.source for part in parts}) > 1


def test_round_robin_takes_turns() -> None:
    plan = plan_of(MIXTURES["round robin"], accumulation=1)
    sources = [
        part.source for step in range(2 * plan.steps_per_epoch) for batch in plan.batches(step) for part in batch
    ]
    assert sources == [0, 1, 2] * (len(sources) // 3)


def test_sources_come_in_another_order_each_epoch_and_seed_and_in_theirs_without_shuffling() -> None:
    def sources(epoch: int, **spec: object) -> list[int]:
        plan = plan_of(Mixture(), accumulation=1, **spec)
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        return [part.source for step in steps for batch in plan.batches(step) for part in batch]

    assert len({tuple(sources(epoch)) for epoch in range(4)}) == 4
    assert sources(0) != sources(0, seed=7)
    assert sources(0, shuffle=False) == sorted(sources(0))
    assert drawn(plan_of(Mixture(), shuffle=False), range(1))[:4] == [(0, 0, row) for row in range(4)]


def test_two_sources_of_as_many_rows_are_not_shuffled_alike() -> None:
    spec = BatchSpec(50)
    first, second = (BatchPlan(50, spec, number).batch(0)[1] for number in (0, 1))
    assert (first != second).any()
