"""Batches as a plan: which rows form a step is a function of (seed, step), not of an iterator's state.

So resuming is just seeking, and every process computes the same global batch and takes its share of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from angle.config import SourceConfig
from angle.data import sources
from angle.data.corpus import Corpus, CorpusBuilder, Ints, Tokenizer, check_extra_columns, common_format
from angle.structures import Batch, BatchStructure, DataFormat, partition_by_length


@dataclass(frozen=True)
class BatchSpec:
    """How a global batch is formed and split across processes."""

    batch_size: int
    """Rows that each process contributes to one evaluation of the objective."""
    accumulation: int = 1
    """Batches per optimiser step."""
    duplicates: str = "mask"
    shuffle: bool = True
    seed: int = 42
    processes: int = 1
    rank: int = 0

    @property
    def global_rows(self) -> int:
        """Rows of all processes in one evaluation of the objective."""
        return self.batch_size * self.processes


@dataclass(frozen=True)
class Plan:
    """The order of `rows` rows, epoch after epoch."""

    rows: int
    batch_spec: BatchSpec

    @property
    def batches_per_epoch(self) -> int:
        """Global batches per epoch; the last one may have fewer rows."""
        return -(-self.rows // self.batch_spec.global_rows)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch; the last one may have fewer batches."""
        return -(-self.batches_per_epoch // self.batch_spec.accumulation)

    def step(self, step: int) -> list[tuple[int, Ints]]:
        """Return (epoch, global rows) for each batch of an optimiser step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _order(self.rows, self.batch_spec.shuffle, self.batch_spec.seed, epoch)
        first = within * self.batch_spec.accumulation
        size = self.batch_spec.global_rows
        return [
            (epoch, order[batch * size : (batch + 1) * size])
            for batch in range(first, min(first + self.batch_spec.accumulation, self.batches_per_epoch))
        ]


@lru_cache(maxsize=2)
def _order(rows: int, shuffle: bool, seed: int, epoch: int) -> Ints:
    if not shuffle:
        return np.arange(rows)
    return np.random.default_rng((seed, epoch)).permutation(rows)


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

    def steps(self, start: int) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end."""

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""


class CorpusData:
    """Training rows that are all available up front."""

    def __init__(self, corpus: Corpus, batch_spec: BatchSpec) -> None:
        """Plan the batches of `corpus`."""
        self.corpus = corpus
        self.batch_spec = batch_spec
        self.plan = Plan(len(corpus), batch_spec)

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
        names = ", ".join(dict.fromkeys(origin.rsplit(" ", 1)[0] for origin in self.corpus.origins))
        dropped = f", {self.corpus.dropped:,} dropped by label_map" if self.corpus.dropped else ""
        return f"{names}: {len(self.corpus):,} rows{dropped}"

    @property
    def fingerprint(self) -> str:
        """Hash of all rows."""
        return self.corpus.fingerprint

    def steps(self, start: int) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end."""
        step = start
        while True:
            yield [collate(self.corpus, rows, epoch, self.batch_spec) for epoch, rows in self.plan.step(step)]
            step += 1

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""
        rows = np.concatenate([rows for _, rows in self.plan.step(step)])
        shown = ", ".join(self.corpus.describe(int(row)) for row in rows[:5])
        return f"{shown}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''}"


class StreamData:
    """Training rows that are streamed: each window of them is a corpus, shuffled within itself.

    The position of a step's rows in the stream follows from its number. So resuming reads the stream again up to that
    point, without tokenising what it skips, and then sees what the uninterrupted run would have seen.
    """

    def __init__(
        self, source: SourceConfig, data_format: str, tokenizer: Tokenizer, batch_spec: BatchSpec, window: int
    ) -> None:
        """Check the columns; `steps` reads the rows."""
        self._source, self._wanted, self._tokenizer, self._sharing = source, data_format, tokenizer, batch_spec
        per_step = batch_spec.global_rows * batch_spec.accumulation
        self._window = -(-window // per_step) * per_step
        tables = sources.open_tables(source, "train", data_format, streaming=True)
        self.format = common_format(tables, data_format, "train")
        self._names = ", ".join(table.where for table in tables)
        self.steps_per_epoch: int | None = None
        self.fingerprint = sources.fingerprint_of_files(source)

    @property
    def summary(self) -> str:
        """Human-readable description of where the rows come from."""
        return f"{self._names}: a stream, shuffled in windows of {self._window:,} rows"

    def _windows(self) -> Iterator[CorpusBuilder]:
        """Yield full windows of rows, pass after pass; the last window of a pass may be smaller."""
        while True:
            builder, some = self._builder(), False
            for table in sources.open_tables(self._source, "train", self._wanted, streaming=True):
                check_extra_columns(table, self._tokenizer.columns, "train")
                for number, row in table.rows:
                    builder.add(table, number, row)
                    if len(builder) == self._window:
                        builder.check()
                        yield builder
                        builder, some = self._builder(), True
            builder.check()
            if len(builder):
                yield builder
            elif not some:
                builder.build(self._tokenizer, cache=False)  # raises, saying why there is no row

    def _builder(self) -> CorpusBuilder:
        return CorpusBuilder(self.format, self._source, "train", self._tokenizer.columns)

    def steps(self, start: int) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end."""
        done = 0
        for number, builder in enumerate(self._windows()):
            plan = Plan(len(builder), self._sharing)
            first, last = number * plan.steps_per_epoch, (number + 1) * plan.steps_per_epoch
            if done + plan.steps_per_epoch > start:
                corpus = builder.build(self._tokenizer, cache=False)
                for step in range(first + max(start - done, 0), last):
                    yield [collate(corpus, rows, epoch, self._sharing) for epoch, rows in plan.step(step)]
            done += plan.steps_per_epoch

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""
        return f"a window of {self._names}"


def collate(corpus: Corpus, rows: Ints, epoch: int, batch_spec: BatchSpec) -> Batch:
    """Return a global batch with this process's share of its texts; each distinct text is in it once."""
    texts = corpus.draw_text_ids(rows, batch_spec.seed, epoch)  # (B, R)
    if batch_spec.duplicates == "drop":
        kept = without_repeats(texts)
        rows, texts = rows[kept], texts[kept]
    distinct, index, counts = np.unique(texts, return_inverse=True, return_counts=True)
    lengths = corpus.tokens.lengths[distinct]
    shards = partition_by_length(lengths, batch_spec.processes)
    own, slots = shards[batch_spec.rank], np.arange(shards.size).reshape(shards.shape)
    places = np.empty(len(distinct), np.int64)  # positions among the embeddings of all processes
    places[shards.flatten()] = slots.flatten()
    labels = None if corpus.labels is None else torch.from_numpy(corpus.labels[rows])
    return Batch(
        tokens=corpus.tokens.take(distinct[own]),
        text_ids=distinct[own],
        counts=np.where(places[own] == slots[batch_spec.rank], counts[own], 0),
        max_lengths=lengths[shards[0]],
        structure=BatchStructure(
            format=corpus.format,
            index=torch.from_numpy(places[index.reshape(texts.shape)]),
            text_ids=torch.from_numpy(texts),
            labels=labels,
            known_positives=torch.from_numpy(corpus.known_positives(rows, distinct)),
        ),
        token_count=int((counts * lengths).sum()),
        rows=rows,
    )


def without_repeats(texts: Ints) -> Ints:
    """Return which rows have no text that an earlier kept row (or another of their own roles) already has.

    A row that is left out does not block a later one. If all would be left out, the first one stays.
    """
    seen: set[int] = set()
    kept = []
    for number, row in enumerate(texts.tolist()):
        if len(set(row)) == len(row) and seen.isdisjoint(row):
            seen.update(row)
            kept.append(number)
    return np.array(kept or [0], np.int64)
