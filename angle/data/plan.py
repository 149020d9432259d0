"""Batches as a plan: which rows form a step is a function of (seed, step), not of an iterator's state.

So resuming is just seeking. Every process computes the same global batch and takes its shard of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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
    """The order of `rows` rows, epoch after epoch."""

    rows: int
    batch_spec: BatchSpec

    @property
    def batches_per_epoch(self) -> int:
        """Global batches per epoch; the last one may have fewer rows."""
        return -(-self.rows // self.batch_spec.global_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; the last one may have fewer batches."""
        return -(-self.batches_per_epoch // self.batch_spec.accumulation)

    def batches(self, step: int) -> list[tuple[int, IntArray]]:
        """Return (epoch, global rows) for each batch of an optimiser step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.rows, self.batch_spec.shuffle, self.batch_spec.seed, epoch)
        first = step_in_epoch * self.batch_spec.accumulation
        size = self.batch_spec.global_batch_size
        return [
            (epoch, order[batch * size : (batch + 1) * size])
            for batch in range(first, min(first + self.batch_spec.accumulation, self.batches_per_epoch))
        ]


@lru_cache(maxsize=2)
def _epoch_order(rows: int, shuffle: bool, seed: int, epoch: int) -> IntArray:
    if not shuffle:
        return np.arange(rows)
    return np.random.default_rng((seed, epoch)).permutation(rows)
