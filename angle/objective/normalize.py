"""L2 normalisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


def l2_normalize(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) divided by their lengths; a zero vector stays zero."""
    return normalize(vectors, dim=-1)
