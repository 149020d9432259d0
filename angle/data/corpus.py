"""Rows over distinct texts that are tokenised once: which row uses which text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from angle.structures import DataFormat, Tokens

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowTexts:
    """The texts of B rows, by their ids: those that stand for the rows in one epoch."""

    pairs: IntArray
    """(B, 2): each row's two texts, or, in formats B and C, its text and its positive."""
    negatives: IntArray
    """(G,): the negatives of all rows, row after row."""
    negative_rows: IntArray
    """(G,): the position of the row that each belongs to."""

    @property
    def flat(self) -> IntArray:
        """All ids: (2 B + G,), those of `pairs` row by row, then those of `negatives`."""
        return np.concatenate([self.pairs.ravel(), self.negatives])

    @property
    def flat_rows(self) -> IntArray:
        """The position of the row that each id of `flat` belongs to."""
        return np.concatenate([np.repeat(np.arange(len(self.pairs)), 2), self.negative_rows])

    @property
    def first_of_each_role(self) -> IntArray:
        """(B, R): each row's two texts and, if rows have negatives, the first of these."""
        _, first = np.unique(self.negative_rows, return_index=True)
        return np.column_stack([self.pairs, self.negatives[first]]) if len(first) else self.pairs

    def without_repeated_negatives(self, equal_ids: IntArray) -> RowTexts:
        """Return these texts with each row's negatives once; those with equal `equal_ids` (N,) are the same text."""
        keys = np.column_stack([self.negative_rows, equal_ids[self.negatives]])
        kept = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        return RowTexts(self.pairs, self.negatives[kept], self.negative_rows[kept])

    def take(self, rows: IntArray) -> RowTexts:
        """Return the texts of the rows at these positions, which ascend."""
        place = np.full(len(self.pairs), -1)
        place[rows] = np.arange(len(rows))
        negative_rows = place[self.negative_rows]
        kept = negative_rows >= 0
        return RowTexts(self.pairs[rows], self.negatives[kept], negative_rows[kept])


@dataclass(frozen=True)
class Corpus:
    """B rows over N distinct texts; for each of R roles, a row has a cell with one or more of them."""

    format: DataFormat
    tokens: Tokens
    """The N distinct texts; one that stands in two templates counts twice."""
    equal_ids: IntArray
    """(N,): equal for equal texts, whatever templates they stand in."""
    cell_starts: IntArray
    """(B, R): where the texts of a cell begin in `cell_texts`."""
    cell_sizes: IntArray
    """(B, R): how many texts a cell holds; one is drawn each time, except where all are used."""
    cell_texts: IntArray
    """(C,): ids of texts (their indices in `tokens`), cell after cell; C is the sum of `cell_sizes`."""
    labels: npt.NDArray[np.float32] | None
    """(B,)"""
    origins: tuple[str, ...]
    """The files or data sets that the rows come from, each with the unit that `numbers` counts in."""
    origin: npt.NDArray[np.int32]
    """(B,): index into `origins`."""
    numbers: IntArray
    """(B,): row or line number within the origin."""
    dropped: int
    """Number of rows that `label_map` dropped."""
    fingerprint: str
    """Hash of texts, structure and labels, before tokenisation."""
    unknown: float
    """Fraction of tokens that stand for what the vocabulary does not have."""
    all_negatives: bool = False
    """Whether all texts of a cell of negatives are used, instead of one that is drawn."""
    guide_embeddings: npt.NDArray[np.float32] | None = None
    """(N, K, D): those of a guide, of unit length, as queries and documents if it tells them apart, else K is 1; None
    without a guide."""
    text_hashes: IntArray | None = None
    """(N,): equal for equal texts of any corpora, whatever templates they stand in; None where there are no others."""

    def __len__(self) -> int:
        return len(self.cell_starts)

    @property
    def texts_per_row(self) -> float:
        """The mean number of texts that stand for a row."""
        roles = len(self.format.roles)
        return roles - 1 + float(self.cell_sizes[:, -1].mean()) if self.all_negatives else float(roles)

    def describe(self, row: int) -> str:
        """Return where a row comes from, for a message."""
        return f"{self.origins[self.origin[row]]} {self.numbers[row]}"

    def draw_texts(self, rows: IntArray, seed: int, epoch: int) -> RowTexts:
        """Return the texts that stand for rows: if a cell holds several, one drawn by (seed, epoch, row), or all."""
        cell_starts, cell_sizes = self.cell_starts[rows], self.cell_sizes[rows]
        drawn_sizes = cell_sizes[:, :2] if self.all_negatives else cell_sizes
        if (drawn_sizes == 1).all():
            texts = self.cell_texts[cell_starts]
        else:
            roles = cell_starts.shape[1]
            draws = np.stack([np.random.default_rng((seed, epoch, int(row))).random(roles) for row in rows])
            texts = self.cell_texts[cell_starts + (draws * cell_sizes).astype(np.int64)]
        if self.all_negatives:
            return RowTexts(texts[:, :2], *self._all_negatives(cell_starts[:, 2], cell_sizes[:, 2]))
        return RowTexts(texts[:, :2], texts[:, 2:].ravel(), np.repeat(np.arange(len(rows)), texts.shape[1] - 2))

    def _all_negatives(self, starts: IntArray, sizes: IntArray) -> tuple[IntArray, IntArray]:
        """Return the ids (G,) of all texts of cells, cell after cell, and the number of the cell of each."""
        within_cell = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.cell_texts[np.repeat(starts, sizes) + within_cell], np.repeat(np.arange(len(sizes)), sizes)

    def has_choice(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Return (B,): whether rows have several texts to draw from in one of their first two roles."""
        several = self.cell_sizes[rows, :2] > 1
        return several[:, 0] | several[:, 1]

    def known_positives(self, rows: IntArray, in_batch: npt.NDArray[np.bool_]) -> IntArray:
        """Return (A, 3): the pairs of texts that rows could have had in their first two roles, each with its row.

        Only rows with several texts to draw from have such pairs.

        Args:
            rows: (B,) rows; the result has positions in this array.
            in_batch: (N,): which texts are in the batch, as both of a pair are.

        """
        pairs = [np.empty((0, 3), np.int64)]
        for position in np.flatnonzero(self.has_choice(rows)):
            row = rows[position]
            cells = [
                self.cell_texts[start : start + size]
                for start, size in zip(self.cell_starts[row, :2], self.cell_sizes[row, :2], strict=True)
            ]
            first, second = (cell[in_batch[cell]] for cell in cells)
            product = np.repeat(first, len(second)), np.tile(second, len(first))
            pairs.append(np.stack([np.full(len(product[0]), position), *product], axis=1))
        return np.concatenate(pairs)
