"""Contrastive losses: a text must be nearer to its positive than to the batch's other texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_over(queries: Tensor, candidates: Tensor, target: Tensor, masked: Tensor, tau: float) -> Tensor:
    """Return -log softmax of each query's target among its candidates, (Q, D) and (C, D) -> (Q,).

    Args:
        queries: (Q, D) embeddings of any length.
        candidates: (C, D) embeddings of any length.
        target: (Q,) int64, the right candidate of each query.
        masked: (Q, C) bool, candidates that do not count; a target always counts.
        tau: multiplier of the cosines.

    """
    logits = tau * F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T
    logits = logits.masked_fill(masked.scatter(1, target[:, None], False), -torch.inf)
    return F.cross_entropy(logits, target, reduction="none")


def not_negatives(
    query_ids: Tensor, candidate_ids: Tensor, positive_queries: Tensor, positive_candidates: Tensor
) -> Tensor:
    """Return (Q, C) bool: candidates that are the query itself, or known to be one of its positives.

    Args:
        query_ids: (Q,) text ids.
        candidate_ids: (C,) text ids.
        positive_queries: (P,) text ids of the left sides of all known positive pairs.
        positive_candidates: (P,) text ids of their right sides.

    """
    # A query may stand in several positive pairs: number the texts and multiply two incidence tables, so that
    # (query, candidate) counts the positive pairs that join them. Memory is O((Q + C) P), as the logits' is.
    of_query = (query_ids[:, None] == positive_queries[None, :]).float()
    of_candidate = (candidate_ids[:, None] == positive_candidates[None, :]).float()
    return (of_query @ of_candidate.T > 0) | (query_ids[:, None] == candidate_ids[None, :])


def in_batch_loss(pairs: Tensor, positive: Tensor, pair_ids: Tensor, tau: float, mask_duplicates: bool) -> Tensor:
    """Return the contrastive loss of format A: every text of a positive pair must find its partner.

    Candidates are all 2B texts but the text itself, in both directions. A pair that is not positive asks for
    nothing: its texts still count in the mean over all 2B texts and are negatives of the others.

    Args:
        pairs: (B, 2, D) embeddings.
        positive: (B,) bool.
        pair_ids: (B, 2) text ids.
        tau: multiplier of the cosines.
        mask_duplicates: leave out candidates equal to the text itself or to one of its known positives.

    """
    texts, ids = pairs.flatten(0, 1), pair_ids.flatten()  # interleaved: the partner of text i is i xor 1
    here = torch.arange(len(texts), device=texts.device)
    masked = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    if mask_duplicates:
        both_ways = torch.cat([pair_ids[positive], pair_ids[positive].flip(1)])
        masked |= not_negatives(ids, ids, both_ways[:, 0], both_ways[:, 1])
    losses = cross_entropy_over(texts, texts, here ^ 1, masked, tau)
    # `where`, not a product: the loss of a text without a target can be large, and must not reach the mean at all.
    return torch.where(positive.repeat_interleave(2), losses, losses.new_zeros(())).mean()


def text_to_candidates_loss(roles: Tensor, role_ids: Tensor, tau: float, mask_duplicates: bool) -> Tensor:
    """Return the contrastive loss of formats B and C: a text must find its positive among all candidates.

    Candidates are all positives, then (format B) all negatives, of the batch; mean over the B texts.

    Args:
        roles: (B, R, D) embeddings of text, positive and, for R = 3, negative.
        role_ids: (B, R) text ids.
        tau: multiplier of the cosines.
        mask_duplicates: leave out candidates equal to the text itself or to one of its known positives.

    """
    queries, candidates = roles[:, 0], roles[:, 1:].transpose(0, 1).flatten(0, 1)
    query_ids, candidate_ids = role_ids[:, 0], role_ids[:, 1:].T.flatten()
    target = torch.arange(len(queries), device=queries.device)
    if mask_duplicates:
        masked = not_negatives(query_ids, candidate_ids, query_ids, role_ids[:, 1])
    else:
        masked = torch.zeros(len(queries), len(candidates), dtype=torch.bool, device=queries.device)
    return cross_entropy_over(queries, candidates, target, masked, tau).mean()
