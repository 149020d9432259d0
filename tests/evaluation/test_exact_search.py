"""Exact search: the same neighbours as sorting all cosines, whatever the blocks, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from angle.evaluation.search import MAX_QUERIES, search


def naive(queries: torch.Tensor, passages: torch.Tensor, k: int) -> list[list[int]]:
    """Return the k nearest passages of each query, of equal ones those of the lower index."""
    cosines = torch.nn.functional.normalize(queries, dim=-1) @ torch.nn.functional.normalize(passages, dim=-1).T
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in cosines.numpy()]


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("max_cosines", [1, 300, 2**20])
def test_blocks_do_not_matter(size: int, max_cosines: int) -> None:
    torch.manual_seed(0)
    queries, passages = torch.randn(13, 8), torch.randn(300, 8)
    found = search(queries, passages.split(size), 10, max_cosines=max_cosines)  # type: ignore[no-untyped-call]
    assert found.passages.tolist() == naive(queries, passages, 10)
    assert (found.cosines.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("max_cosines", [1, 40, 2**20])
def test_of_equally_near_passages_those_of_the_lower_index_are_kept(max_cosines: int) -> None:
    """Whole numbers on the axes have cosines without rounding."""
    rng = np.random.default_rng(0)
    axes = torch.eye(4)[torch.from_numpy(rng.integers(0, 4, 200))] * torch.from_numpy(rng.integers(1, 3, (200, 1)))
    queries = torch.eye(4)
    found = search(queries, [axes], 60, max_cosines=max_cosines)
    assert found.passages.tolist() == naive(queries, axes, 60)


def test_more_queries_than_are_searched_at_once() -> None:
    torch.manual_seed(0)
    queries, passages = torch.randn(MAX_QUERIES + 5, 8), torch.randn(50, 8)
    assert search(queries, [passages], 5).passages.tolist() == naive(queries, passages, 5)


def test_fewer_passages_than_are_asked_for() -> None:
    found = search(torch.ones(1, 2), [torch.ones(1, 2), -torch.ones(1, 2)], 4)
    assert found.passages.tolist() == [[0, 1, -1, -1]]
    assert found.cosines[0, 2:].tolist() == [-np.inf] * 2


def test_a_model_that_gives_all_texts_one_embedding() -> None:
    found = search(torch.ones(3, 4), [torch.ones(50, 4)], 5)
    assert found.passages.tolist() == [[0, 1, 2, 3, 4]] * 3
