"""The terms of the objective: one table, which the loss iterates over.

The names, settings, formats and default weights of the terms stand in `angle.config.loss`, because the schema needs
them too; their functions stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from angle.config import ANGLE, COSINE, IN_BATCH, POSITIVES, REVERSE, LossTermSpec
from angle.objective.contrastive import GuideEmbeddings, QueryShards, info_nce, nt_xent
from angle.objective.ranking import angle_scores, cosent_loss, cosine_scores


@dataclass(frozen=True)
class TermInputs:
    """What the terms of a batch are computed from."""

    embeddings: Tensor
    """(B, 2, D), L2-normalised: each row's two texts, or its text and its positive."""
    negatives: Tensor
    """(G, D), L2-normalised: the negatives of all rows."""
    negative_rows: Tensor
    """(G,) int64: the row that each negative belongs to."""
    labels: Tensor | None
    """(B,), for labelled formats."""
    text_ids: Tensor
    """(B, 2) int64: texts with equal ids are never negatives of each other."""
    negative_ids: Tensor
    """(G,) int64: the ids of the negatives' texts."""
    known_positives: Tensor
    """(A, 3) int64: row, and two text ids that are not negatives of each other."""
    positive_above: float
    """A labelled row is a positive pair of the contrastive loss iff its label is above this."""
    guide: GuideEmbeddings | None
    """Tells false negatives of the contrastive losses."""
    query_shards: QueryShards
    """The processes that split the work of the contrastive loss."""


#: Returns the similarities (...) of two arrays (..., D) of unit vectors.
PairScores = Callable[[Tensor, Tensor], Tensor]
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
    return _ranking_loss(inputs, cosine_scores, scale)


def in_batch_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the contrastive loss with the other texts of the batch as negatives."""
    embeddings, ids = inputs.embeddings, inputs.text_ids
    shared = inputs.known_positives, scale, inputs.query_shards, inputs.guide
    if inputs.labels is None:
        return info_nce(embeddings, inputs.negatives, ids, inputs.negative_ids, *shared)
    return nt_xent(embeddings, inputs.labels > inputs.positive_above, ids, *shared)


def positives_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the contrastive loss with only the batch's other positives as negatives."""
    ids, shared = inputs.text_ids, (inputs.known_positives, scale, inputs.query_shards, inputs.guide)
    return info_nce(inputs.embeddings, inputs.negatives[:0], ids, inputs.negative_ids, *shared)


def reverse_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the contrastive loss of positives that look for their texts, with the batch's negatives as negatives."""
    embeddings, ids = inputs.embeddings.flip(1), inputs.text_ids.flip(1)
    guide = None if inputs.guide is None else inputs.guide.flipped()
    shared = inputs.known_positives, scale, inputs.query_shards, guide
    return info_nce(embeddings, inputs.negatives, ids, inputs.negative_ids, *shared)


def angle_term(inputs: TermInputs, scale: float) -> Tensor:
    """Return the ranking loss of the angle similarities."""
    return _ranking_loss(inputs, angle_scores, scale)


def _ranking_loss(inputs: TermInputs, pair_scores: PairScores, scale: float) -> Tensor:
    """Return the ranking loss of the similarities of each row's first text to its other texts.

    Without labels, all pairs (text, positive) rank above all pairs (text, negative).
    """
    texts, others = inputs.embeddings.unbind(1)
    scores = scale * pair_scores(texts, others)
    if inputs.labels is not None:
        return cosent_loss(scores, inputs.labels)
    negative_scores = scale * pair_scores(texts[inputs.negative_rows], inputs.negatives)
    labels = torch.cat([torch.zeros_like(negative_scores), torch.ones_like(scores)])
    return cosent_loss(torch.cat([negative_scores, scores]), labels)


#: Every term, in the order in which they are summed.
LOSS_TERMS = (
    LossTerm(COSINE, cosine_term),
    LossTerm(IN_BATCH, in_batch_term),
    LossTerm(ANGLE, angle_term, requires_even_dim=True),
    LossTerm(POSITIVES, positives_term),
    LossTerm(REVERSE, reverse_term),
)
