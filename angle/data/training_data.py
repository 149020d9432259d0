"""Training rows, grouped into optimiser steps."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from angle.data.collate import CorpusRows, collate_parts
from angle.data.corpus import Corpus, IntArray
from angle.data.plan import BatchPlan, BatchSpec, Mixture, MixturePlan, SourceRows
from angle.errors import DataError
from angle.structures import FORMATS, Batch, DataFormat, Tokens


class TrainingData(Protocol):
    """Training rows, grouped into optimiser steps."""

    @property
    def formats(self) -> tuple[DataFormat, ...]:
        """Shape of the rows that each of the run's losses gets; there are several if batches are of one source."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The source that each of the run's losses is for; none for a single one."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps per epoch, None for a stream."""

    @property
    def descriptions(self) -> list[str]:
        """For a reader, where the rows come from and how many there are; one for each source."""

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


@dataclass(frozen=True)
class TrainingSource:
    """One source of training rows."""

    corpus: Corpus
    name: str = ""
    """Its name among several."""
    batch_size: int | None = None
    """Rows that each process contributes to a batch of this source; None: as all others."""


class InMemoryTrainingData:
    """Training rows that are all in memory, of one source or of several."""

    def __init__(
        self, sources: Corpus | Sequence[TrainingSource], batch_spec: BatchSpec, mixture: Mixture | None = None
    ) -> None:
        """Plan the batches.

        Args:
            sources: the rows; just a corpus is a single source without a name.
            batch_spec: how batches are formed.
            mixture: how several sources are drawn.

        Raises:
            DataError: rows of these formats cannot be in one batch.

        """
        self.sources = [TrainingSource(sources)] if isinstance(sources, Corpus) else list(sources)
        self.mixture = mixture or Mixture()
        self.batch_specs = [
            replace(batch_spec, batch_size=source.batch_size or batch_spec.batch_size) for source in self.sources
        ]
        self._batch_spec = batch_spec
        plans = [
            BatchPlan(len(source.corpus), spec, number)
            for number, (source, spec) in enumerate(zip(self.sources, self.batch_specs, strict=True))
        ]
        self.plan = MixturePlan(plans, batch_spec, self.mixture)
        corpora = [source.corpus for source in self.sources]
        self.tokens, self._equal_ids, self._text_ids = _merge_texts(corpora, together=self.mixture.together)
        self._guide = _merge_guide_embeddings(corpora)
        self._first_rows = np.cumsum([0, *(plan.rows for plan in plans)]).tolist()
        self.formats = _formats_of_losses(self.sources, together=self.mixture.together)
        names = tuple(source.name for source in self.sources)
        self.loss_names = () if self.mixture.together or names == ("",) else names

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return self.plan.steps_per_epoch

    @property
    def num_rows(self) -> int:
        """Number of rows of all sources."""
        return int(self._first_rows[-1])

    @property
    def descriptions(self) -> list[str]:
        """For a reader, where the rows come from and how many there are; one for each source."""
        return list(map(_describe_source, self.sources))

    @property
    def fingerprint(self) -> str:
        """Hash of all rows."""
        if len(self.sources) == 1:
            return self.sources[0].corpus.fingerprint
        parts = [f"{source.name}\0{source.corpus.fingerprint}" for source in self.sources]
        return hashlib.sha256("\1".join(parts).encode()).hexdigest()

    def steps(self, start: int, rows_read: str | None = None) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step from `start` onwards, without end."""
        step = start
        while True:
            yield [self._batch(parts) for parts in self.plan.batches(step)]
            step += 1

    def _batch(self, parts: Sequence[SourceRows]) -> Batch:
        """Return the batch of some rows of sources."""
        loss = parts[0].source if self.loss_names else 0
        rows = [
            CorpusRows(
                self.sources[source].corpus, rows, epoch, self._text_ids[source], first_row=self._first_rows[source]
            )
            for source, epoch, rows in parts
        ]
        spec = self._batch_spec if self.mixture.together else self.batch_specs[parts[0].source]
        return collate_parts(rows, self.tokens, self._equal_ids, self.formats[loss], spec, loss=loss, guide=self._guide)

    def largest_rows(self) -> tuple[int, int, int]:
        """Return (loss, texts a row, rows a process) of the batches that have the most texts, by the mean of rows."""
        texts = [math.ceil(source.corpus.texts_per_row) for source in self.sources]
        rows = [spec.batch_size for spec in self.batch_specs]
        number = max(range(len(texts)), key=lambda source: texts[source] * rows[source])
        return number if self.loss_names else 0, texts[number], rows[number]

    def longest_batch(self) -> Batch:
        """Return the batch with the most tokens that the rows of a source could make up."""
        batches = []
        for number, (source, spec) in enumerate(zip(self.sources, self.batch_specs, strict=True)):
            texts = source.corpus.draw_texts(np.arange(len(source.corpus)), seed=spec.seed, epoch=0)
            row_lengths = np.bincount(texts.flat_rows, weights=source.corpus.tokens.lengths[texts.flat])
            longest_first = np.argsort(-row_lengths, kind="stable")[: spec.global_batch_size]
            batches.append(self._batch([SourceRows(number, 0, longest_first)]))
        return max(batches, key=lambda batch: batch.token_count)

    def describe(self, step: int) -> str:
        """Return where the rows of a step come from, for a message."""
        parts = [part for batch in self.plan.batches(step) for part in batch]
        rows = [(self.sources[part.source].corpus, int(row)) for part in parts for row in part.rows]
        shown = ", ".join(corpus.describe(row) for corpus, row in rows[:5])
        return f"{shown}{f' and {len(rows) - 5} more' if len(rows) > 5 else ''}"

    def rows_seen(self, steps: int) -> dict[str, int]:
        """Return how many rows of each source so many steps take, by its name."""
        seen = self.plan.rows_seen(steps)
        return {source.name: count for source, count in zip(self.sources, seen, strict=True)}


def _describe_source(source: TrainingSource) -> str:
    corpus = source.corpus
    names = ", ".join(dict.fromkeys(origin.rsplit(" ", 1)[0] for origin in corpus.origins))  # without the unit
    dropped = f", {corpus.dropped:,} dropped by label_map" if corpus.dropped else ""
    named = f"{source.name} ({names})" if source.name else names
    return f"{named}: {len(corpus):,} rows{dropped}, format {corpus.format.name}"


def _formats_of_losses(sources: Sequence[TrainingSource], *, together: bool) -> tuple[DataFormat, ...]:
    """Return the format of each source's batches or, if they are in batches together, the one that all have.

    Raises:
        DataError: there is no such format.

    """
    formats = tuple(source.corpus.format for source in sources)
    if not together:
        return formats
    names = {data_format.name for data_format in formats}
    if len(names) == 1:
        return formats[:1]
    if names <= {"B", "C"}:  # a row of C is one of B without negatives
        return (FORMATS["B"],)
    listed = ", ".join(f"{source.name} ({source.corpus.format.name})" for source in sources)
    raise DataError(
        f"data.mix=together cannot put rows with labels (format A) and without into one batch, and has {listed}: type "
        f"data.mix=by_source."
    )


def _merge_guide_embeddings(corpora: Sequence[Corpus]) -> npt.NDArray[np.float32] | None:
    """Return the guide's embeddings of the texts of all corpora; None without a guide."""
    known = [corpus.guide_embeddings for corpus in corpora if corpus.guide_embeddings is not None]
    if not known:
        return None
    assert len(known) == len(corpora)
    kinds = max(embeddings.shape[1] for embeddings in known)  # texts without roles are the same as each
    return (
        known[0]
        if len(known) == 1
        else np.concatenate([np.repeat(each, kinds // each.shape[1], axis=1) for each in known])
    )


def _merge_texts(corpora: Sequence[Corpus], *, together: bool) -> tuple[Tokens, IntArray, Sequence[IntArray | None]]:
    """Return the texts of all corpora, their `equal_ids`, and for each corpus which of these are its own (None: all).

    Args:
        corpora: the corpora.
        together: whether texts of several corpora can be in one batch, so that those with equal tokens are one, and
            equal texts in different templates are known as such.

    """
    if len(corpora) == 1:
        return corpora[0].tokens, corpora[0].equal_ids, [None]
    offsets = np.cumsum([0, *(len(corpus.tokens) for corpus in corpora)])
    lengths = np.concatenate([corpus.tokens.lengths for corpus in corpora])
    bounds = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    tokens = Tokens(np.concatenate([corpus.tokens.ids for corpus in corpora]), bounds)
    if not together:
        equal_ids = [offset + corpus.equal_ids for offset, corpus in zip(offsets[:-1], corpora, strict=True)]
        return tokens, np.concatenate(equal_ids), np.split(np.arange(offsets[-1]), offsets[1:-1])
    first_of: dict[bytes, int] = {}
    texts = (tokens.ids[start:stop].tobytes() for start, stop in itertools.pairwise(bounds.tolist()))
    places = np.fromiter((first_of.setdefault(text, place) for place, text in enumerate(texts)), np.int64)
    hashes = [corpus.text_hashes for corpus in corpora if corpus.text_hashes is not None]
    assert len(hashes) == len(corpora)
    equal = np.unique(np.concatenate(hashes), return_inverse=True)[1]
    return tokens, equal, np.split(places, offsets[1:-1])
