"""Training rows, grouped into optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from angle.data.collate import collate
from angle.data.corpus import Corpus
from angle.data.plan import BatchPlan, BatchSpec
from angle.structures import Batch, DataFormat


class TrainingData(Protocol):
    """Training rows, grouped into optimiser steps."""

    @property
    def format(self) -> DataFormat:
        """Shape of the rows."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps per epoch, None for a stream."""

    @property
    def summary(self) -> str:
        """Human-readable description of where the rows come from and how many there are."""

    @property
    def fingerprint(self) -> str | None:
        """Hash of all rows; of a stream, one of its files, or None if it comes from elsewhere."""

    def steps(self, start: int, rows_read: str | None = None) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end.

        Args:
            start: the number of steps that were taken.
            rows_read: what the last batch of these said of itself; None: it is not known.

        Raises:
            DataError: the rows of a stream are not those of these steps.

        """

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""


class InMemoryTrainingData:
    """Training rows that are all in memory."""

    def __init__(self, corpus: Corpus, batch_spec: BatchSpec) -> None:
        """Plan the batches of `corpus`."""
        self.corpus = corpus
        self.batch_spec = batch_spec
        self.plan = BatchPlan(len(corpus), batch_spec)

    @property
    def format(self) -> DataFormat:
        """Shape of the rows."""
        return self.corpus.format

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return self.plan.steps_per_epoch

    @property
    def summary(self) -> str:
        """Human-readable description of where the rows come from and how many there are."""
        names = ", ".join(dict.fromkeys(origin.rsplit(" ", 1)[0] for origin in self.corpus.origins))  # without the unit
        dropped = f", {self.corpus.dropped:,} dropped by label_map" if self.corpus.dropped else ""
        return f"{names}: {len(self.corpus):,} rows{dropped}"

    @property
    def fingerprint(self) -> str:
        """Hash of all rows."""
        return self.corpus.fingerprint

    def steps(self, start: int, rows_read: str | None = None) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end."""
        step = start
        while True:
            yield [collate(self.corpus, rows, epoch, self.batch_spec) for epoch, rows in self.plan.batches(step)]
            step += 1

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""
        rows = np.concatenate([rows for _, rows in self.plan.batches(step)])
        shown = ", ".join(self.corpus.describe(int(row)) for row in rows[:5])
        return f"{shown}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''}"
