"""Copy embeddings from the device to the host in large chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Number of elements copied from a GPU at once. A copy makes the host wait for all work queued on the GPU, and more
#: should be queued before that is done.
COPY_ELEMENTS = 2**22


def copy_to_host(
    batches: Iterable[tuple[npt.NDArray[np.int64], Tensor]],
    out: Tensor,
    progress: Callable[[int], object] | None,
    min_elements: int,
) -> None:
    """Copy batches of rows into a tensor on the CPU.

    Args:
        batches: the indices (M,) of rows of `out`, and these rows (M, ...).
        out: (N, ...) float32 on the CPU.
        progress: called with the number of new rows each time some are written.
        min_elements: rows are copied together, once they have at least as many elements.

    """
    pending: list[tuple[npt.NDArray[np.int64], Tensor]] = []

    def flush() -> None:
        if pending:
            indices = np.concatenate([indices for indices, _ in pending])
            out[torch.from_numpy(indices)] = torch.cat([rows for _, rows in pending]).float().cpu()
            pending.clear()
            if progress:
                progress(len(indices))

    for batch in batches:
        pending.append(batch)
        if sum(rows.numel() for _, rows in pending) >= min_elements:
            flush()
    flush()
