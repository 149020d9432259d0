"""The tokens of a corpus in the cache: two arrays in a folder that is named after texts and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from angle.cache import load_array, save_array
from angle.structures import Tokens


def cached_tokens(folder: Path, tokenize: Callable[[], Tokens], texts: int) -> Tokens:
    """Return the tokens of so many texts, cached in `folder`; if missing or damaged, compute and save them."""
    cached = _load_cached_tokens(folder)
    if cached is not None and len(cached) == texts:
        return cached
    tokens = tokenize()
    save_array(folder / "ids.npy", tokens.ids)
    save_array(folder / "offsets.npy", tokens.offsets)
    return tokens


def _load_cached_tokens(folder: Path) -> Tokens | None:
    ids, offsets = load_array(folder / "ids.npy"), load_array(folder / "offsets.npy")
    if ids is None or offsets is None or ids.ndim != 1 or offsets.ndim != 1 or not len(offsets):
        return None
    consistent = offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()
    return Tokens(ids, offsets) if consistent else None
