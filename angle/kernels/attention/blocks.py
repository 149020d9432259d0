"""Attention with dropout on CPUs: few calls for many short texts, each on one block of padded texts.

torch has no fused CPU kernel for attention with dropout: a call is two dozen small operations, repeated for each
length that occurs in a batch. Here texts of similar length share a block whose padding is masked, one function holds
the arithmetic of a layer, and its backward pass is written by hand. Texts are padded only in here. All index
arithmetic depends only on the batch's lengths, and is done once for all layers.

Legend: H query heads, G key heads, d head dimension, T tokens, n texts and L tokens of a block, P rows of all blocks,
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

#: Number and length of the texts in each group of texts of equal length, longest first.
LengthGroups = tuple[tuple[int, int], ...]

#: Number of scores that can be computed in the time that one more block costs, forward and backward.
BLOCK_OVERHEAD = 20_000

#: Texts are padded to at least this length: over rows shorter than a vector register, torch's softmax takes more than
#: ten times as long per element.
MIN_BLOCK_LENGTH = 16

#: Far below every score, yet far from overflowing when a score is added to it. Unlike infinity, it keeps the weights
#: of a fully masked row finite; rows of padding may be fully masked.
MASKED_SCORE = -1e30


@dataclass(frozen=True)
class BlockPlan:
    """How the tokens of a packed row map to the blocks, and back."""

    blocks: tuple[tuple[int, int], ...]
    """n H and L of each block."""
    query_indices: Tensor
    """(P,): rows of the queries (T H, d); padding repeats a text's last token."""
    key_indices: Tensor
    """(P,): rows of the keys (T G, d), in the same order."""
    output_indices: Tensor
    """(T H,): rows of the blocks."""
    padding_indices: Tensor
    """Rows of the blocks that are padding."""

    def split(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield each block's parts (n H, L, d) of tensors (P, d)."""
        sizes = [count * length for count, length in self.blocks]
        for (count, length), *parts in zip(self.blocks, *(torch.split(tensor, sizes) for tensor in rows), strict=True):
            yield tuple(part.view(count, length, -1) for part in parts)


def group_equal_lengths(lengths: Lengths) -> LengthGroups:
    """Return how many texts have each length, for lengths (N,) sorted longest first."""
    values, counts = np.unique(lengths, return_counts=True)
    return tuple(zip(counts[::-1].tolist(), values[::-1].tolist(), strict=True))


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, length_groups: LengthGroups, spec: AttentionSpec
) -> Tensor:
    """Return (1, T, H, d): attention within each text of a packed row, computed in float32 or better.

    softmax(scaling * q k^T) v within each text. It has no second derivative.

    Args:
        query: (1, H, T, d).
        key: (1, G, T, d), where H is a multiple of G.
        value: (1, G, T, d).
        length_groups: number and length of the texts in each group of equal length, longest first.
        spec: which tokens attend to which, with dropout below 1.

    """
    heads = query.shape[1]
    plan = block_plan(length_groups, heads, key.shape[1])
    compute_dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    masks = additive_masks(length_groups, heads, spec, compute_dtype)
    scaling = query.shape[3] ** -0.5 if spec.scaling is None else spec.scaling
    attended: Tensor = _Attend.apply(query, key, value, plan, masks, scaling, spec.dropout)  # type: ignore[no-untyped-call]
    return attended


def group_into_blocks(length_groups: LengthGroups, heads: int) -> tuple[LengthGroups, ...]:
    """Return the length groups of each block, so that the blocks and scores together cost the least."""
    counts, lengths = np.array(length_groups).T
    text_offsets, scores = np.concatenate([[0], counts.cumsum()]), heads * np.maximum(lengths, MIN_BLOCK_LENGTH) ** 2
    min_cost, block_start = np.zeros(len(length_groups) + 1), []
    for last in range(1, len(length_groups) + 1):  # cost of the groups up to here, by the first group of the last block
        costs = min_cost[:last] + BLOCK_OVERHEAD + scores[:last] * (text_offsets[last] - text_offsets[:last])
        block_start.append(int(costs.argmin()))
        min_cost[last] = costs.min()
    blocks, last = [], len(length_groups)
    while last:
        blocks.append(length_groups[block_start[last - 1] : last])
        last = block_start[last - 1]
    return tuple(reversed(blocks))


@lru_cache(maxsize=4)
def block_plan(length_groups: LengthGroups, heads: int, key_heads: int) -> BlockPlan:
    """Return how the tokens of a row with these length groups map to blocks."""
    blocks, query_indices, key_indices, output_indices, padding_indices = [], [], [], [], []
    head_indices, first_token, first_row = np.arange(heads)[:, None], 0, 0
    for block in group_into_blocks(length_groups, heads):
        lengths, longest = _lengths(block)
        positions = np.arange(longest)
        starts = first_token + lengths.cumsum() - lengths
        source_tokens = (starts[:, None] + np.minimum(positions, lengths[:, None] - 1))[:, None]  # (n, 1, L)
        query_indices.append((source_tokens * heads + head_indices).ravel())
        key_indices.append((source_tokens * key_heads + head_indices // (heads // key_heads)).ravel())
        block_rows = first_row + np.arange(query_indices[-1].size).reshape(len(lengths), heads, longest).swapaxes(1, 2)
        is_token = positions < lengths[:, None]
        output_indices.append(block_rows[is_token].ravel())
        padding_indices.append(block_rows[~is_token].ravel())
        blocks.append((len(lengths) * heads, longest))
        first_token, first_row = first_token + int(lengths.sum()), first_row + query_indices[-1].size
    return BlockPlan(
        tuple(blocks),
        *(
            torch.from_numpy(np.concatenate(part))
            for part in (query_indices, key_indices, output_indices, padding_indices)
        ),
    )


@lru_cache(maxsize=8)
def additive_masks(
    length_groups: LengthGroups, heads: int, spec: AttentionSpec, compute_dtype: torch.dtype
) -> list[Tensor]:
    """Return what is added to the scores of each block, (1 or n H, 1 or L, L): 0, or `MASKED_SCORE` where masked."""
    masks = []
    for block in group_into_blocks(length_groups, heads):
        lengths, longest = _lengths(block)
        masked = torch.zeros(1, 1, longest, dtype=torch.bool)
        if spec.causal or spec.within(longest).window is not None:
            masked = ~spec.attention_mask(longest)[None]
        if not spec.causal and lengths[-1] < longest:  # else padding follows every token, and is masked anyway
            masked = masked | torch.from_numpy(np.arange(longest) >= lengths.repeat(heads)[:, None, None])
        masks.append(torch.zeros(masked.shape, dtype=compute_dtype).masked_fill_(masked, MASKED_SCORE))
    return masks


def _lengths(block: LengthGroups) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]:
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
        plan: BlockPlan,
        masks: list[Tensor],
        scaling: float,
        dropout: float,
    ) -> Tensor:
        compute_dtype = masks[0].dtype
        q, k, v = (
            _rows(tensor).index_select(0, index).to(compute_dtype)
            for tensor, index in ((query, plan.query_indices), (key, plan.key_indices), (value, plan.key_indices))
        )
        attended, weights_and_keep_masks, dropout_scale = torch.empty_like(v), [], 1 / keep_probability(dropout)
        with torch.autocast("cpu", enabled=False):
            for (q_, k_, v_, out), mask in zip(plan.split(q, k, v, attended), masks, strict=True):
                weights = torch.baddbmm(mask, q_, k_.transpose(1, 2), alpha=scaling).softmax(-1)
                keep_mask = draw_keep_mask(weights.shape, dropout)
                weights_and_keep_masks += [weights, keep_mask]
                out.baddbmm_(keep_mask.to(compute_dtype).mul_(weights), v_, beta=0, alpha=dropout_scale)
        ctx.save_for_backward(q, k, v, *weights_and_keep_masks)
        ctx.plan, ctx.scaling, ctx.dropout_scale = plan, scaling, dropout_scale
        ctx.heads_and_dtypes = [(tensor.shape[1], tensor.dtype) for tensor in (query, key, value)]
        return attended.index_select(0, plan.output_indices).view(1, -1, query.shape[1], v.shape[1]).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward()
        (grad,), plan = grads, ctx.plan
        q, k, v, *weights_and_keep_masks = ctx.saved_tensors
        g = grad.reshape(-1, v.shape[1]).index_select(0, plan.query_indices).to(v.dtype)
        g.index_fill_(0, plan.padding_indices, 0.0)
        grad_q, grad_k, grad_v = (torch.empty_like(rows) for rows in (q, k, v))
        blocks, block_weights = (
            plan.split(q, k, v, g, grad_q, grad_k, grad_v),
            zip(weights_and_keep_masks[::2], weights_and_keep_masks[1::2], strict=True),
        )
        with torch.autocast("cpu", enabled=False):
            for (q_, k_, v_, g_, grad_q_, grad_k_, grad_v_), (weights, keep_mask) in zip(
                blocks, block_weights, strict=True
            ):
                grad_dropped = torch.bmm(g_, v_.transpose(1, 2))
                dropped = keep_mask.to(v.dtype)
                grad_weights = grad_dropped.mul_(dropped)
                dropped.mul_(weights)
                grad_v_.baddbmm_(dropped.transpose(1, 2), g_, beta=0, alpha=ctx.dropout_scale)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_q_.baddbmm_(grad_scores, k_, beta=0, alpha=ctx.dropout_scale * ctx.scaling)
                grad_k_.baddbmm_(grad_scores.transpose(1, 2), q_, beta=0, alpha=ctx.dropout_scale * ctx.scaling)
        input_grads = []
        for rows, (heads, dtype) in zip((grad_q, grad_k, grad_v), ctx.heads_and_dtypes, strict=True):
            grad_tokens = rows.index_select(0, plan.output_indices).view(-1, grad.shape[2], rows.shape[1])  # (T, H, d)
            if heads != grad.shape[2]:  # several query heads share a key head
                grad_tokens = grad_tokens.view(len(grad_tokens), heads, -1, rows.shape[1]).sum(2)
            input_grads.append(grad_tokens.transpose(0, 1)[None].to(dtype))
        return *input_grads, None, None, None, None


def _rows(tensor: Tensor) -> Tensor:
    """Return (1, H, T, d) as (T H, d): a view where the heads of a token are contiguous."""
    return tensor[0].transpose(0, 1).reshape(-1, tensor.shape[3])
