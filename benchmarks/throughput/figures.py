"""The benchmark's arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Rounds = Sequence[Sequence[float]]
"""Seconds of each step of each round."""
#: Dense multiplications and additions a second, by device and precision (without TF32 in float32), in 1e12: the first
#: name that is part of a device's counts. From NVIDIA's data sheets.
PEAKS = {
    "A100": {"float32": 19.5, "bf16": 312.0},
    "H100 PCIe": {"float32": 51.0, "bf16": 756.0},
    "H100 NVL": {"float32": 60.0, "bf16": 835.0},
    "H100": {"float32": 67.0, "bf16": 989.0},
    "H200 NVL": {"float32": 60.0, "bf16": 835.0},
    "H200": {"float32": 67.0, "bf16": 989.0},
}


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value of the rounds."""

    median: float
    low: float
    high: float


def between(stamps: Sequence[tuple[float, ...]], warmup: int) -> list[list[float]]:
    """Return what passed on each clock in each step, given all clocks at the end of each; the first ones left out.

    The first step has no beginning, so `warmup` is at least 1.
    """
    passed = [[now - then for then, now in zip(*both, strict=True)] for both in pairwise(stamps)]
    return passed[warmup - 1 :]


def step_time(rounds: Rounds) -> Spread:
    """Return the median of all steps, with the medians of the best and the worst round."""
    medians = [statistics.median(steps) for steps in rounds]
    return Spread(statistics.median(second for steps in rounds for second in steps), min(medians), max(medians))


def ratio(steps: Rounds, others: Rounds) -> Spread:
    """Return step over other step: the median of the rounds, with the lowest and the highest.

    Each round is compared with itself, for what slows a machine down slows all systems of a round.
    """
    ratios = [statistics.median(some) / statistics.median(other) for some, other in zip(steps, others, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def fastest(peers: Sequence[Rounds]) -> Rounds:
    """Return the rounds of the peer with the shortest step over all of them."""
    return min(peers, key=lambda rounds: step_time(rounds).median)


def distinct_tokens(batch: Sequence[Sequence[str]], lengths: dict[str, int]) -> int:
    """Return the tokens of the distinct texts of a batch's rows, given the tokens of each text."""
    return sum(lengths[text] for text in {text for row in batch for text in row})


def model_flops(frozen: int, trained: int, layers: int, width: int, lengths: Sequence[int]) -> float:
    """Return the floating-point operations of a forward and backward pass over texts of so many tokens.

    Two for each weight of a linear layer and token; the backward pass takes as many for the gradient of its input, and
    once more for that of the weight if it is trained. Attention takes 4 * width * length^2 for each layer and text in
    the forward pass and twice that in the backward one. Embedding tables, norms and recomputation are left out.

    Args:
        frozen: weights of linear layers that are not trained.
        trained: those that are.
        layers: attention layers.
        width: of the queries of all heads together.
        lengths: tokens of each text, without padding.

    """
    return sum(lengths) * (4 * frozen + 6 * trained) + 12 * layers * width * sum(length**2 for length in lengths)


def peak_flops(device: str | None, precision: str) -> float | None:
    """Return operations a second of a GPU by its name, None for one that is not in the table."""
    known = next((peaks for name, peaks in PEAKS.items() if device and name in device), {})
    return known[precision] * 1e12 if precision in known else None
