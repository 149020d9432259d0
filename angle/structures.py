"""The data passed between stages: rows -> texts -> tokens -> embeddings -> loss terms.

Legend for shapes, in this project: B rows, R roles (texts) in a row, G negatives of all rows, N distinct texts, L
tokens, T tokens of all texts, D dimensions, W processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: (N,) number of tokens of each of N texts.
Lengths = npt.NDArray[np.int64]


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device, without waiting for work already queued on the device.

    CUDA copies asynchronously only from pinned memory; torch keeps that memory alive until the copy is done.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


#: Columns that hold a row's negatives: one, or several that are numbered.
NEGATIVE_COLUMN = re.compile(r"negative(?:_(\d+))?")


@dataclass(frozen=True)
class DataFormat:
    """The shape of a row: which texts it has, and whether it has a label."""

    name: str
    roles: tuple[str, ...]
    labelled: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of this format has."""
        return (*self.roles, "label") if self.labelled else self.roles

    def fits(self, columns: Iterable[str]) -> bool:
        """Return whether a table with these columns can have this format."""
        return all(self.columns_of(role, columns) for role in self.columns)

    def columns_of(self, role: str, columns: Iterable[str]) -> list[str]:
        """Return which of a table's columns hold a role; that of the negatives may have several, in numerical order."""
        if role != "negative":
            return [column for column in columns if column == role]
        matches = [match for column in columns if (match := NEGATIVE_COLUMN.fullmatch(column))]
        return [match[0] for match in sorted(matches, key=lambda match: int(match[1] or -1))]


FORMATS = {
    "A": DataFormat("A", ("text1", "text2"), labelled=True),
    "B": DataFormat("B", ("text", "positive", "negative"), labelled=False),
    "C": DataFormat("C", ("text", "positive"), labelled=False),
}


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, packed one after another without padding."""

    ids: npt.NDArray[np.int32]
    """(T,)"""
    offsets: npt.NDArray[np.int64]
    """(N + 1,): text n is `ids[offsets[n]:offsets[n + 1]]`."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,): number of tokens of each text."""
        return np.diff(self.offsets)

    def take(self, indices: npt.NDArray[np.integer]) -> Tokens:
        """Return the texts with these indices, in that order."""
        lengths = self.lengths[indices]
        offsets = np.zeros(len(indices) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        return Tokens(np.asarray(self.ids[positions]), offsets)

    def model_inputs(self, device: torch.device) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return what an encoder takes: the token ids (T,) on a device, and the lengths (N,).

        Lengths are not a tensor: the encoder plans its work with them, which must not wait for the device, and a
        wrapper such as DDP would move a tensor there.
        """
        return to_device(self.ids.astype(np.int64), device), self.lengths

    def length_sorted_batches(self, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the indices of all texts in batches of `size`, longest first, so that a batch needs little padding."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]


def partition_by_length(lengths: npt.NDArray[np.int64], world_size: int) -> npt.NDArray[np.int64]:
    """Return (W, M), the indices of the texts that each of W processes gets, longest first.

    Texts are dealt round-robin from the longest to the shortest, which gives all processes about the same number of
    tokens. If N is not a multiple of W, some get the shortest text once more.
    """
    order = np.argsort(-lengths, kind="stable")
    per_process = -(-len(order) // world_size)
    padding = per_process * world_size - len(order)
    return np.pad(order, (0, padding), mode="edge").reshape(per_process, world_size).T


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Return the texts of all parts, one part after the other."""
    ends = np.cumsum([len(part.ids) for part in parts])
    offsets = [part.offsets[1:] + end - len(part.ids) for part, end in zip(parts, ends, strict=True)]
    return Tokens(np.concatenate([part.ids for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))


def _no_indices(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64)


@dataclass(frozen=True)
class Negatives:
    """The negatives of a batch's rows, G of them: a row may have any number."""

    rows: Tensor = field(default_factory=lambda: _no_indices(0))
    """(G,) int64, ascending: the row that each belongs to."""
    embedding_index: Tensor = field(default_factory=lambda: _no_indices(0))
    """(G,) int64: which embedding each has."""
    text_ids: Tensor = field(default_factory=lambda: _no_indices(0))
    """(G,) int64: equal ids mean equal texts."""


@dataclass(frozen=True)
class BatchStructure:
    """Which text has which role in which row, and the rows' labels: all that an objective knows about a batch."""

    format: DataFormat
    embedding_index: Tensor
    """(B, 2) int64: which embedding each row's two texts have, or, in formats B and C, its text and its positive."""
    text_ids: Tensor
    """(B, 2) int64: equal ids mean equal texts, also where these stand in different templates and so have different
    embeddings."""
    labels: Tensor | None
    """(B,) float32, for labelled formats."""
    negatives: Negatives = field(default_factory=Negatives)
    known_positives: Tensor = field(default_factory=lambda: _no_indices(0, 3))
    """(A, 3) int64: row, and two text ids that are not negatives of each other. These are texts that a row with several
    to draw from could have had in its first and second role; both are in the batch, possibly because of other rows."""
    loss: int = 0
    """Which of the run's losses it has, one for each source whose batches are its own."""
    guide: Tensor | None = None
    """(N, K, D): a guide's embeddings of the batch's texts, of unit length, in the order of the embeddings; as queries
    and as documents, if the guide tells them apart, else K is 1."""

    @classmethod
    def of_columns(
        cls, data_format: DataFormat, embedding_index: Tensor, text_ids: Tensor, labels: Tensor | None, loss: int = 0
    ) -> BatchStructure:
        """Return the structure of rows that all have a text in each of R columns, given as (B, R): two, then negatives.

        Args:
            data_format: the format of the rows.
            embedding_index: (B, R): which embedding each text has.
            text_ids: (B, R): equal ids mean equal texts.
            labels: (B,), for labelled formats.
            loss: which of the run's losses they have.

        """
        count, columns = embedding_index.shape
        rows = torch.arange(count, device=embedding_index.device).repeat_interleave(columns - 2)
        negatives = Negatives(rows, embedding_index[:, 2:].flatten(), text_ids[:, 2:].flatten())
        return cls(data_format, embedding_index[:, :2], text_ids[:, :2], labels, negatives, loss=loss)

    @property
    def num_texts(self) -> int:
        """The number of texts of all rows; one that rows share counts several times."""
        return self.embedding_index.numel() + self.negatives.rows.numel()

    @property
    def flat_embedding_index(self) -> Tensor:
        """(2 B + G,) int64: which embedding each text of all rows has, those of the negatives at the end."""
        return torch.cat([self.embedding_index.flatten(), self.negatives.embedding_index])

    def to(self, device: torch.device) -> BatchStructure:
        """Return a copy of this structure, which is on the CPU, on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return to_device(tensor.numpy(), device)

        negatives = self.negatives
        return BatchStructure(
            self.format,
            moved(self.embedding_index),
            moved(self.text_ids),
            None if self.labels is None else moved(self.labels),
            Negatives(moved(negatives.rows), moved(negatives.embedding_index), moved(negatives.text_ids)),
            moved(self.known_positives),
            self.loss,
            None if self.guide is None else moved(self.guide),
        )


@dataclass(frozen=True)
class Batch:
    """One evaluation of the objective: its rows of all processes, and one process's shard of their distinct texts."""

    tokens: Tokens
    """The M texts of this process, longest first."""
    text_ids: npt.NDArray[np.int64]
    """(M,): their ids, which are indices into the corpus."""
    occurrences: npt.NDArray[np.int64]
    """(M,): how many roles of the rows each text has; 0 for a copy that is counted on another process."""
    max_lengths: npt.NDArray[np.int64]
    """(M,): the maximum length, over all processes, of the texts in each position."""
    structure: BatchStructure
    """Of all rows; its `embedding_index` points into the gathered embeddings (W M, D), process after process."""
    token_count: int
    """Number of tokens in all roles of all rows."""
    rows: npt.NDArray[np.int64]
    """(B,): indices of all rows in the training data, for messages."""
    rows_read: str | None = None
    """Of a stream, a hash of the rows that were read for this batch and those before it; None: all are in memory."""

    def micro_batch(self, part: slice, device: torch.device) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return the `Tokens.model_inputs` of a slice of the texts."""
        return self.tokens.take(np.arange(len(self.tokens))[part]).model_inputs(device)

    def weights(self, part: slice, *, of_tokens: bool) -> npt.NDArray[np.float32]:
        """Return the weight of each text of a slice, or of each of its tokens, in a mean over all roles of all rows."""
        occurrences = self.occurrences[part].astype(np.float32)
        if of_tokens:
            return np.repeat(occurrences / np.float32(self.token_count), self.tokens.lengths[part])
        return occurrences / np.float32(self.structure.num_texts)
