"""Holding out training rows for validation, so that no text stands on both sides."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from angle.data.corpus import Corpus, IntArray
from angle.errors import DataError


def hold_out(corpus: Corpus, fraction: float) -> tuple[Corpus, Corpus]:
    """Split a corpus into rows to train on and about this fraction of its rows, held out for validation.

    Which rows these are depends on the corpus alone, not on a seed, so that runs with several seeds are compared on the
    same ones. Rows that share a text, directly or through other rows, stay together.

    Raises:
        DataError: rows hang together by their texts in groups that are too large.

    """
    groups = text_groups(corpus)
    sizes = np.bincount(groups)
    wanted, taken = max(1, round(fraction * len(corpus))), 0
    held_out = np.zeros(len(sizes), bool)
    for group in np.random.default_rng(0).permutation(len(sizes)):
        if taken + sizes[group] <= wanted:
            held_out[group] = True
            taken += sizes[group]
        if taken == wanted:
            break
    if taken < wanted / 2 or taken == len(corpus):
        raise DataError(
            f"data.valid_split={fraction:g} asks for {wanted:,} of {len(corpus):,} rows, but rows that share a text "
            f"must stay together, and such a group has up to {sizes.max():,} rows: give rows of their own, "
            f"data.valid.name_or_path=FILE."
        )
    return take_rows(corpus, np.flatnonzero(~held_out[groups])), take_rows(corpus, np.flatnonzero(held_out[groups]))


def text_groups(corpus: Corpus) -> IntArray:
    """Return the group (B,) of each row, counted from 0: rows that share a text, directly or not, have the same."""
    rows = np.repeat(np.arange(len(corpus)), corpus.cell_sizes.sum(axis=1))
    size = len(corpus) + len(corpus.tokens)
    texts = len(corpus) + corpus.equal_ids[corpus.cell_texts]
    edges = coo_array((np.ones(len(rows), bool), (rows, texts)), shape=(size, size))
    groups: IntArray = connected_components(edges, directed=False)[1][: len(corpus)].astype(np.int64)
    return np.unique(groups, return_inverse=True)[1]


def take_rows(corpus: Corpus, rows: IntArray) -> Corpus:
    """Return the corpus of these rows, in that order, and of the texts that they use."""
    starts, sizes = corpus.cell_starts[rows].ravel(), corpus.cell_sizes[rows].ravel()
    new_starts = np.cumsum(sizes) - sizes
    cells = corpus.cell_texts[np.arange(sizes.sum()) + np.repeat(starts - new_starts, sizes)]
    text_ids, cell_texts = np.unique(cells, return_inverse=True)
    shape = (len(rows), len(corpus.format.roles))
    return dataclasses.replace(
        corpus,
        tokens=corpus.tokens.take(text_ids),
        equal_ids=np.unique(corpus.equal_ids[text_ids], return_inverse=True)[1],
        cell_starts=new_starts.reshape(shape),
        cell_sizes=sizes.reshape(shape),
        cell_texts=cell_texts,
        guide_embeddings=None if corpus.guide_embeddings is None else corpus.guide_embeddings[text_ids],
        text_hashes=None if corpus.text_hashes is None else corpus.text_hashes[text_ids],
        labels=None if corpus.labels is None else corpus.labels[rows],
        origin=corpus.origin[rows],
        numbers=corpus.numbers[rows],
        fingerprint=hashlib.sha256(corpus.fingerprint.encode() + rows.tobytes()).hexdigest(),
    )
