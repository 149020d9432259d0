"""For code that was written for angle_emb: what it imports from angle_emb.utils."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def cosine_similarity(vec1: npt.ArrayLike, vec2: npt.ArrayLike) -> float:
    """Return the cosine of two vectors (D,), from -1 to 1; nan if one is zero."""
    left, right = np.asarray(vec1, np.float64).ravel(), np.asarray(vec2, np.float64).ravel()
    with np.errstate(invalid="ignore"):
        return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
