"""Contrastive losses: a text must be closer to its positive than to the other texts of the batch.

Legend: Q queries, C candidates, M queries in a chunk, P pairs of texts, D dimensions. Queries are processed in chunks,
so that a batch needs O((Q + C) D) memory plus one chunk's logits, never all Q x C of them. When there are several
processes, all of them hold all texts and each takes a share of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from angle.kernels.autograd import forbid_double_backward

#: Maximum number of logits in a chunk, though a chunk has at least one query.
LOGITS = 2**24


@dataclass(frozen=True)
class QueryShards:
    """Processes that hold the same texts and split the queries among them."""

    rank: int = 0
    """Index of this process."""
    world_size: int = 1
    all_reduce: Callable[[Sequence[Tensor]], None] = lambda _: None
    """Replaces tensors, in place, by their sums over all processes."""

    def shard(self, queries: int) -> range:
        """Return the range of queries that this process takes."""
        return range(queries * self.rank // self.world_size, queries * (self.rank + 1) // self.world_size)


SINGLE_PROCESS = QueryShards()


@dataclass(frozen=True)
class FalseNegativeMask:
    """Candidates that are not negatives of a query: those with the same text, and those with a text paired with it.

    No operation's shape depends on how often texts repeat, so nothing waits for a GPU.
    """

    queries: Tensor
    """(Q,) the text of each query, a number in [0, texts)."""
    candidates: Tensor
    """(C,) the text of each candidate."""
    left: Tensor
    """(P,) the first text of each pair."""
    right: Tensor
    """(P,) the second text of each pair, which is not a negative of the first."""
    texts: int

    @classmethod
    def of_texts(
        cls, ids: Tensor, queries: Tensor, candidates: Tensor, left: Tensor, right: Tensor
    ) -> FalseNegativeMask:
        """Return the mask for texts with arbitrary ids, all of which occur in `ids`."""
        ordered = ids.flatten().sort().values

        def world_size(some: Tensor) -> Tensor:
            return torch.searchsorted(ordered, some.contiguous())

        return cls(world_size(queries), world_size(candidates), world_size(left), world_size(right), len(ordered))

    def of(self, chunk: slice) -> Tensor:
        """Return the mask (M, C), bool, of a chunk of the queries."""
        queries = self.queries[chunk]
        # Equal queries share one row of the table, any one of theirs. The last row takes the pairs of all other texts.
        row = torch.full((self.texts,), len(queries), device=queries.device)
        row[queries] = torch.arange(len(queries), device=queries.device)
        table = torch.zeros(len(queries) + 1, self.texts, dtype=torch.bool, device=queries.device)
        table[:-1].scatter_(1, queries[:, None], True)
        table.view(-1).index_fill_(0, row[self.left] * self.texts + self.right, True)
        return table[row[queries]].gather(1, self.candidates.expand(len(queries), -1))


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
        tau: float,
        mask: FalseNegativeMask,
        query_shards: QueryShards,
    ) -> Tensor:
        log_probs = torch.zeros_like(weights)[:, None]
        differentiate = any(ctx.needs_input_grad)
        if differentiate:
            by_query, by_candidate = (given.new_zeros(given.shape) for given in (queries, candidates))
        for chunk in _chunks(query_shards.shard(len(queries)), len(candidates)):
            scaled, targets = tau * queries[chunk], target[chunk, None]
            logits = scaled @ candidates.T
            logits.masked_fill_(mask.of(chunk).scatter_(1, targets, False), -torch.inf)
            log_softmax = torch.log_softmax(logits, dim=1)
            torch.gather(log_softmax, 1, targets, out=log_probs[chunk])
            if differentiate:
                # softmax, minus 1 at the target
                grad_logits = log_softmax.exp_().scatter_(1, targets, log_probs[chunk].expm1())
                torch.mm(grad_logits, candidates, out=by_query[chunk])
                by_candidate.addmm_(grad_logits.T, weights[chunk, None] * scaled)
        query_shards.all_reduce([log_probs, by_query, by_candidate] if differentiate else [log_probs])
        if differentiate:
            ctx.save_for_backward(by_query.mul_(tau * weights[:, None]), by_candidate)
        return -(weights[:, None] * log_probs).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        by_query, by_candidate = ctx.saved_tensors
        return grad * by_query, grad * by_candidate, None, None, None, None, None


def _chunks(queries: range, candidates: int) -> Iterator[slice]:
    size = max(1, LOGITS // candidates)
    return (slice(start, min(start + size, queries.stop)) for start in range(queries.start, queries.stop, size))


def chunked_info_nce(
    queries: Tensor,
    candidates: Tensor,
    target: Tensor,
    weights: Tensor,
    tau: float,
    mask: FalseNegativeMask,
    query_shards: QueryShards = SINGLE_PROCESS,
) -> Tensor:
    """Return the sum over queries of weight * -log softmax of the query's target among its candidates.

    It can be differentiated once, with respect to queries and candidates.

    Args:
        queries: (Q, D) of length 1.
        candidates: (C, D) of length 1.
        target: (Q,) int64, the correct candidate of each query.
        weights: (Q,) the weight of each query.
        tau: multiplier of the cosines.
        mask: candidates that are left out; a target never is.
        query_shards: processes that split the queries; all pass the same arguments and get the same result.

    """
    given = queries, candidates, target, weights, tau, mask, query_shards
    loss: Tensor = _ChunkedInfoNCE.apply(*given)  # type: ignore[no-untyped-call]
    return loss


def nt_xent(
    pairs: Tensor,
    positive: Tensor,
    pair_ids: Tensor,
    known_positives: Tensor,
    tau: float,
    query_shards: QueryShards = SINGLE_PROCESS,
) -> Tensor:
    """Return the contrastive loss of format A: every text of a positive pair must find its partner.

    Candidates are all 2B texts except the text itself, its duplicates and its other known positives, in both
    directions. A pair that is not positive adds no loss: its texts still count in the mean over all 2B texts and are
    negatives of the others.

    Args:
        pairs: (B, 2, D) embeddings of length 1.
        positive: (B,) bool.
        pair_ids: (B, 2) text ids, equal for equal texts.
        known_positives: (A, 3) further pairs of texts, each preceded by the row it belongs to.
        tau: multiplier of the cosines.
        query_shards: processes that split the texts.

    """
    embeddings, texts = pairs.flatten(0, 1), pair_ids.flatten()  # interleaved: the partner of text i is text i xor 1
    known = _both_ways(pair_ids, known_positives, torch.cat([positive, positive[known_positives[:, 0]]]))
    mask = FalseNegativeMask.of_texts(pair_ids, texts, texts, *known)
    target = torch.arange(len(texts), device=texts.device) ^ 1
    weights = positive[:, None].expand_as(pair_ids).flatten().to(pairs.dtype) / len(texts)
    return chunked_info_nce(embeddings, embeddings, target, weights, tau, mask, query_shards)


def info_nce(
    roles: Tensor, role_ids: Tensor, known_positives: Tensor, tau: float, query_shards: QueryShards = SINGLE_PROCESS
) -> Tensor:
    """Return the contrastive loss of formats B and C: a text must find its positive among all candidates.

    Candidates are all positives of the batch, then (format B) all negatives, except the text's duplicates and its other
    known positives; the loss is the mean over the B texts.

    Args:
        roles: (B, R, D) embeddings of length 1, of text, positive and, for R = 3, negative.
        role_ids: (B, R) text ids, equal for equal texts.
        known_positives: (A, 3) further pairs of texts, each preceded by the row it belongs to.
        tau: multiplier of the cosines.
        query_shards: processes that split the texts.

    """
    queries, *others = roles.unbind(1)
    known = _both_ways(role_ids, known_positives)
    mask = FalseNegativeMask.of_texts(role_ids, role_ids[:, 0], role_ids[:, 1:].T.flatten(), *known)
    target = torch.arange(len(queries), device=roles.device)
    weights = roles.new_full((len(queries),), 1 / len(queries))
    return chunked_info_nce(queries, torch.cat(others), target, weights, tau, mask, query_shards)


def _both_ways(ids: Tensor, known_positives: Tensor, positive: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the ids (P,) of texts and of a known positive of each, the text itself where its pair is not positive."""
    pairs = torch.cat([ids[:, :2], known_positives[:, 1:]])
    partners = pairs.flip(1)
    if positive is not None:
        partners = torch.where(positive[:, None], partners, pairs)
    return pairs.flatten(), partners.flatten()
