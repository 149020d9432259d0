"""Batches as a plan: which rows form a step is a function of (seed, step), not of an iterator's state.

So resuming is just seeking. Every process computes the same global batch and takes its shard of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from angle.data.corpus import IntArray


@dataclass(frozen=True)
class BatchSpec:
    """How a global batch is formed and split across processes."""

    batch_size: int
    """Rows that each process contributes to one evaluation of the objective."""
    accumulation: int = 1
    """Batches per optimiser step."""
    duplicates: str = "mask"
    """mask, drop or keep: see `angle.config.DataConfig`."""
    shuffle: bool = True
    seed: int = 42
    world_size: int = 1
    """Number of processes."""
    rank: int = 0
    """Index of this process."""

    @property
    def global_batch_size(self) -> int:
        """Rows of all processes in one evaluation of the objective."""
        return self.batch_size * self.world_size


@dataclass(frozen=True)
class BatchPlan:
    """The order of the `rows` rows of a source, pass after pass, in batches."""

    rows: int
    batch_spec: BatchSpec
    source: int = 0
    """Which of several sources it is; each is shuffled by itself."""
    _orders: dict[int, IntArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in a pass; the last one may have fewer rows."""
        return -(-self.rows // self.batch_spec.global_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in a pass; the last one may have fewer batches."""
        return -(-self.batches_per_epoch // self.batch_spec.accumulation)

    def order(self, epoch: int) -> IntArray:
        """Return the order of the rows in a pass."""
        if epoch not in self._orders:
            if len(self._orders) == 2:  # a batch may have the end of one pass and the start of the next
                self._orders.pop(min(self._orders))
            random = np.random.default_rng((self.batch_spec.seed, epoch, self.source))
            self._orders[epoch] = random.permutation(self.rows) if self.batch_spec.shuffle else np.arange(self.rows)
        return self._orders[epoch]

    def batch(self, number: int) -> tuple[int, IntArray]:
        """Return (pass, global rows) of a batch, counted from the first pass on."""
        epoch, batch = divmod(number, self.batches_per_epoch)
        size = self.batch_spec.global_batch_size
        return epoch, self.order(epoch)[batch * size : (batch + 1) * size]

    def batches(self, step: int) -> list[tuple[int, IntArray]]:
        """Return (pass, global rows) for each batch of an optimiser step, if there is no other source."""
        return [self.batch(number) for number in _batch_numbers(step, self.batches_per_epoch, self.batch_spec)]


class SourceRows(NamedTuple):
    """Rows of a source that are part of a batch."""

    source: int
    epoch: int
    """The pass over the source that they are part of."""
    rows: IntArray


@dataclass(frozen=True)
class Mixture:
    """How the sources of a mixture are drawn."""

    together: bool = False
    """Whether a batch has rows of several sources."""
    sampling: str = "proportional"
    """See `angle.config.DataConfig`."""
    weights: tuple[float, ...] = ()
    """Of the sources, for weighted sampling: their shares of the rows, up to a common factor."""
    temperature: float = 1.0

    @property
    def alternating(self) -> bool:
        """Whether the sources take turns."""
        return self.sampling == "round_robin"

    def quotas(self, rows: Sequence[int], unit_rows: Sequence[int]) -> tuple[int, ...]:
        """Return how many units of each source are in an epoch, which has about as many rows as all sources have.

        Args:
            rows: how many rows each source has.
            unit_rows: how many rows a unit of it has at most; a pass may end with one that has fewer.

        """
        units = [-(-count // of_unit) for count, of_unit in zip(rows, unit_rows, strict=True)]
        if self.sampling == "proportional":
            return tuple(units)
        if self.alternating:
            return (-(-sum(units) // len(units)),) * len(units)
        sizes = np.array(rows)
        shares = (
            np.array(self.weights) if self.sampling == "weights" else (sizes / sizes.max()) ** (1 / self.temperature)
        )
        mean_unit_rows = sizes / np.array(units)  # the last unit of a pass may have fewer rows than others
        wanted = shares / shares.sum() * sizes.sum() / mean_unit_rows
        return tuple(max(1, round(count)) if share else 0 for share, count in zip(shares, wanted.tolist(), strict=True))


class MixturePlan:
    """Which rows of which sources form each batch.

    An epoch consists of units: batches of one source or, if the sources are mixed within a batch, rows. Each source has
    the same number of units in every epoch, its quota, and goes on through its own passes from epoch to epoch.
    """

    def __init__(self, plans: Sequence[BatchPlan], batch_spec: BatchSpec, mixture: Mixture) -> None:
        """Decide how many units each source has in an epoch.

        Args:
            plans: of the sources; if batches are of one source, these have its batch size.
            batch_spec: how mixed batches are formed, and how many batches a step has.
            mixture: how the sources are drawn.

        """
        self._plans, self._batch_spec, self._mixture = tuple(plans), batch_spec, mixture
        rows = [plan.rows for plan in plans]
        unit_rows = [1 if mixture.together else plan.batch_spec.global_batch_size for plan in plans]
        self.quotas = mixture.quotas(rows, unit_rows)
        self._units_per_batch = batch_spec.global_batch_size if mixture.together else 1
        self.batches_per_epoch = -(-sum(self.quotas) // self._units_per_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; the last one may have fewer batches."""
        return -(-self.batches_per_epoch // self._batch_spec.accumulation)

    def batches(self, step: int) -> list[list[SourceRows]]:
        """Return the rows of each batch of an optimiser step."""
        numbers = _batch_numbers(step, self.batches_per_epoch, self._batch_spec)
        return [self._batch(*divmod(number, self.batches_per_epoch)) for number in numbers]

    def _batch(self, epoch: int, batch: int) -> list[SourceRows]:
        sources, ranks = self._units(epoch)
        units = slice(batch * self._units_per_batch, (batch + 1) * self._units_per_batch)
        found: list[SourceRows] = []
        for source in np.unique(sources[units]).tolist():
            numbers = epoch * self.quotas[source] + ranks[units][sources[units] == source]
            found += self._rows_of_units(source, numbers)
        return found

    def _rows_of_units(self, source: int, numbers: IntArray) -> Iterator[SourceRows]:
        """Yield the rows of units of a source, which are counted from its first pass on."""
        plan = self._plans[source]
        if not self._mixture.together:
            yield from (SourceRows(source, *plan.batch(int(number))) for number in numbers)
            return
        passes, places = np.divmod(numbers, plan.rows)
        for number in np.unique(passes).tolist():
            yield SourceRows(source, number, plan.order(number)[places[passes == number]])

    def _units(self, epoch: int) -> tuple[npt.NDArray[np.int16], IntArray]:
        """Return the source of each unit of an epoch, and its number among that source's units of the epoch."""
        spec, mixture = self._batch_spec, self._mixture
        return _unit_order(self.quotas, mixture.alternating, spec.shuffle, mixture.together, spec.seed, epoch)

    def rows_seen(self, steps: int) -> list[int]:
        """Return how many rows of each source the first `steps` optimiser steps take."""
        epochs, steps_in_epoch = divmod(steps, self.steps_per_epoch)
        batches = min(steps_in_epoch * self._batch_spec.accumulation, self.batches_per_epoch)
        sources, _ = self._units(epochs)
        in_epoch = np.bincount(sources[: batches * self._units_per_batch], minlength=len(self.quotas))
        units = [epochs * quota + int(count) for quota, count in zip(self.quotas, in_epoch, strict=True)]
        if self._mixture.together:
            return units
        return [self._rows_of_batches(plan, count) for plan, count in zip(self._plans, units, strict=True)]

    @staticmethod
    def _rows_of_batches(plan: BatchPlan, batches: int) -> int:
        passes, rest = divmod(batches, plan.batches_per_epoch)
        return passes * plan.rows + min(rest * plan.batch_spec.global_batch_size, plan.rows)


def _batch_numbers(step: int, batches_per_epoch: int, batch_spec: BatchSpec) -> range:
    """Return the numbers of the batches of an optimiser step, counted from the first epoch on."""
    epoch, step_in_epoch = divmod(step, -(-batches_per_epoch // batch_spec.accumulation))
    first = step_in_epoch * batch_spec.accumulation
    last = min(first + batch_spec.accumulation, batches_per_epoch)
    return range(epoch * batches_per_epoch + first, epoch * batches_per_epoch + last)


@lru_cache(maxsize=2)
def _unit_order(
    quotas: tuple[int, ...], alternating: bool, shuffle: bool, together: bool, seed: int, epoch: int
) -> tuple[npt.NDArray[np.int16], IntArray]:
    """Return the source of each unit of an epoch, and its number among that source's units."""
    if alternating:
        sources = np.tile(np.arange(len(quotas), dtype=np.int16), quotas[0])
    else:
        sources = np.repeat(np.arange(len(quotas), dtype=np.int16), quotas)
        if shuffle:
            sources = np.random.default_rng((seed, epoch, 0, 1)).permutation(sources)
        elif together:  # evenly, so that all batches have rows of all sources
            places = np.concatenate([(np.arange(quota) + 0.5) / max(1, quota) for quota in quotas])
            sources = sources[np.argsort(places, kind="stable")]
    ranks = np.empty(len(sources), np.int64)
    for source, quota in enumerate(quotas):
        ranks[sources == source] = np.arange(quota)
    return sources, ranks
