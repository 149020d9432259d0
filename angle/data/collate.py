"""A batch from rows: each distinct text once, and this process's shard of them."""

from __future__ import annotations

import numpy as np
import torch

from angle.data.corpus import Corpus, IntArray, RowTexts
from angle.data.plan import BatchSpec
from angle.structures import Batch, BatchStructure, Negatives, partition_by_length


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
