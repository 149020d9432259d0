"""The benchmark's arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Rounds = Sequence[Sequence[float]]
"""Seconds of each step of each round."""
#: Dense multiplications and additions per second, by device and precision (float32 without TF32), in 1e12, from
#: NVIDIA's data sheets. The first name that occurs in the device's name applies.
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
    """A median with the lowest and the highest value over the rounds."""

    median: float
    low: float
    high: float


def between(stamps: Sequence[tuple[float, ...]], warmup: int) -> list[list[float]]:
    """Return the time of each step on each clock, given the clocks at the end of each step, without the warm-up steps.

    The start of the first step is unknown, so `warmup` is at least 1.
    """
    passed = [[now - then for then, now in zip(*both, strict=True)] for both in pairwise(stamps)]
    return passed[warmup - 1 :]


def step_time(rounds: Rounds) -> Spread:
    """Return the median of all steps, with the medians of the best and the worst round."""
    medians = [statistics.median(steps) for steps in rounds]
    return Spread(statistics.median(second for steps in rounds for second in steps), min(medians), max(medians))


def ratio(steps: Rounds, others: Rounds) -> Spread:
    """Return the ratio of step times: the median over the rounds, with the lowest and the highest.

    Ratios are taken within each round, because what slows a machine down slows all systems of a round.
    """
    ratios = [statistics.median(some) / statistics.median(other) for some, other in zip(steps, others, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def fastest(peers: Sequence[Rounds]) -> Rounds:
    """Return the rounds of the peer with the shortest step over all of them."""
    return min(peers, key=lambda rounds: step_time(rounds).median)


def distinct_tokens(batch: Sequence[Sequence[str]], lengths: dict[str, int]) -> int:
    """Return the number of tokens in the distinct texts of a batch's rows, given the number in each text."""
    return sum(lengths[text] for text in {text for row in batch for text in row})


def model_flops(frozen: int, trained: int, layers: int, width: int, lengths: Sequence[int]) -> float:
    """Return the floating-point operations of a forward and backward pass over texts of the given lengths.

    A linear layer takes 2 per weight and token; the backward pass takes the same again for the gradient of its input,
    and once more for that of its weight if it is trained. Attention takes 4 * width * length^2 per layer and text in
    the forward pass, and twice that in the backward pass. Embedding tables, norms and recomputation are not counted.

    Args:
        frozen: number of frozen weights in linear layers.
        trained: number of trainable weights in linear layers.
        layers: number of attention layers.
        width: width of the queries of all heads together.
        lengths: tokens in each text, without padding.

    """
    return sum(lengths) * (4 * frozen + 6 * trained) + 12 * layers * width * sum(length**2 for length in lengths)


def peak_flops(device: str | None, precision: str) -> float | None:
    """Return the peak operations per second of a GPU by its name, None if it is not in the table."""
    known = next((peaks for name, peaks in PEAKS.items() if device and name in device), {})
    return known[precision] * 1e12 if precision in known else None
