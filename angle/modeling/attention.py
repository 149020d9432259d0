"""How the tokens of a text attend to each other: the rule that every way of computing attention follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """Which tokens of a text a token sees, and what becomes of the scores."""

    causal: bool
    """Whether a token sees itself and those before it alone."""
    window: int | None = None
    """Tokens at this distance or more are not seen; None: all are."""
    scaling: float | None = None
    """Factor of the scores; None for 1 / sqrt(d)."""
    dropout: float = 0.0
    """Share of attention weights set to 0, the others scaled so that their mean stays."""

    def within(self, longest: int) -> Attention:
        """Return the same for texts of so many tokens at most: a window as long as they are hides nothing."""
        return self if self.window is None or self.window < longest else replace(self, window=None)

    def seen(self, length: int, device: torch.device | None = None) -> Tensor:
        """Return (L, L): whether the token of the row sees that of the column."""
        place = torch.arange(length, device=device)
        distance = place[:, None] - place
        near = distance.abs() < (length if self.window is None else self.window)
        return near & (distance >= 0) if self.causal else near

    @property
    def sides(self) -> tuple[int, int]:
        """How many tokens before and after a token are seen, -1 for all: flash attention's window_size."""
        side = -1 if self.window is None else self.window - 1
        return side, 0 if self.causal else side
