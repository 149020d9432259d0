"""Batches as a plan: which rows form a step is a function of (seed, step), not of an iterator's state.

So resuming is just seeking. Every process computes the same global batch and takes its shard of the texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from angle.config import LimitsConfig, SourceConfig
from angle.data import sources
from angle.data.corpus import Corpus, IntArray, RowTexts
from angle.data.corpus_builder import CorpusBuilder, Tokenizer
from angle.data.formats import common_format
from angle.data.table import Table
from angle.errors import DataError
from angle.structures import Batch, BatchStructure, DataFormat, Negatives, partition_by_length


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


class StreamingTrainingData:
    """Training rows that are streamed: each window of them is a corpus, shuffled within itself.

    The position of a step's rows in the stream follows from its number. So resuming reads the stream again up to that
    point, without tokenising what it skips, and then sees what the uninterrupted run would have seen.
    """

    def __init__(
        self,
        source: SourceConfig,
        data_format: str,
        tokenizer: Tokenizer,
        batch_spec: BatchSpec,
        window: int,
        limits: LimitsConfig | None = None,
        negatives: str = "draw",
    ) -> None:
        """Check the columns; `steps` reads the rows.

        Args:
            source: where the rows come from.
            data_format: A, B, C or auto.
            tokenizer: turns texts into tokens; it must be this stream's own if `steps` runs in another thread.
            batch_spec: how batches are formed.
            window: number of rows that are held, and shuffled among themselves, at a time; rounded up to whole steps.
            limits: what is read at most; None: the defaults.
            negatives: what a list of negatives means, see `angle.config.DataConfig`.

        """
        self._source, self._data_format, self._tokenizer, self._batch_spec = source, data_format, tokenizer, batch_spec
        rows_per_step = batch_spec.global_batch_size * batch_spec.accumulation
        self._window = -(-window // rows_per_step) * rows_per_step
        self._limits, self._negatives = limits or LimitsConfig(), negatives
        self._file_states = sources.file_states(source)
        tables = self._known_tables = self._tables()
        self.format = common_format(tables, data_format, "train", tokenizer.columns)
        self._names = ", ".join(table.name for table in tables)
        self.steps_per_epoch: int | None = None
        self.fingerprint = sources.fingerprint_of_files(source)

    @property
    def summary(self) -> str:
        """Human-readable description of where the rows come from."""
        return f"{self._names}: a stream, shuffled in windows of {self._window:,} rows"

    def _windows(self) -> Iterator[CorpusBuilder]:
        """Yield full windows of rows, pass after pass; the last window of a pass may be smaller."""
        while True:
            builder, pass_has_rows = self._builder(), False
            for table in self._tables():
                for number, row in table.rows:
                    builder.add(table, number, row)
                    if len(builder) == self._window:
                        self._check(builder)
                        yield builder
                        builder, pass_has_rows = self._builder(), True
            self._check(builder)
            if len(builder):
                yield builder
            elif not pass_has_rows:
                builder.build(self._tokenizer, cache=False)  # raises, saying why there is no row

    def _tables(self) -> list[Table]:
        columns, limits = self._tokenizer.columns, self._limits
        return sources.open_tables(
            self._source, "train", self._data_format, template_columns=columns, limits=limits, streaming=True
        )

    def _builder(self) -> CorpusBuilder:
        columns = self._tokenizer.columns
        return CorpusBuilder(
            self.format, self._source, "train", columns, self._limits, self._negatives, self._known_tables
        )

    def _check(self, builder: CorpusBuilder) -> None:
        """Raise DataError for rows with problems, and for files that are no longer those that training began with."""
        if sources.file_states(self._source) != self._file_states:
            raise DataError(
                f"data.train: {self._names} was written to during the run, which would go on with other rows: put the "
                f"file back and resume the run, or start a new one."
            )
        builder.check()

    def steps(self, start: int, rows_read: str | None = None) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end.

        Every batch carries a hash of all rows up to the end of its window, for the run that resumes after it.
        """
        window_start, hash_of_rows = 0, hashlib.sha256()  # the first step of a window
        for number, builder in enumerate(self._windows()):
            plan = BatchPlan(len(builder), self._batch_spec)
            window_end = window_start + plan.steps_per_epoch
            corpus = builder.build(self._tokenizer, cache=False) if window_end > start else None
            hash_of_rows.update((builder.fingerprint() if corpus is None else corpus.fingerprint).encode())
            rows_up_to_here = hash_of_rows.hexdigest()
            if window_start < start <= window_end and rows_read not in (None, rows_up_to_here):
                raise DataError(
                    f"data.train: {self._names} does not have the rows that the first {start:,} steps were trained "
                    f"on, so going on would mix two data sets: put the old rows back, or start a new run "
                    f"with another train.output_dir."
                )
            if corpus is not None:
                # Windows are shuffled as the epochs of their plan: each in another order.
                for step in range(max(start - window_start, 0), plan.steps_per_epoch):
                    batches = plan.batches(number * plan.steps_per_epoch + step)
                    yield [collate(corpus, rows, epoch, self._batch_spec, rows_up_to_here) for epoch, rows in batches]
            window_start = window_end

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""
        return f"a window of {self._names}"


def collate(corpus: Corpus, rows: IntArray, epoch: int, batch_spec: BatchSpec, rows_read: str | None = None) -> Batch:
    """Return a global batch with this process's shard of its texts, in which each distinct text occurs once."""
    texts = corpus.draw_texts(rows, batch_spec.seed, epoch)
    if batch_spec.duplicates == "drop":
        without_duplicates = rows_without_duplicates(texts)
        rows, texts = rows[without_duplicates], texts.take(without_duplicates)
    distinct_ids, inverse, occurrences = np.unique(texts.flat, return_inverse=True, return_counts=True)
    lengths = corpus.tokens.lengths[distinct_ids]
    shards = partition_by_length(lengths, batch_spec.world_size)
    gathered_positions = np.arange(shards.size).reshape(shards.shape)  # in the gathered embeddings of all processes
    shard, local_positions = shards[batch_spec.rank], gathered_positions[batch_spec.rank]
    # If a text is in several shards, the last of its positions.
    position_of_text = np.empty(len(distinct_ids), np.int64)
    position_of_text[shards.flatten()] = gathered_positions.flatten()
    labels = None if corpus.labels is None else torch.from_numpy(corpus.labels[rows])
    pair_positions, negative_positions = np.split(position_of_text[inverse], [texts.pairs.size])
    negatives = (texts.negative_rows, negative_positions, texts.negatives)
    return Batch(
        tokens=corpus.tokens.take(distinct_ids[shard]),
        text_ids=distinct_ids[shard],
        occurrences=np.where(position_of_text[shard] == local_positions, occurrences[shard], 0),
        max_lengths=lengths[shards[0]],
        structure=BatchStructure(
            format=corpus.format,
            embedding_index=torch.from_numpy(pair_positions.reshape(texts.pairs.shape)),
            text_ids=torch.from_numpy(texts.pairs),
            labels=labels,
            negatives=Negatives(*map(torch.from_numpy, negatives)),
            known_positives=torch.from_numpy(corpus.known_positives(rows, distinct_ids)),
        ),
        token_count=int((occurrences * lengths).sum()),
        rows=rows,
        rows_read=rows_read,
    )


def rows_without_duplicates(texts: RowTexts) -> IntArray:
    """Return the positions of the rows whose texts differ from each other and from those of earlier rows returned.

    A row that is left out does not block a later one. If all would be left out, the first one stays.
    """
    rows: list[list[int]] = texts.pairs.tolist()
    for position, text_id in zip(texts.negative_rows.tolist(), texts.negatives.tolist(), strict=True):
        rows[position].append(text_id)
    seen: set[int] = set()
    selected = []
    for number, row in enumerate(rows):
        if len(set(row)) == len(row) and seen.isdisjoint(row):
            seen.update(row)
            selected.append(number)
    return np.array(selected or [0], np.int64)
