"""How the tokens of a text attend to each other: the rule that every implementation of attention follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionSpec:
    """Which tokens of a text a token attends to, and how the scores are treated."""

    causal: bool
    """Whether a token attends only to itself and to those before it."""
    window: int | None = None
    """Tokens at this distance or more are masked; None masks nothing."""
    scaling: float | None = None
    """Factor applied to the scores; None for 1 / sqrt(d)."""
    dropout: float = 0.0
    """Probability with which an attention weight is set to 0; the others are scaled so that the mean is preserved."""

    def within(self, longest: int) -> AttentionSpec:
        """Return the same rule for texts of at most `longest` tokens, without a window that masks nothing."""
        return self if self.window is None or self.window < longest else replace(self, window=None)

    def attention_mask(self, length: int, device: torch.device | None = None) -> Tensor:
        """Return (L, L): whether the token of the row attends to that of the column."""
        positions = torch.arange(length, device=device)
        distance = positions[:, None] - positions
        in_window = distance.abs() < (length if self.window is None else self.window)
        return in_window & (distance >= 0) if self.causal else in_window

    @property
    def window_size(self) -> tuple[int, int]:
        """How many tokens before and after it a token attends to, -1 for all: flash attention's window_size."""
        side = -1 if self.window is None else self.window - 1
        return side, 0 if self.causal else side
