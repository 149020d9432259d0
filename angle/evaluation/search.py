"""Exact search for the nearest passages of queries, block by block: memory depends on the blocks, not on the corpus.

Q queries, P passages, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Cosines that are held at a time (64 MiB), and queries that they are of at most.
MAX_COSINES, MAX_QUERIES = 2**24, 1024


@dataclass(frozen=True)
class Neighbours:
    """The k nearest passages of each of Q queries, nearest first."""

    cosines: Tensor
    """(Q, k) float32; -inf where there are fewer than k passages."""
    passages: Tensor
    """(Q, k) int64: indices of passages; -1 where there are fewer."""


def search(
    queries: Tensor,
    blocks: Iterable[Tensor],
    k: int,
    device: torch.device | str = "cpu",
    max_cosines: int = MAX_COSINES,
) -> Neighbours:
    """Return the nearest passages of queries by cosine, on the CPU; of equally near ones, those of the lower index.

    Args:
        queries: (Q, D) embeddings, which stay on the device; a zero vector has cosine 0 to everything.
        blocks: embeddings (P', D) of passages, of all P in order; each is on the device only while it is searched.
        k: neighbours of each query.
        device: where cosines are computed.
        max_cosines: cosines that are held at a time.

    """
    queries = F.normalize(queries.to(device, torch.float32), dim=-1)
    best = [
        (torch.empty(len(rows), 0, device=device), torch.empty(len(rows), 0, dtype=torch.int64, device=device))
        for rows in torch.split(queries, MAX_QUERIES)
    ]
    first, size = 0, max(1, max_cosines // min(MAX_QUERIES, max(1, len(queries))))
    for block in blocks:
        for part in torch.split(block, size):
            passages = F.normalize(part.to(device, torch.float32), dim=-1)
            for number, rows in enumerate(torch.split(queries, MAX_QUERIES)):
                best[number] = _merge(*best[number], rows @ passages.T, first, k)
            first += len(part)
    cosines, found = (torch.cat([chunk[side] for chunk in best]).cpu() for side in (0, 1))
    missing = k - cosines.shape[1]
    return Neighbours(F.pad(cosines, (0, missing), value=-torch.inf), F.pad(found, (0, missing), value=-1))


def _merge(cosines: Tensor, passages: Tensor, others: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the nearest among the passages found so far and those of a block, as cosines (Q, k) and indices (Q, k).

    Nearly all of a block is farther than what was found. One comparison says so, and only the rest is sorted.

    Args:
        cosines: (Q, m), m up to k, of those found so far, nearest first.
        passages: (Q, m): their indices.
        others: (Q, P') cosines of the block.
        first: index of the block's first passage.
        k: how many to keep.

    """
    if cosines.shape[1] == k:
        threshold = cosines[:, -1:]
        near = others > threshold  # of equal ones, those found before have lower indices
    else:
        threshold = others.topk(min(k, others.shape[1]), dim=1).values[:, -1:]
        near = others >= threshold
    rows, columns = near.nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(others))
    width = int(counts.max())
    if not width:
        return cosines, passages
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    padded = others.new_full((len(others), width), -torch.inf)
    indices = passages.new_full((len(others), width), -1)
    padded[rows, place] = others[rows, columns]
    indices[rows, place] = columns + first
    merged, order = torch.cat([cosines, padded], dim=1).sort(dim=1, descending=True, stable=True)
    kept = order[:, :k]
    return merged[:, :k], torch.cat([passages, indices], dim=1).gather(1, kept)
