"""Attention in blocks of texts of similar length, against each text and head alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from angle.kernels.attention.blocks import (
    BLOCK_OVERHEAD,
    MIN_BLOCK_LENGTH,
    LengthGroups,
    additive_masks,
    attend_in_blocks,
    group_equal_lengths,
    group_into_blocks,
)
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.dropout import keep_probability

DROPPED = 0.2
LENGTHS = np.array([37, 36, 21, 21, 18, 9, 9, 9, 4, 1, 1])
CAUSAL_AND_WINDOW = [(False, None), (True, None), (False, 5), (True, 5)]


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, length_groups: LengthGroups
) -> Tensor:
    """Attend with dropout that is the same at every call."""
    torch.manual_seed(1)
    return attend_in_blocks(query, key, value, length_groups, AttentionSpec(causal, window, 0.3, DROPPED))


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep_masks: list[list[Tensor]] | None,
    *,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return (1, T, H, d) and the weights (L, L) before dropout, text by text and head by head."""
    queries_per_key_head, weights, rows = query.shape[1] // key.shape[1], [], []
    for text, (stop, length) in enumerate(zip(LENGTHS.cumsum(), LENGTHS, strict=True)):
        text_slice, positions = slice(stop - length, stop), torch.arange(length)
        visible = positions[:, None] >= positions if causal else torch.ones(length, length, dtype=torch.bool)
        if window is not None:
            visible = visible & ((positions[:, None] - positions).abs() < window)
        weights.append([])
        heads = []
        for head in range(query.shape[1]):
            scores = 0.3 * query[0, head, text_slice] @ key[0, head // queries_per_key_head, text_slice].T
            weights[-1].append(scores.masked_fill(~visible, -torch.inf).softmax(-1))
            used_weights = (
                weights[-1][-1]
                if keep_masks is None
                else weights[-1][-1] * keep_masks[text][head] / keep_probability(DROPPED)
            )
            heads.append(used_weights @ value[0, head // queries_per_key_head, text_slice])
        rows.append(torch.stack(heads, 1))
    return torch.cat(rows)[None], weights


def one_hot(key_heads: int) -> Tensor:
    """Return values (1, G, T, L) that make a text's weights its output."""
    places = np.concatenate([np.arange(length) for length in LENGTHS])
    return torch.eye(LENGTHS.max(), dtype=torch.float64)[places].expand(1, key_heads, -1, -1)


@pytest.mark.parametrize(("causal", "window"), CAUSAL_AND_WINDOW)
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_values_and_gradients_are_those_of_each_text_alone(key_heads: int, causal: bool, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value, gradient = (
        torch.randn(1, heads, LENGTHS.sum(), width, generator=generator, dtype=torch.float64)
        for heads, width in ((6, 8), (key_heads, 8), (key_heads, 5), (6, 5))
    )
    length_groups = group_equal_lengths(LENGTHS)
    used_weights = attend(query, key, one_hot(key_heads), causal=causal, window=window, length_groups=length_groups)[0]
    _, weights = naive(query, key, value, None, causal=causal, window=window)
    keep_masks: list[list[Tensor]] = []
    for stop, length, text_weights in zip(LENGTHS.cumsum(), LENGTHS, weights, strict=True):
        head_weights = used_weights[stop - length : stop].transpose(0, 1)
        assert not head_weights[..., length:].any()
        keep_masks.append([(head[:, :length] != 0).double() for head in head_weights])
        for head, mask, weight in zip(head_weights, keep_masks[-1], text_weights, strict=True):
            torch.testing.assert_close(head[:, :length], mask * weight / keep_probability(DROPPED))
    visible = torch.cat([(weight > 0).flatten() for text_weights in weights for weight in text_weights])
    kept_fraction = torch.cat([mask.flatten() for masks in keep_masks for mask in masks])[visible]
    assert abs(kept_fraction.mean() - (1 - DROPPED)) < 4 * (DROPPED * (1 - DROPPED) / len(kept_fraction)) ** 0.5

    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    actual = attend(query, key, value, causal=causal, window=window, length_groups=length_groups)
    expected, _ = naive(query, key, value, keep_masks, causal=causal, window=window)
    torch.testing.assert_close(actual, expected)
    downstream = gradient.transpose(1, 2)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, downstream), torch.autograd.grad(expected, inputs, downstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_are_accurate_to_rounding(input_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, 4, LENGTHS.sum(), 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    outputs = []
    for dtype in (input_dtype, torch.float64):
        inputs = [tensor.to(input_dtype).to(dtype).requires_grad_() for tensor in exact]
        out = attend(*inputs, causal=False, window=None, length_groups=group_equal_lengths(LENGTHS))
        assert out.dtype == dtype
        outputs.append([out, *torch.autograd.grad(out.double().square().sum(), inputs)])
        assert all(gradient.dtype == dtype for gradient in outputs[-1])
    for actual, expected in zip(*outputs, strict=True):
        worst = (actual.double() - expected).abs().max() / expected.abs().max()
        assert worst < (1e-5 if input_dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_have_minimal_cost(seed: int) -> None:
    random = np.random.default_rng(seed)
    length_groups = group_equal_lengths(np.sort(random.integers(1, 60, 25))[::-1])[-9:]

    def cost(blocks: list[LengthGroups]) -> float:
        return sum(
            BLOCK_OVERHEAD + sum(count for count, _ in block) * 12 * max(block[0][1], MIN_BLOCK_LENGTH) ** 2
            for block in blocks
        )

    all_groupings = []
    for cuts in itertools.product((False, True), repeat=len(length_groups) - 1):
        boundaries = [0, *(number for number, cut in enumerate(cuts, 1) if cut), len(length_groups)]
        all_groupings.append([length_groups[first:last] for first, last in itertools.pairwise(boundaries)])
    assert sum(group_into_blocks(length_groups, 12), ()) == length_groups
    assert cost(list(group_into_blocks(length_groups, 12))) == min(map(cost, all_groupings))


def test_causal_masks_are_shared_by_all_texts() -> None:
    masks = additive_masks(group_equal_lengths(LENGTHS), 6, AttentionSpec(causal=True, window=5), torch.float32)
    assert all(mask.shape[0] == 1 for mask in masks)


def test_a_second_derivative_is_refused() -> None:
    inputs = [torch.randn(1, 2, LENGTHS.sum(), 8, requires_grad=True) for _ in range(3)]
    actual = attend(*inputs, causal=False, window=None, length_groups=group_equal_lengths(LENGTHS))
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(actual.sum(), inputs, create_graph=True)
