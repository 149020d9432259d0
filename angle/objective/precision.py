"""Losses are computed in float32, whatever the model ran in."""

from __future__ import annotations

from torch import Tensor


def at_least_float32(states: Tensor) -> Tensor:
    """Return the states in float32; in float64 if they are."""
    return states if states.element_size() == 8 else states.float()
