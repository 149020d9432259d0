"""Attention in blocks of texts of near length, against each text and head alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from angle.kernels.attention.blocks import (
    BLOCK_OVERHEAD,
    MIN_BLOCK_LENGTH,
    RunLengths,
    additive_masks,
    attend_in_blocks,
    group_into_blocks,
    run_length_encode,
)
from angle.kernels.attention.spec import AttentionSpec
from angle.kernels.dropout import keep_probability

DROPPED = 0.2
LENGTHS = np.array([37, 36, 21, 21, 18, 9, 9, 9, 4, 1, 1])
DIRECTIONS = [(False, None), (True, None), (False, 5), (True, 5)]


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, runs: RunLengths) -> Tensor:
    """Attend with dropout that is the same at every call."""
    torch.manual_seed(1)
    return attend_in_blocks(query, key, value, runs, AttentionSpec(causal, window, 0.3, DROPPED))


def naive(
    query: Tensor, key: Tensor, value: Tensor, kept: list[list[Tensor]] | None, *, causal: bool, window: int | None
) -> tuple[Tensor, list[list[Tensor]]]:
    """Return (1, T, H, d) and the weights (L, L) before dropout, text by text and head by head."""
    shared, weights, rows = query.shape[1] // key.shape[1], [], []
    for text, (stop, length) in enumerate(zip(LENGTHS.cumsum(), LENGTHS, strict=True)):
        own, place = slice(stop - length, stop), torch.arange(length)
        seen = place[:, None] >= place if causal else torch.ones(length, length, dtype=torch.bool)
        if window is not None:
            seen = seen & ((place[:, None] - place).abs() < window)
        weights.append([])
        heads = []
        for head in range(query.shape[1]):
            scores = 0.3 * query[0, head, own] @ key[0, head // shared, own].T
            weights[-1].append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
            used = weights[-1][-1] if kept is None else weights[-1][-1] * kept[text][head] / keep_probability(DROPPED)
            heads.append(used @ value[0, head // shared, own])
        rows.append(torch.stack(heads, 1))
    return torch.cat(rows)[None], weights


def one_hot(key_heads: int) -> Tensor:
    """Return values (1, G, T, L) that make a text's weights its output."""
    places = np.concatenate([np.arange(length) for length in LENGTHS])
    return torch.eye(LENGTHS.max(), dtype=torch.float64)[places].expand(1, key_heads, -1, -1)


@pytest.mark.parametrize(("causal", "window"), DIRECTIONS)
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_values_and_gradients_are_those_of_each_text_alone(key_heads: int, causal: bool, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value, gradient = (
        torch.randn(1, heads, LENGTHS.sum(), width, generator=generator, dtype=torch.float64)
        for heads, width in ((6, 8), (key_heads, 8), (key_heads, 5), (6, 5))
    )
    runs = run_length_encode(LENGTHS)
    used = attend(query, key, one_hot(key_heads), causal=causal, window=window, runs=runs)[0]
    _, weights = naive(query, key, value, None, causal=causal, window=window)
    kept: list[list[Tensor]] = []
    for stop, length, of_text in zip(LENGTHS.cumsum(), LENGTHS, weights, strict=True):
        of_heads = used[stop - length : stop].transpose(0, 1)
        assert not of_heads[..., length:].any()
        kept.append([(head[:, :length] != 0).double() for head in of_heads])
        for head, mask, weight in zip(of_heads, kept[-1], of_text, strict=True):
            torch.testing.assert_close(head[:, :length], mask * weight / keep_probability(DROPPED))
    visible = torch.cat([(weight > 0).flatten() for of_text in weights for weight in of_text])
    drawn = torch.cat([mask.flatten() for masks in kept for mask in masks])[visible]
    assert abs(drawn.mean() - (1 - DROPPED)) < 4 * (DROPPED * (1 - DROPPED) / len(drawn)) ** 0.5

    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    actual = attend(query, key, value, causal=causal, window=window, runs=runs)
    expected, _ = naive(query, key, value, kept, causal=causal, window=window)
    torch.testing.assert_close(actual, expected)
    downstream = gradient.transpose(1, 2)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, downstream), torch.autograd.grad(expected, inputs, downstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_lose_what_rounding_takes(input_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, 4, LENGTHS.sum(), 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    outputs = []
    for dtype in (input_dtype, torch.float64):
        inputs = [tensor.to(input_dtype).to(dtype).requires_grad_() for tensor in exact]
        out = attend(*inputs, causal=False, window=None, runs=run_length_encode(LENGTHS))
        assert out.dtype == dtype
        outputs.append([out, *torch.autograd.grad(out.double().square().sum(), inputs)])
        assert all(gradient.dtype == dtype for gradient in outputs[-1])
    for actual, expected in zip(*outputs, strict=True):
        worst = (actual.double() - expected).abs().max() / expected.abs().max()
        assert worst < (1e-5 if input_dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_blocks_cost_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    runs = run_length_encode(np.sort(random.integers(1, 60, 25))[::-1])[-9:]

    def cost(blocks: list[RunLengths]) -> float:
        return sum(
            BLOCK_OVERHEAD + sum(count for count, _ in block) * 12 * max(block[0][1], MIN_BLOCK_LENGTH) ** 2
            for block in blocks
        )

    every = []
    for cuts in itertools.product((False, True), repeat=len(runs) - 1):
        places = [0, *(number for number, cut in enumerate(cuts, 1) if cut), len(runs)]
        every.append([runs[first:last] for first, last in itertools.pairwise(places)])
    assert sum(group_into_blocks(runs, 12), ()) == runs
    assert cost(list(group_into_blocks(runs, 12))) == min(map(cost, every))


def test_masks_of_one_direction_are_as_large_as_one_text() -> None:
    masks = additive_masks(run_length_encode(LENGTHS), 6, AttentionSpec(causal=True, window=5), torch.float32)
    assert all(mask.shape[0] == 1 for mask in masks)


def test_a_second_derivative_is_refused() -> None:
    inputs = [torch.randn(1, 2, LENGTHS.sum(), 8, requires_grad=True) for _ in range(3)]
    actual = attend(*inputs, causal=False, window=None, runs=run_length_encode(LENGTHS))
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(actual.sum(), inputs, create_graph=True)
