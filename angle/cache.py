"""Arrays on disk that take long to make, under a name made of all that decides what they hold."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cache_folder(kind: str) -> Path:
    """Return where things of a kind are kept: in $ANGLE_CACHE, or in ~/.cache/angle."""
    return Path(os.environ.get("ANGLE_CACHE") or Path.home() / ".cache" / "angle") / kind


def load_array(path: Path) -> Array | None:
    """Return a kept array, memory-mapped; None where there is none, or a damaged one."""
    try:
        kept: Array = np.load(path, mmap_mode="r")
    except Exception:  # numpy has another error for each way in which a file can be damaged or missing
        return None
    return kept


def save_array(path: Path, array: Array) -> None:
    """Put an array in place whole; on a full or read-only disk it is made again next time.

    Two processes may save the same at once: what one writes equals what the other does, so either may stay. The files
    and folders are plain ones, which others can read.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with scratch.open("xb") as file:
                np.save(file, array)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
