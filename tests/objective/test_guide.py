"""A guide leaves out candidates that it finds nearer to a text than the text's positive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from angle.config import LossConfig
from angle.objective import contrastive
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS, BatchStructure, Negatives


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def structure_of(name: str, rows: int, guide: Tensor | None) -> BatchStructure:
    """Return the structure of rows of distinct texts, of which those of format B have 0, 1 or 2 negatives."""
    negative_rows = torch.tensor(
        [n for n in range(rows) for _ in range(n % 3)] if name == "B" else [], dtype=torch.int64
    )
    pairs = torch.arange(2 * rows).view(rows, 2)
    index = 2 * rows + torch.arange(len(negative_rows))
    labels = torch.arange(rows).float() % 3 if name == "A" else None
    return BatchStructure(
        FORMATS[name],
        pairs,
        pairs,
        labels,
        Negatives(negative_rows, index, index),
        guide=None if guide is None else guide[:, None],
    )


def naive(name: str, embeddings: Tensor, structure: BatchStructure, margin: float, weight: str) -> Tensor:
    """Return the in-batch loss of a weight by loops: of each query, a softmax over the candidates that are left."""
    embeddings = F.normalize(embeddings, dim=-1)
    pairs = structure.embedding_index.tolist()
    assert structure.guide is not None
    guide = structure.guide[:, 0]
    negatives = [] if weight == "positives_w" else structure.negatives.embedding_index.tolist()
    queries = [(b, a) if weight == "reverse_w" else (a, b) for a, b in pairs]
    candidates = [partner for _, partner in queries] + negatives
    if name == "A":
        assert structure.labels is not None
        queries = [
            pair
            for (a, b), label in zip(pairs, structure.labels, strict=True)
            if label > 0
            for pair in ((a, b), (b, a))
        ]
        candidates = [text for pair in pairs for text in pair]
    losses = []
    for query, own in queries:
        limit = guide[query] @ guide[own] - margin
        left = [text for text in candidates if text == own or (text != query and guide[query] @ guide[text] <= limit)]
        logits = torch.stack([20 * embeddings[query] @ embeddings[text] for text in left])
        losses.append(torch.logsumexp(logits, 0) - logits[left.index(own)])
    return torch.stack(losses).sum() / (2 * len(pairs) if name == "A" else len(pairs))


@pytest.mark.parametrize("max_logits", [2**24, 30])
@pytest.mark.parametrize("margin", [0.0, 0.2, -0.1])
@pytest.mark.parametrize(
    ("name", "weight"),
    [("A", "ibn_w"), *((name, weight) for name in "BC" for weight in ("ibn_w", "reverse_w")), ("B", "positives_w")],
)
def test_against_loops_over_texts(
    name: str, weight: str, margin: float, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "MAX_LOGITS", max_logits)
    weights: dict[str, Any] = {"cosine_w": 0.0, "ibn_w": 0.0, "angle_w": 0.0, "reverse_w": 0.0, weight: 1.0}
    config = LossConfig(**weights, guide="other", guide_margin=margin)
    left_out = 0
    for seed in range(4):
        structure = structure_of(name, 7, unit(25, 5, seed=seed))
        embeddings = unit(25, 8, seed=100 + seed).requires_grad_()
        loss = CombinedLoss(config, FORMATS[name], 8)(embeddings, structure).total
        expected = naive(name, embeddings, structure, margin, weight)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        ((gradient,), (wanted,)) = (torch.autograd.grad(each, embeddings) for each in (loss, expected))
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
        plain = CombinedLoss(config, FORMATS[name], 8)(embeddings, structure_of(name, 7, None)).total
        left_out += plain.item() > loss.item()
    assert left_out == 4


def test_rankings_are_as_without_a_guide() -> None:
    config = LossConfig(1.0, 0.0, 1.0, guide="other")
    embeddings = unit(25, 8, seed=1)
    losses = [
        CombinedLoss(config, FORMATS["B"], 8)(embeddings, structure_of("B", 7, guide)).total
        for guide in (None, unit(25, 5, seed=2))
    ]
    assert torch.equal(*losses)


def test_a_guide_may_tell_queries_from_documents() -> None:
    config, embeddings = LossConfig(0.0, 1.0, 0.0, guide="other"), unit(25, 8, seed=1)
    as_queries, as_documents = unit(25, 5, seed=2), unit(25, 5, seed=3)
    loss = CombinedLoss(config, FORMATS["C"], 8)
    structure = structure_of("C", 7, None)
    guided = replace(structure, guide=torch.stack([as_queries, as_documents], dim=1))
    logits = 20 * embeddings[0:14:2] @ embeddings[1:14:2].T
    cosines = as_queries[0:14:2] @ as_documents[1:14:2].T
    logits = logits.masked_fill(cosines > cosines.diagonal()[:, None], -torch.inf)
    assert loss(embeddings, guided).total.item() == pytest.approx(F.cross_entropy(logits, torch.arange(7)).item())


def test_what_a_guide_finds_exactly_as_near_stays() -> None:
    """Also where products of matrices of other sizes round otherwise."""
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(40, 300, generator=generator), dim=1)
    candidates = F.normalize(torch.randn(1, 300, generator=generator), dim=1).expand(40, -1).contiguous()
    mask = contrastive.GuideMask.of(queries, candidates, torch.arange(40), 0.0)
    for size in (1, 7, 40):
        assert not any(mask.for_queries(slice(start, start + size)).any() for start in range(0, 40, size))
