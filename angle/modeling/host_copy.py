"""Embeddings on their way from the device to the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Number of elements copied from a GPU at once. A copy makes the host wait for all work queued on the GPU, and more
#: should be queued before that is done.
TOGETHER = 2**22


def copy_to_host(
    groups: Iterable[tuple[npt.NDArray[np.int64], Tensor]],
    out: Tensor,
    progress: Callable[[int], object] | None,
    together: int,
) -> None:
    """Write groups of rows to their places.

    Args:
        groups: places (M,) in `out`, and the rows (M, ...) that belong there.
        out: (N, ...) float32 on the CPU.
        progress: called with the number of new rows each time some are written.
        together: number of elements from which the waiting rows are copied.

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
