"""The losses of sentence-transformers that docs/migrating_sentence_transformers.md says are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from angle.config import LossConfig
from angle.objective.combined import CombinedLoss
from angle.structures import FORMATS, BatchStructure

ROWS, DIMENSIONS = 7, 8
NOTHING = {"cosine_w": 0.0, "ibn_w": 0.0, "angle_w": 0.0, "reverse_w": 0.0}


@pytest.mark.parametrize(
    ("there", "name", "here"),
    [
        ("CoSENTLoss", "A", {"cosine_w": 1.0, "cosine_tau": 20.0}),
        ("AnglELoss", "A", {"angle_w": 1.0, "angle_tau": 20.0}),
        ("MultipleNegativesRankingLoss", "B", {"ibn_w": 1.0}),
        ("MultipleNegativesRankingLoss", "C", {"ibn_w": 1.0}),
        ("MultipleNegativesSymmetricRankingLoss", "C", {"ibn_w": 0.5, "reverse_w": 0.5}),
    ],
)
def test_the_same_number_and_gradient(there: str, name: str, here: dict[str, Any]) -> None:
    from sentence_transformers.sentence_transformer import losses

    roles = len(FORMATS[name].roles)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(ROWS, roles, DIMENSIONS, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0.0, 5.0, 2.5, 1.0, 0.0, 3.0, 4.0]) if name == "A" else None
    index = torch.arange(ROWS * roles).view(ROWS, roles)
    structure = BatchStructure.of_columns(FORMATS[name], index, index, labels)
    ours = CombinedLoss(LossConfig(**NOTHING | here), FORMATS[name], DIMENSIONS)(embeddings.flatten(0, 1), structure)

    theirs = getattr(losses, there)(torch.nn.Identity()).compute_loss_from_embeddings(embeddings.unbind(1), labels)

    assert ours.total.item() == pytest.approx(theirs.item(), rel=1e-10)
    ((own,), (other,)) = (torch.autograd.grad(loss, embeddings) for loss in (ours.total, theirs))
    torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
