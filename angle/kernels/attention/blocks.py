"""Attention with dropout on CPUs: few calls for many short texts, each on one block of padded texts.

torch has no fused CPU kernel for attention with dropout: a call is two dozen small operations, repeated for each
length that occurs in a batch. Here texts of similar length share a block whose padding is masked, one function holds
the arithmetic of a layer, and its backward pass is written by hand. Texts are padded only in here. All index
arithmetic depends only on the batch's runs, and is done once for all layers.

Legend: H query heads, G key heads, d head width, T tokens, n texts and L tokens of a block, P rows of all blocks,
which is the sum of their n H L.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.autograd import forbid_double_backward
from angle.kernels.dropout import draw_keep_mask, keep_probability
from angle.structures import Lengths

#: Number and length of the texts in each run of texts of equal length, longest first.
RunLengths = tuple[tuple[int, int], ...]

#: Number of scores that can be computed in the time that one more block costs, forward and backward.
BLOCK_OVERHEAD = 20_000

#: Texts are padded to at least this length: over rows shorter than a vector register, torch's softmax takes more than
#: ten times as long per element.
MIN_BLOCK_LENGTH = 16

#: Far below every score, yet far from overflowing when a score is added to it. Unlike infinity, it keeps the weights
#: of a fully masked row finite; rows of padding may be fully masked.
MASKED_SCORE = -1e30


@dataclass(frozen=True)
class Plan:
    """How the tokens of a packed row map to the blocks, and back."""

    blocks: tuple[tuple[int, int], ...]
    """n H and L of each block."""
    queries: Tensor
    """(P,) indices of rows of the queries (T H, d); padding repeats a text's last token."""
    keys: Tensor
    """(P,) the same for the keys (T G, d)."""
    outputs: Tensor
    """(T H,) indices of rows of the blocks."""
    padding: Tensor
    """Indices of rows of the blocks that are padding."""

    def split(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield each block's parts (n H, L, d) of tensors (P, d)."""
        sizes = [count * length for count, length in self.blocks]
        for (count, length), *parts in zip(self.blocks, *(torch.split(tensor, sizes) for tensor in rows), strict=True):
            yield tuple(part.view(count, length, -1) for part in parts)


def run_length_encode(lengths: Lengths) -> RunLengths:
    """Return how many texts have each length, for lengths (N,) sorted longest first."""
    values, counts = np.unique(lengths, return_counts=True)
    return tuple(zip(counts[::-1].tolist(), values[::-1].tolist(), strict=True))


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, runs: RunLengths, spec: AttentionSpec) -> Tensor:
    """Return (1, T, H, d): attention within each text of a packed row, computed in float32 or better.

    softmax(scaling * q k^T) v within each text. It has no second derivative.

    Args:
        query: (1, H, T, d).
        key: (1, G, T, d), where H is a multiple of G.
        value: (1, G, T, d).
        runs: the runs of the texts, in order.
        spec: which tokens attend to which, with dropout below 1.

    """
    heads = query.shape[1]
    plan = block_plan(runs, heads, key.shape[1])
    compute_dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    masks = additive_masks(runs, heads, spec, compute_dtype)
    scaling = query.shape[3] ** -0.5 if spec.scaling is None else spec.scaling
    attended: Tensor = _Attend.apply(query, key, value, plan, masks, scaling, spec.dropout)  # type: ignore[no-untyped-call]
    return attended


def group_into_blocks(runs: RunLengths, heads: int) -> tuple[RunLengths, ...]:
    """Return the runs grouped into blocks, so that the blocks and scores together cost the least."""
    counts, lengths = np.array(runs).T
    before, scores = np.concatenate([[0], counts.cumsum()]), heads * np.maximum(lengths, MIN_BLOCK_LENGTH) ** 2
    least, first_of = np.zeros(len(runs) + 1), []
    for last in range(1, len(runs) + 1):  # cost of the runs up to here, by the first run of the last block
        costs = least[:last] + BLOCK_OVERHEAD + scores[:last] * (before[last] - before[:last])
        first_of.append(int(costs.argmin()))
        least[last] = costs.min()
    blocks, last = [], len(runs)
    while last:
        blocks.append(runs[first_of[last - 1] : last])
        last = first_of[last - 1]
    return tuple(reversed(blocks))


@lru_cache(maxsize=4)
def block_plan(runs: RunLengths, heads: int, key_heads: int) -> Plan:
    """Return how the tokens of a row with these runs map to blocks."""
    blocks, queries, keys, outputs, padding = [], [], [], [], []
    head, token, row = np.arange(heads)[:, None], 0, 0
    for block in group_into_blocks(runs, heads):
        lengths, longest = _lengths(block)
        position = np.arange(longest)
        starts = token + lengths.cumsum() - lengths
        source = (starts[:, None] + np.minimum(position, lengths[:, None] - 1))[:, None]  # (n, 1, L)
        queries.append((source * heads + head).ravel())
        keys.append((source * key_heads + head // (heads // key_heads)).ravel())
        block_rows = row + np.arange(queries[-1].size).reshape(len(lengths), heads, longest).swapaxes(1, 2)
        is_token = position < lengths[:, None]
        outputs.append(block_rows[is_token].ravel())
        padding.append(block_rows[~is_token].ravel())
        blocks.append((len(lengths) * heads, longest))
        token, row = token + int(lengths.sum()), row + queries[-1].size
    return Plan(tuple(blocks), *(torch.from_numpy(np.concatenate(part)) for part in (queries, keys, outputs, padding)))


@lru_cache(maxsize=8)
def additive_masks(runs: RunLengths, heads: int, spec: AttentionSpec, compute_dtype: torch.dtype) -> list[Tensor]:
    """Return what is added to the scores of each block, (1 or n H, 1 or L, L): 0, or `MASKED_SCORE` where masked."""
    masks = []
    for block in group_into_blocks(runs, heads):
        lengths, longest = _lengths(block)
        hidden = torch.zeros(1, 1, longest, dtype=torch.bool)
        if spec.causal or spec.within(longest).window is not None:
            hidden = ~spec.attention_mask(longest)[None]
        if not spec.causal and lengths[-1] < longest:  # else padding follows every token, and is masked anyway
            hidden = hidden | torch.from_numpy(np.arange(longest) >= lengths.repeat(heads)[:, None, None])
        masks.append(torch.zeros(hidden.shape, dtype=compute_dtype).masked_fill_(hidden, MASKED_SCORE))
    return masks


def _lengths(block: RunLengths) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]:
    """Return the lengths (n,) of a block's texts, and L."""
    counts, lengths = np.array(block).T
    return lengths.repeat(counts), max(int(lengths[0]), MIN_BLOCK_LENGTH)


class _Attend(torch.autograd.Function):
    """Attend within blocks; see `attend_in_blocks`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: Plan,
        masks: list[Tensor],
        scaling: float,
        dropout: float,
    ) -> Tensor:
        compute_dtype = masks[0].dtype
        q, k, v = (
            _rows(tensor).index_select(0, index).to(compute_dtype)
            for tensor, index in ((query, plan.queries), (key, plan.keys), (value, plan.keys))
        )
        attended, saved, scale = torch.empty_like(v), [], 1 / keep_probability(dropout)
        with torch.autocast("cpu", enabled=False):
            for (q_, k_, v_, out), mask in zip(plan.split(q, k, v, attended), masks, strict=True):
                weights = torch.baddbmm(mask, q_, k_.transpose(1, 2), alpha=scaling).softmax(-1)
                keep_mask = draw_keep_mask(weights.shape, dropout)
                saved += [weights, keep_mask]
                out.baddbmm_(keep_mask.to(compute_dtype).mul_(weights), v_, beta=0, alpha=scale)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.plan, ctx.scaling, ctx.scale = plan, scaling, scale
        ctx.heads_and_dtypes = [(tensor.shape[1], tensor.dtype) for tensor in (query, key, value)]
        return attended.index_select(0, plan.outputs).view(1, -1, query.shape[1], v.shape[1]).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (grad,), plan = grads, ctx.plan
        q, k, v, *saved = ctx.saved_tensors
        g = grad.reshape(-1, v.shape[1]).index_select(0, plan.queries).to(v.dtype)
        g.index_fill_(0, plan.padding, 0.0)
        grad_q, grad_k, grad_v = (torch.empty_like(rows) for rows in (q, k, v))
        blocks, saved_blocks = plan.split(q, k, v, g, grad_q, grad_k, grad_v), zip(saved[::2], saved[1::2], strict=True)
        with torch.autocast("cpu", enabled=False):
            for (q_, k_, v_, g_, grad_q_, grad_k_, grad_v_), (weights, keep_mask) in zip(
                blocks, saved_blocks, strict=True
            ):
                grad_dropped = torch.bmm(g_, v_.transpose(1, 2))
                dropped = keep_mask.to(v.dtype)
                grad_weights = grad_dropped.mul_(dropped)
                dropped.mul_(weights)
                grad_v_.baddbmm_(dropped.transpose(1, 2), g_, beta=0, alpha=ctx.scale)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_q_.baddbmm_(grad_scores, k_, beta=0, alpha=ctx.scale * ctx.scaling)
                grad_k_.baddbmm_(grad_scores.transpose(1, 2), q_, beta=0, alpha=ctx.scale * ctx.scaling)
        input_grads = []
        for rows, (heads, dtype) in zip((grad_q, grad_k, grad_v), ctx.heads_and_dtypes, strict=True):
            grad_tokens = rows.index_select(0, plan.outputs).view(-1, grad.shape[2], rows.shape[1])  # (T, H, d)
            if heads != grad.shape[2]:  # several query heads share a key head
                grad_tokens = grad_tokens.view(len(grad_tokens), heads, -1, rows.shape[1]).sum(2)
            input_grads.append(grad_tokens.transpose(0, 1)[None].to(dtype))
        return *input_grads, None, None, None, None


def _rows(tensor: Tensor) -> Tensor:
    """Return (1, H, T, d) as (T H, d): a view where the heads of a token are contiguous."""
    return tensor[0].transpose(0, 1).reshape(-1, tensor.shape[3])
