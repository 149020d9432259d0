"""Contrastive losses: a text must be closer to its positive than to the other texts of the batch.

Legend: Q queries, C candidates, M queries in a chunk, P pairs of texts, D dimensions. Queries are processed in chunks,
so that a batch needs O((Q + C) D) memory plus one chunk's logits, never all Q x C of them. If there are several
processes, each holds all texts and computes the loss of its own shard of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from angle.kernels.autograd import forbid_double_backward

#: By how much a guide must find a candidate nearer than the target: what is as near, but for rounding, stays.
TIE = 1e-6
#: Maximum number of logits in a chunk; but a chunk has at least one query.
MAX_LOGITS = 2**24


@dataclass(frozen=True)
class QueryShards:
    """Processes that all hold the same texts, and split the queries among them."""

    rank: int = 0
    """Index of this process."""
    world_size: int = 1
    all_reduce: Callable[[Sequence[Tensor]], None] = lambda _: None
    """Replaces each tensor, in place, by its sum over all processes."""

    def shard(self, queries: int) -> range:
        """Return which of a number of queries are this process's own."""
        return range(queries * self.rank // self.world_size, queries * (self.rank + 1) // self.world_size)


SINGLE_PROCESS = QueryShards()


@dataclass(frozen=True)
class GuideMask:
    """Candidates that a guide finds nearer to a query than the query's target: probably false negatives.

    (Solatorio, "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning", 2024.)
    """

    queries: Tensor
    """(Q, D'): the guide's embeddings, of unit length; it has D' dimensions."""
    candidates: Tensor
    """(C, D')"""
    thresholds: Tensor
    """(Q,): cosines above which a candidate is left out."""

    @classmethod
    def of(cls, queries: Tensor, candidates: Tensor, target: Tensor, margin: float) -> GuideMask:
        """Return the mask of queries with these targets (Q,), whose cosines minus the margin are the thresholds."""
        return cls(queries, candidates, (queries * candidates[target]).sum(-1) - margin + TIE)

    def for_queries(self, chunk: slice) -> Tensor:
        """Return the mask (M, C), bool, of a chunk of the queries."""
        return self.queries[chunk] @ self.candidates.T > self.thresholds[chunk, None]


@dataclass(frozen=True)
class FalseNegativeMask:
    """Candidates that are no negatives of a query: those with the same text, and its known positives.

    No operation's shape depends on how often texts repeat, so nothing waits for a GPU.
    """

    query_ids: Tensor
    """(Q,) the text id of each query, in [0, num_texts)."""
    candidate_ids: Tensor
    """(C,) the text id of each candidate."""
    anchor_ids: Tensor
    """(P,) the first text id of each positive pair."""
    positive_ids: Tensor
    """(P,) the second text id of each pair: a text that is no negative of the first."""
    num_texts: int
    guide: GuideMask | None = None

    @classmethod
    def from_text_ids(
        cls,
        text_ids: Tensor,
        query_ids: Tensor,
        candidate_ids: Tensor,
        anchor_ids: Tensor,
        positive_ids: Tensor,
        guide: GuideMask | None = None,
    ) -> FalseNegativeMask:
        """Return the mask for arbitrary text ids, all of which occur in `text_ids`."""
        ordered = text_ids.flatten().sort().values

        def compact(ids: Tensor) -> Tensor:
            return torch.searchsorted(ordered, ids.contiguous())

        queries, candidates, anchors, positives = map(compact, (query_ids, candidate_ids, anchor_ids, positive_ids))
        return cls(queries, candidates, anchors, positives, len(ordered), guide)

    def for_queries(self, chunk: slice) -> Tensor:
        """Return the mask (M, C), bool, of a chunk of the queries."""
        query_ids = self.query_ids[chunk]
        # Equal queries share one row, that of any of them. The last row takes the pairs of all other texts.
        row_of_text = torch.full((self.num_texts,), len(query_ids), device=query_ids.device)
        row_of_text[query_ids] = torch.arange(len(query_ids), device=query_ids.device)
        is_false_negative = torch.zeros(len(query_ids) + 1, self.num_texts, dtype=torch.bool, device=query_ids.device)
        is_false_negative[:-1].scatter_(1, query_ids[:, None], True)
        is_false_negative.view(-1).index_fill_(
            0, row_of_text[self.anchor_ids] * self.num_texts + self.positive_ids, True
        )
        mask = is_false_negative[row_of_text[query_ids]].gather(1, self.candidate_ids.expand(len(query_ids), -1))
        return mask if self.guide is None else mask.logical_or_(self.guide.for_queries(chunk))


class _ChunkedInfoNCE(torch.autograd.Function):
    """The sum over queries of weight * -log softmax of the target; see `chunked_info_nce`.

    The forward pass also computes the gradient, chunk by chunk: each logit is computed once and not kept. The backward
    pass only multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        target: Tensor,
        weights: Tensor,
        scale: float,
        mask: FalseNegativeMask,
        query_shards: QueryShards,
    ) -> Tensor:
        log_probs = torch.zeros_like(weights)[:, None]
        needs_grad = any(ctx.needs_input_grad)
        if needs_grad:
            grad_queries, grad_candidates = (states.new_zeros(states.shape) for states in (queries, candidates))
        for chunk in _chunks(query_shards.shard(len(queries)), len(candidates)):
            scaled_queries, targets = scale * queries[chunk], target[chunk, None]
            logits = scaled_queries @ candidates.T
            logits.masked_fill_(mask.for_queries(chunk).scatter_(1, targets, False), -torch.inf)
            log_softmax = torch.log_softmax(logits, dim=1)
            torch.gather(log_softmax, 1, targets, out=log_probs[chunk])
            if needs_grad:
                # softmax, minus 1 at the target
                grad_logits = log_softmax.exp_().scatter_(1, targets, log_probs[chunk].expm1())
                torch.mm(grad_logits, candidates, out=grad_queries[chunk])
                grad_candidates.addmm_(grad_logits.T, weights[chunk, None] * scaled_queries)
        query_shards.all_reduce([log_probs, grad_queries, grad_candidates] if needs_grad else [log_probs])
        if needs_grad:
            ctx.save_for_backward(grad_queries.mul_(scale * weights[:, None]), grad_candidates)
        return -(weights[:, None] * log_probs).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        grad_queries, grad_candidates = ctx.saved_tensors
        return grad * grad_queries, grad * grad_candidates, None, None, None, None, None


def _chunks(queries: range, candidates: int) -> Iterator[slice]:
    """Yield slices of a range of queries that keep within `MAX_LOGITS`, given the number of candidates."""
    size = max(1, MAX_LOGITS // candidates)
    return (slice(start, min(start + size, queries.stop)) for start in range(queries.start, queries.stop, size))


def chunked_info_nce(
    queries: Tensor,
    candidates: Tensor,
    target: Tensor,
    weights: Tensor,
    scale: float,
    mask: FalseNegativeMask,
    query_shards: QueryShards = SINGLE_PROCESS,
) -> Tensor:
    """Return the sum over queries of weight * -log softmax of the query's target among its candidates.

    It can be differentiated once, with respect to queries and candidates.

    Args:
        queries: (Q, D), L2-normalised.
        candidates: (C, D), L2-normalised.
        target: (Q,) int64, the correct candidate of each query.
        weights: (Q,) the weight of each query.
        scale: factor of the cosines, an inverse temperature.
        mask: candidates to leave out; a target is never left out.
        query_shards: processes that split the queries; all pass the same arguments and get the same result.

    """
    arguments = queries, candidates, target, weights, scale, mask, query_shards
    loss: Tensor = _ChunkedInfoNCE.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True)
class GuideEmbeddings:
    """What a guide makes of a batch's texts."""

    pairs: Tensor
    """(B, 2, D'), of unit length: of each row's two texts; the guide has D' dimensions."""
    negatives: Tensor
    """(G, D'): of the negatives of all rows."""
    margin: float

    def flipped(self) -> GuideEmbeddings:
        """Return the same with the two texts of each row swapped."""
        return replace(self, pairs=self.pairs.flip(1))

    def mask_of_texts(self, target: Tensor) -> GuideMask:
        """Return the mask if all texts look for their partners among all."""
        texts = self.pairs.flatten(0, 1)
        return GuideMask.of(texts, texts, target, self.margin)

    def mask_of_candidates(self, target: Tensor, num_negatives: int) -> GuideMask:
        """Return the mask if first texts look for theirs among all second ones, and so many negatives."""
        candidates = torch.cat([self.pairs[:, 1], self.negatives[:num_negatives]])
        return GuideMask.of(self.pairs[:, 0], candidates, target, self.margin)


def nt_xent(
    embeddings: Tensor,
    is_positive: Tensor,
    text_ids: Tensor,
    known_positives: Tensor,
    scale: float,
    query_shards: QueryShards = SINGLE_PROCESS,
    guide: GuideEmbeddings | None = None,
) -> Tensor:
    """Return the contrastive loss of format A (NT-Xent): every text of a positive pair must find its partner.

    Candidates are all 2B texts except the text itself, its duplicates and its other known positives, in both
    directions. A pair that is not positive adds no loss, but its texts are negatives of the others, and count in the
    mean over all 2B texts. (Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, where every pair is positive and no text repeats.)

    Args:
        embeddings: (B, 2, D), L2-normalised.
        is_positive: (B,) bool.
        text_ids: (B, 2), equal for equal texts.
        known_positives: (A, 3): row, and two text ids that are not negatives of each other.
        scale: factor of the cosines, an inverse temperature.
        query_shards: processes that split the texts.
        guide: tells further false negatives.

    """
    texts, ids = embeddings.flatten(0, 1), text_ids.flatten()  # interleaved: the partner of text i is text i xor 1
    pairs = _symmetric_pairs(text_ids, known_positives, torch.cat([is_positive, is_positive[known_positives[:, 0]]]))
    target = torch.arange(len(ids), device=ids.device) ^ 1
    guide_mask = None if guide is None else guide.mask_of_texts(target)
    mask = FalseNegativeMask.from_text_ids(text_ids, ids, ids, *pairs, guide_mask)
    weights = is_positive[:, None].expand_as(text_ids).flatten().to(embeddings.dtype) / len(ids)
    return chunked_info_nce(texts, texts, target, weights, scale, mask, query_shards)


def info_nce(
    embeddings: Tensor,
    negatives: Tensor,
    text_ids: Tensor,
    negative_ids: Tensor,
    known_positives: Tensor,
    scale: float,
    query_shards: QueryShards = SINGLE_PROCESS,
    guide: GuideEmbeddings | None = None,
) -> Tensor:
    """Return the contrastive loss of formats B and C (InfoNCE): a text must find its positive among all candidates.

    Candidates are all positives of the batch, then (format B) the negatives of all rows, except the text's duplicates
    and its other known positives; the loss is the mean over the B texts. (van den Oord, Li and Vinyals, "Representation
    Learning with Contrastive Predictive Coding", 2018.)

    Args:
        embeddings: (B, 2, D), L2-normalised, of text and positive.
        negatives: (G, D), L2-normalised; or (0, D), as if there were none.
        text_ids: (B, 2), equal for equal texts.
        negative_ids: (G,), likewise.
        known_positives: (A, 3): row, and two text ids that are not negatives of each other.
        scale: factor of the cosines, an inverse temperature.
        query_shards: processes that split the texts.
        guide: tells further false negatives.

    """
    queries, positives = embeddings.unbind(1)
    candidates = torch.cat([positives, negatives])
    candidate_ids = torch.cat([text_ids[:, 1], negative_ids[: len(negatives)]])
    pairs = _symmetric_pairs(text_ids, known_positives)
    all_ids = torch.cat([text_ids.flatten(), negative_ids])  # of known positives too, which may be negatives of others
    target = torch.arange(len(queries), device=embeddings.device)
    guide_mask = None if guide is None else guide.mask_of_candidates(target, len(negatives))
    mask = FalseNegativeMask.from_text_ids(all_ids, text_ids[:, 0], candidate_ids, *pairs, guide_mask)
    weights = embeddings.new_full((len(queries),), 1 / len(queries))
    return chunked_info_nce(queries, candidates, target, weights, scale, mask, query_shards)


def _symmetric_pairs(
    text_ids: Tensor, known_positives: Tensor, is_positive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the ids (P,) of texts and of a known positive of each: each row's pair, in both orders.

    Where a pair is not positive, a text stands for its own positive, so that the shape does not depend on the labels.
    """
    anchor_ids = torch.cat([text_ids, known_positives[:, 1:]])
    positive_ids = anchor_ids.flip(1)
    if is_positive is not None:
        positive_ids = torch.where(is_positive[:, None], positive_ids, anchor_ids)
    return anchor_ids.flatten(), positive_ids.flatten()
