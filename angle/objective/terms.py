"""The terms of the objective: one table, which the loss iterates over.

The names, settings, formats and default weights of the terms stand in `angle.config.loss`, because the schema needs
them too; their functions stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import ANGLE, COSINE, IN_BATCH, LossTermSpec
from angle.objective.contrastive import QueryShards, info_nce, nt_xent
from angle.objective.ranking import angle_scores, cosent_loss, cosine_scores


@dataclass(frozen=True)
class TermInputs:
    """What the terms of a batch are computed from."""

    embeddings: Tensor
    """(B, R, D), L2-normalised: the text in each role of each row."""
    labels: Tensor | None
    """(B,), for labelled formats."""
    text_ids: Tensor
    """(B, R) int64: texts with equal ids are never negatives of each other."""
    known_positives: Tensor
    """(A, 3) int64: row, and two text ids that are not negatives of each other."""
    positive_above: float
    """A labelled row is a positive pair of the contrastive loss iff its label is above this."""
    query_shards: QueryShards
    """The processes that split the work of the contrastive loss."""


#: Returns a term, a scalar with gradient, given its inputs and the factor of its similarities (an inverse temperature).
TermFunction = Callable[[TermInputs, float], Tensor]


@dataclass(frozen=True)
class LossTerm:
    """A term of the objective."""

    spec: LossTermSpec
    function: TermFunction
    requires_even_dim: bool = False
    """Whether it splits an embedding into halves."""


def cosine_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the ranking loss of the cosine similarities."""
    return _ranking_loss(scale * cosine_scores(inputs.embeddings[:, :1], inputs.embeddings[:, 1:]), inputs.labels)


def in_batch_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the contrastive loss with the other texts of the batch as negatives."""
    shared = inputs.text_ids, inputs.known_positives, scale, inputs.query_shards
    if inputs.labels is None:
        return info_nce(inputs.embeddings, *shared)
    return nt_xent(inputs.embeddings, inputs.labels > inputs.positive_above, *shared)


def angle_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the ranking loss of the angle similarities."""
    return _ranking_loss(scale * angle_scores(inputs.embeddings[:, :1], inputs.embeddings[:, 1:]), inputs.labels)


def _ranking_loss(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Return the ranking loss of the similarities (B, R - 1) of each row's first text to its other texts.

    Without labels (B,), positives rank above negatives.
    """
    if labels is None:  # 1 (positive), 0 (negative); made on the device, as a copy would wait for a GPU
        labels = torch.arange(1, -1, -1, dtype=scores.dtype, device=scores.device).expand_as(scores)
    return cosent_loss(scores.flatten(), labels.flatten())


#: Every term, in the order in which they are summed.
LOSS_TERMS = (
    LossTerm(COSINE, cosine_term),
    LossTerm(IN_BATCH, in_batch_term),
    LossTerm(ANGLE, angle_term, requires_even_dim=True),
)
