"""Losses are computed in float32, whatever precision the model ran in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(states: Tensor) -> Tensor:
    """Return the states in float32, or unchanged if they are float64."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
