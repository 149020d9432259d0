"""The learning rate as a function of the step, and settings in steps or as a fraction of them."""

from __future__ import annotations

import math


def number_of_steps(setting: float, total_steps: int) -> int:
    """Return a number of steps: `setting` itself if at least 1, otherwise that fraction of all steps."""
    return math.ceil(setting * total_steps) if setting < 1 else int(setting)


def lr_factor(step: int, total_steps: int, warmup: int, scheduler: str) -> float:
    """Return the factor applied to the peak learning rate at a step, counted from 0.

    It rises linearly from 0 to 1 over `warmup` steps, then falls to 0 at `total_steps`, linearly or along half a
    cosine, or by the inverse square root of the steps, as transformers counts them, or stays constant.
    """
    if step < warmup:
        return step / warmup
    if scheduler == "constant":
        return 1.0
    if scheduler == "inverse_sqrt":
        return math.sqrt((warmup or 10_000) / (step + (0 if warmup else 10_000)))
    remaining = (total_steps - step) / max(1, total_steps - warmup)
    return max(0.0, remaining if scheduler == "linear" else 0.5 * (1 - math.cos(math.pi * remaining)))
