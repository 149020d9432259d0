"""Training rows that are read while they are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

from angle.config import LimitsConfig, SourceConfig
from angle.data import sources
from angle.data.collate import collate
from angle.data.corpus_builder import CorpusBuilder
from angle.data.distinct_texts import Tokenizer, template_columns
from angle.data.formats import common_format
from angle.data.plan import BatchPlan, BatchSpec
from angle.data.table import Table
from angle.errors import DataError
from angle.structures import Batch


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
        self._format = common_format(tables, data_format, "train", partial(template_columns, tokenizer))
        self.formats, self.loss_names = (self._format,), ()
        self._names = ", ".join(table.name for table in tables)
        self.steps_per_epoch: int | None = None
        self.fingerprint = sources.fingerprint_of_files(source)

    @property
    def descriptions(self) -> list[str]:
        """For a reader, where the rows come from."""
        return [f"{self._names}: a stream, shuffled in windows of {self._window:,} rows, format {self._format.name}"]

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
                builder.build(cache=False)  # raises, saying why there is no row

    def _tables(self) -> list[Table]:
        columns, limits = template_columns(self._tokenizer, sorted(sources.ROLES)), self._limits
        return sources.open_tables(
            self._source, "train", self._data_format, template_columns=columns, limits=limits, streaming=True
        )

    def _builder(self) -> CorpusBuilder:
        return CorpusBuilder(
            self._format, self._source, "train", self._tokenizer, self._limits, self._negatives, self._known_tables
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
            corpus = builder.build(cache=False) if window_end > start else None
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
