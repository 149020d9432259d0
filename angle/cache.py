"""Cache on disk for arrays that are slow to compute, each named after everything that determines its contents."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cache_folder(name: str) -> Path:
    """Return the folder of that name in the cache, which is $ANGLE_CACHE or else ~/.cache/angle."""
    return Path(os.environ.get("ANGLE_CACHE") or Path.home() / ".cache" / "angle") / name


def load_array(path: Path) -> Array | None:
    """Return a cached array, memory-mapped; None if it is missing or damaged."""
    try:
        array: Array = np.load(path, mmap_mode="r")
    except Exception:  # numpy raises a different error for each way in which a file can be damaged or missing
        return None
    return array


def save_array(path: Path, array: Array, *, replace: bool = True) -> None:
    """Save an array atomically; if the disk is full or read-only, skip it, and it is computed again next time.

    The files and folders have default permissions, so that others can read them.

    Args:
        path: the file.
        array: what `load_array` will return.
        replace: whether to replace an existing file. Of a measurement, unlike of a computation, two processes write
            different results, and the first counts.

    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with scratch.open("xb") as file:
                np.save(file, array)
            if replace or load_array(path) is None:
                scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
