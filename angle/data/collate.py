"""A batch from rows: each distinct text once, and this process's shard of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from angle.data.corpus import Corpus, IntArray, RowTexts
from angle.data.plan import BatchSpec
from angle.structures import Batch, BatchStructure, DataFormat, Negatives, Tokens, partition_by_length


@dataclass(frozen=True)
class CorpusRows:
    """Rows of a corpus that are part of a batch."""

    corpus: Corpus
    rows: IntArray
    epoch: int
    """The pass over the corpus that they are part of, by which texts are drawn."""
    text_ids: IntArray | None = None
    """(N,): which of all corpora's texts those of this one are; None: there are no others."""
    first_row: int = 0
    """How many rows the corpora before it have."""

    def draw_texts(self, seed: int) -> RowTexts:
        """Return the texts that stand for the rows, by their places among all."""
        texts = self.corpus.draw_texts(self.rows, seed, self.epoch)
        if self.text_ids is None:
            return texts
        return RowTexts(self.text_ids[texts.pairs], self.text_ids[texts.negatives], texts.negative_rows)

    def known_positives(self, in_batch: npt.NDArray[np.bool_]) -> IntArray:
        """Return `Corpus.known_positives`, by places among all, of which `in_batch` says what the batch has."""
        if self.text_ids is None:
            return self.corpus.known_positives(self.rows, in_batch)
        pairs = self.corpus.known_positives(self.rows, in_batch[self.text_ids])
        return np.column_stack([pairs[:, 0], self.text_ids[pairs[:, 1:]]])


def collate(corpus: Corpus, rows: IntArray, epoch: int, batch_spec: BatchSpec, rows_read: str | None = None) -> Batch:
    """Return a global batch of a corpus, as `collate_parts` does."""
    parts = [CorpusRows(corpus, rows, epoch)]
    return collate_parts(parts, corpus.tokens, corpus.equal_ids, corpus.format, batch_spec, rows_read=rows_read)


def collate_parts(
    parts: Sequence[CorpusRows],
    tokens: Tokens,
    equal_ids: IntArray,
    data_format: DataFormat,
    batch_spec: BatchSpec,
    *,
    loss: int = 0,
    rows_read: str | None = None,
    guide: npt.NDArray[np.float32] | None = None,
) -> Batch:
    """Return a global batch with this process's shard of its texts, in which each distinct text occurs once.

    Args:
        parts: the rows of each corpus.
        tokens: the texts of all corpora.
        equal_ids: (N,): equal for equal texts, whatever templates they stand in.
        data_format: a format that the rows of all parts have; those of format C are ones of B without negatives.
        batch_spec: how the batch is split, and what becomes of duplicates.
        loss: which of the run's losses it has.
        rows_read: see `Batch`.
        guide: (N, D): a guide's embeddings of the texts.

    """
    texts = _concatenate([part.draw_texts(batch_spec.seed) for part in parts])
    if batch_spec.duplicates == "drop":
        texts = texts.without_repeated_negatives(equal_ids)
        kept = rows_without_duplicates(
            replace(texts, pairs=equal_ids[texts.pairs], negatives=equal_ids[texts.negatives])
        )
        parts, texts = _take(parts, kept), texts.take(kept)
    distinct_ids, inverse, occurrences = np.unique(texts.flat, return_inverse=True, return_counts=True)
    lengths = tokens.lengths[distinct_ids]
    shards = partition_by_length(lengths, batch_spec.world_size)
    gathered_positions = np.arange(shards.size).reshape(shards.shape)  # in the gathered embeddings of all processes
    shard, local_positions = shards[batch_spec.rank], gathered_positions[batch_spec.rank]
    # If a text is in several shards, the last of its positions.
    position_of_text = np.empty(len(distinct_ids), np.int64)
    position_of_text[shards.flatten()] = gathered_positions.flatten()
    pair_positions, negative_positions = np.split(position_of_text[inverse], [texts.pairs.size])
    negatives = (texts.negative_rows, negative_positions, equal_ids[texts.negatives])
    known_positives = _known_positives(parts, distinct_ids, len(tokens))
    known_positives[:, 1:] = equal_ids[known_positives[:, 1:]]
    return Batch(
        tokens=tokens.take(distinct_ids[shard]),
        text_ids=distinct_ids[shard],
        occurrences=np.where(position_of_text[shard] == local_positions, occurrences[shard], 0),
        max_lengths=lengths[shards[0]],
        structure=BatchStructure(
            format=data_format,
            embedding_index=torch.from_numpy(pair_positions.reshape(texts.pairs.shape)),
            text_ids=torch.from_numpy(equal_ids[texts.pairs]),
            labels=_labels(parts) if data_format.labelled else None,
            negatives=Negatives(*map(torch.from_numpy, negatives)),
            known_positives=torch.from_numpy(known_positives),
            loss=loss,
            guide=None if guide is None else torch.from_numpy(guide[distinct_ids[shards.flatten()]]),
        ),
        token_count=int((occurrences * lengths).sum()),
        rows=np.concatenate([part.first_row + part.rows for part in parts]),
        rows_read=rows_read,
    )


def _concatenate(parts: Sequence[RowTexts]) -> RowTexts:
    """Return the texts of all rows, part after part."""
    if len(parts) == 1:
        return parts[0]
    first_rows = np.cumsum([0, *(len(part.pairs) for part in parts[:-1])])
    return RowTexts(
        np.concatenate([part.pairs for part in parts]),
        np.concatenate([part.negatives for part in parts]),
        np.concatenate([first + part.negative_rows for first, part in zip(first_rows, parts, strict=True)]),
    )


def _take(parts: Sequence[CorpusRows], positions: IntArray) -> list[CorpusRows]:
    """Return the rows of the parts at some positions, which are counted from the first part on."""
    ends = np.cumsum([len(part.rows) for part in parts])
    cuts = np.split(positions, np.searchsorted(positions, ends[:-1]))
    firsts = [0, *ends[:-1].tolist()]
    return [replace(part, rows=part.rows[cut - first]) for part, cut, first in zip(parts, cuts, firsts, strict=True)]


def _labels(parts: Sequence[CorpusRows]) -> Tensor:
    """Return the labels (B,) of the rows of all parts."""
    return torch.from_numpy(np.concatenate([part.corpus.labels[part.rows] for part in parts]))  # type: ignore[index]


def _known_positives(parts: Sequence[CorpusRows], text_ids: IntArray, num_texts: int) -> IntArray:
    """Return (A, 3): the known positives of the rows of all parts among the batch's distinct texts."""
    found = [np.empty((0, 3), np.int64)]
    if any(part.corpus.has_choice(part.rows).any() for part in parts):
        in_batch = np.zeros(num_texts, bool)
        in_batch[text_ids] = True
        first = 0
        for part in parts:
            found.append(part.known_positives(in_batch) + (first, 0, 0))  # noqa: RUF005
            first += len(part.rows)
    return np.concatenate(found)


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
