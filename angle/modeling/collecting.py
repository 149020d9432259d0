"""Embeddings on their way from the device to the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Numbers that are copied from a GPU together: a copy makes the host wait for all that the GPU has to do, and it should
#: have more to do before it is done.
TOGETHER = 2**22


def collect(
    groups: Iterable[tuple[npt.NDArray[np.int64], Tensor]],
    out: Tensor,
    progress: Callable[[int], object] | None,
    together: int,
) -> None:
    """Put groups of rows into their places.

    Args:
        groups: places (M,) in `out`, and the rows (M, ...) that belong there.
        out: (N, ...) float32 on the CPU.
        progress: called with the number of rows each time some are there.
        together: numbers from which on what has come is copied.

    """
    waiting: list[tuple[npt.NDArray[np.int64], Tensor]] = []

    def copy() -> None:
        if waiting:
            places = np.concatenate([some for some, _ in waiting])
            out[torch.from_numpy(places)] = torch.cat([rows for _, rows in waiting]).float().cpu()
            waiting.clear()
            if progress:
                progress(len(places))

    for group in groups:
        waiting.append(group)
        if sum(rows.numel() for _, rows in waiting) >= together:
            copy()
    copy()
